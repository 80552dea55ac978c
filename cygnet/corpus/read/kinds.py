"""What kind of file something is: by its name, and by its first bytes where they say otherwise."""

from __future__ import annotations

import re
from pathlib import PurePath

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
"""Suffixes of compressed files, and how they are compressed."""
KINDS = {
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".org"), "text"),
    **dict.fromkeys((".tex", ".latex"), "latex"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".json": "json",
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".parquet": "parquet",
    **dict.fromkeys((".html", ".htm", ".xhtml", ".shtml"), "html"),
    ".epub": "epub",
    ".pdf": "pdf",
    ".warc": "warc",
    ".xml": "xml",
    ".ipynb": "notebook",
    ".zip": "zip",
    ".tar": "tar",
    **dict.fromkeys((".tgz", ".tbz2", ".txz", ".tzst"), "tar"),
    **dict.fromkeys(
        (
            *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".cu", ".java"),
            *(".js", ".mjs", ".cjs", ".jsx", ".ts", ".tsx", ".vue", ".go", ".rs", ".sh", ".bash"),
            *(".rb", ".php", ".pl", ".pm", ".lua", ".kt", ".kts", ".scala", ".swift", ".cs"),
            *(".r", ".jl", ".hs", ".ml", ".mli", ".ex", ".exs", ".erl", ".clj", ".dart", ".zig"),
            *(".sql", ".css", ".scss", ".proto", ".f90", ".asm", ".s", ".el", ".lisp", ".vim"),
        ),
        "code",
    ),
}
"""How a file is read, by its last suffix but that of a compression."""
ARCHIVES = ("zip", "tar")
ROWS = ("jsonl", "json", "csv", "parquet", "hub")
"""Kinds of file that hold rows with fields."""
READABLE = (
    "txt, md, rst, tex, html, epub, pdf, warc, Wikipedia's pages-articles.xml, source code, ipynb, "
    "jsonl, json, csv, tsv or parquet, each also .gz, .bz2, .xz or .zst or in a .zip or .tar"
)
HEAD_BYTES = 1024
"""So many first bytes are looked at."""

_PACKED = {".tgz": "gzip", ".tbz2": "bz2", ".txz": "xz", ".tzst": "zstd"}
_COMPRESSED_STARTS = {
    b"\x1f\x8b\x08": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_BZ2_BLOCKS = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
_STARTS = {b"%PDF-": "pdf", b"PAR1": "parquet", b"WARC/1.": "warc"}
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_EPUB = b"mimetypeapplication/epub+zip"
_TAR_MARK, _TAR_MARK_AT = b"ustar", 257
_FOREIGN = {
    b"\x7fELF": "a program (ELF)",
    b"\x89PNG\r\n\x1a\n": "an image (PNG)",
    b"\xff\xd8\xff": "an image (JPEG)",
    b"GIF87a": "an image (GIF)",
    b"GIF89a": "an image (GIF)",
    b"OggS": "a sound (Ogg)",
    b"fLaC": "a sound (FLAC)",
    b"ID3\x03": "a sound (MP3)",
    b"ID3\x04": "a sound (MP3)",
    b"SQLite format 3\0": "a database (SQLite)",
    b"\xca\xfe\xba\xbe": "a program (class file or Mach-O)",
    b"\xcf\xfa\xed\xfe": "a program (Mach-O)",
    b"7z\xbc\xaf\x27\x1c": "an archive (7z), which is not opened",
    b"Rar!\x1a\x07": "an archive (RAR), which is not opened",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old office document",
    b"wOF2": "a font",
    b"wOFF": "a font",
    b"!<arch>\n": "a library of programs (ar)",
}
_HTML_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!doctype\s+html|<html[\s>])", re.IGNORECASE)
_XML_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml|mediawiki)")
_ANY_TEXT = frozenset(("text", "latex", "code", "html", "csv", "json", "jsonl", "xml", "notebook"))


def compression_by_name(path: PurePath) -> str | None:
    """Return how a file is compressed if its suffix is right, else None."""
    suffix = path.suffix.lower()
    return COMPRESSIONS.get(suffix) or _PACKED.get(suffix)


def kind_of(path: PurePath) -> str | None:
    """Return how a file is read, by its suffix; None for a kind that is not read."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1].lower() in COMPRESSIONS:
        suffixes = suffixes[:-1]
    if not suffixes:
        return None
    # Dumps of Wikipedia's large editions come in parts: ...-pages-articles1.xml-p1p41242.bz2
    if "pages-articles" in path.name and ".xml-p" in path.name:
        return "xml"
    return KINDS.get(suffixes[-1].lower())


def stem_of(path: PurePath) -> str:
    """Return a file's name without its suffix, and without that of a compression behind it."""
    compressed = path.suffix.lower() in COMPRESSIONS
    return PurePath(path.stem).stem if compressed else path.stem


def compression_of(head: bytes) -> str | None:
    """Return how bytes are compressed, by how they start; None if they are not."""
    if head.startswith(b"BZh") and head[4:10] in _BZ2_BLOCKS:
        return "bz2"
    return next((how for start, how in _COMPRESSED_STARTS.items() if head.startswith(start)), None)


def kind_by_head(head: bytes, kind: str) -> tuple[str | None, str]:
    """Return how a file is to be read, by its first bytes, and what these are.

    Args:
        head: its first `HEAD_BYTES`, decompressed.
        kind: how it is read going by its name.

    Returns:
        (`kind`, "") where nothing contradicts it. Another kind where the bytes are surely of that.
        None where they are of something that is not read. The text says what they are.
    """
    if head.startswith(_ZIP_STARTS):
        actual = "epub" if _EPUB in head[:100] else "zip"
        # An epub whose first entry is another is still one.
        return (kind, "") if kind in ("epub", actual) else (actual, f"a {actual} file")
    if head[_TAR_MARK_AT:].startswith(_TAR_MARK):
        return (kind, "") if kind == "tar" else ("tar", "a tar file")
    for start, actual in _STARTS.items():
        if head.startswith(start):
            return (kind, "") if kind == actual else (actual, f"a {actual} file")
    foreign = next((what for start, what in _FOREIGN.items() if head.startswith(start)), "")
    if foreign and kind not in ARCHIVES:
        return None, foreign
    if head.startswith(b"MZ") and b"\0" in head:
        return None, "a program (PE)"
    if head.startswith(b"RIFF") and head[8:12] in (b"WEBP", b"WAVE", b"AVI "):
        return None, "an image, a sound or a film (RIFF)"
    if head[4:8] == b"ftyp" and head[:3] == b"\0\0\0":
        return None, "a film or an image (MP4)"
    return _kind_of_markup(head, kind)


def _kind_of_markup(head: bytes, kind: str) -> tuple[str | None, str]:
    if kind == "xml":
        if b"<mediawiki" in head:
            return "wiki", ""
        if _HTML_START.match(head) or (_XML_START.match(head) and b"<html" in head):
            return "html", "an HTML file"
        return None, "XML of a kind that is not read (Wikipedia's dumps and XHTML are)"
    if kind in _ANY_TEXT - {"html"} and _HTML_START.match(head):
        return "html", "an HTML file"
    if kind == "text" and _XML_START.match(head) and b"<mediawiki" in head:
        return "wiki", "a dump of a wiki"
    return kind, ""
