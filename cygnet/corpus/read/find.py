"""Which files a person means by the paths and URLs they give."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cygnet.corpus.read.kinds import KINDS as KINDS
from cygnet.corpus.read.kinds import READABLE, kind_of, stem_of
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.sources import Source, is_sources_file, read_sources
from cygnet.errors import UserError, nearest

MAX_FILE_DOMAINS = 16


class _NoFileError(UserError):
    """What a person names is no file to read; in a list of sources that is one problem of many."""

    def __init__(self, given: str, why: str, kind: str = "no file") -> None:
        super().__init__(f"{given}: {why}")
        self.kind = kind
        """A key of `problems.LOST`."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to read, or a slice of one (see `slices`)."""

    path: Path
    """Where it lies on this machine; of a URL, the name at its end."""
    source: str
    """Its name in documents and reports: from the given folder on, never the whole path."""
    domain: str
    """The given folder's subfolder or name; of a single file, its name without suffixes."""
    kind: str
    """A value of `KINDS`, or `hub`."""
    named: bool = False
    """Given by its own name, not found in a folder or by a glob."""
    licence: str = ""
    """Of its documents, as far as known."""
    text_field: str = ""
    """The field of its rows that holds the text; empty for the setting that holds for all."""
    weight: float = 1.0
    """Its share of a mixture is its size times this."""
    epochs: float = 1.0
    """How often its documents are seen in one pass over the corpus."""
    rules: str = ""
    """The name of the set of rules that it is filtered by; empty for the usual ones."""
    start: int = 0
    """The slice's first byte (of parquet: row group)."""
    stop: int | None = None
    """The byte (row group) behind the slice; None for the file's end."""
    first_line: int = 1
    """The number of the slice's first line (row)."""
    url: str = ""
    """Where it lies, if not on this machine."""
    size: int = -1
    """The bytes of what lies behind a URL, or of a slice of parquet; -1 if unknown or local."""
    given: str = ""
    """`path` as the person wrote it, where it was made absolute since."""
    version: str = ""
    """What tells one state of what lies behind a URL from another: an ETag, a time, a commit."""

    @property
    def place(self) -> str:
        """Where it is, for a person."""
        return self.url or self.given or str(self.path)

    @property
    def is_slice(self) -> bool:
        """Whether it is less than a whole file."""
        return self.start > 0 or self.stop is not None

    def num_bytes(self) -> int:
        """Return the bytes to read; 0 where that is not known or the file is gone."""
        if self.url or (self.is_slice and self.kind == "parquet"):
            return max(self.size, 0)
        try:
            size = self.path.stat().st_size
        except OSError:
            return 0
        return (size if self.stop is None else self.stop) - self.start


def find_files(
    paths: Sequence[str], problems: Problems, exclude: Path | None = None
) -> list[InputFile]:
    """Return what lies behind files, folders, globs, URLs and sources files, each once, in order.

    Hidden files and everything under `exclude` are passed over. What a folder, a glob or a sources
    file gives that is not there, is no file, or one of an unknown kind, and a URL that fails, are
    counted in `problems`.

    Raises:
        UserError: one of `paths` itself does not exist, matches nothing, is no file, or is one of
            an unknown kind; a sources file has no such form.
    """
    found: dict[object, InputFile] = {}
    for given in paths:
        for file in _expand(given, problems):
            if file.url:
                found.setdefault(file.url, file)
                continue
            resolved = file.path.resolve()
            if exclude is None or not resolved.is_relative_to(exclude.resolve()):
                found.setdefault(resolved, file)
    files = list(found.values())
    if len({file.domain for file in files}) > MAX_FILE_DOMAINS:
        files = [dataclasses.replace(f, domain=_folder_of(f)) if f.named else f for f in files]
    return files


def _folder_of(file: InputFile) -> str:
    folder = file.url.rpartition("/")[0] if file.url else str(file.path.resolve().parent)
    return folder.rpartition("/")[2] or "text"


def _expand(given: str, problems: Problems) -> list[InputFile]:
    if "://" in given:
        from cygnet.corpus.read.remote import find_urls, local_path

        local = local_path(given)
        return find_urls(given, problems) if local is None else _expand(local, problems)
    path = Path(given)
    if path.is_dir():
        return _files_in(path, problems)
    if why := _why_not_a_file(path):
        raise _NoFileError(given, why)
    if path.exists():
        if is_sources_file(path):
            return [
                file for source in read_sources(path) for file in _files_of(source, path, problems)
            ]
        kind = kind_of(path)
        if kind is None:
            why = f"cannot read a file of this kind; give {READABLE}"
            raise _NoFileError(given, why, "not text")
        return [InputFile(path, path.name, stem_of(path), kind, named=True)]
    matches = sorted(_matches(given))
    if not matches:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise _NoFileError(given, f"no such file or folder{nearest(path.name, siblings)}")
    files: list[InputFile] = []
    for match in map(Path, matches):
        if match.is_dir():
            continue
        folder = Path(os.path.realpath(match)).parent.name or "text"
        files += _one(match, f"{folder}/{match.name}", folder, problems)
    return files


def _files_of(source: Source, sources_file: Path, problems: Problems) -> list[InputFile]:
    """Return the files of an entry of a sources file, with what it says of them.

    An entry that gives nothing to read is counted: it is one of several.
    """
    if "://" not in source.path and is_sources_file(Path(source.path)):
        raise UserError(f"{sources_file}: entry {source.number}: a sources file holds no other one")
    try:
        files = _expand(source.path, problems)
    except UserError as error:
        kind = error.kind if isinstance(error, _NoFileError) else "failed download"
        why = str(error).removeprefix(f"{source.path}: ")
        problems.add(kind, source.path, f"{why} (entry {source.number} of {sources_file})")
        return []
    return [
        dataclasses.replace(
            file,
            domain=source.domain or file.domain,
            named=file.named and not source.domain,
            licence=source.licence or file.licence,
            text_field=source.text_field,
            weight=source.weight,
            epochs=source.epochs,
            rules=source.rules,
        )
        for file in files
    ]


def _matches(pattern: str) -> set[str]:
    """Return what a glob matches; `**` does not go into linked folders, which may be a loop."""
    head, stars, rest = pattern.partition("**")
    if not stars or (head and not head.endswith("/")) or (rest and not rest.startswith("/")):
        return set(glob.glob(pattern))
    found: set[str] = set()
    for base in glob.glob(head) if head else ["."]:
        for folder, _, _ in _walk(base):
            inner = folder if head else os.path.relpath(folder, ".")
            prefix = "" if inner == "." and not head else glob.escape(inner.rstrip("/")) + "/"
            found |= _matches(prefix + (rest[1:] or "*"))
    return found


def _walk(
    folder: str, problems: Problems | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk through a folder, in order, without hidden folders and linked ones."""

    def failed(error: OSError) -> None:
        if problems is not None:
            problems.add("unreadable", str(error.filename), error.strerror or "")

    for path, folders, names in os.walk(folder, onerror=failed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield path, folders, sorted(names)


def _why_not_a_file(path: Path) -> str | None:
    """Say why a path that is there, and is no folder, cannot be read as a file, or return None.

    A pipe is not waited for: who writes into it may never come.
    """
    try:
        if path.is_file() or path.is_dir():
            return None
        if path.exists():
            what = "not a regular file (a pipe, a socket or a device)"
            return f"{what}; write its text to a file first"
        if path.is_symlink():
            return f"a link to {path.readlink()}, which is not there"
    except OSError as error:
        return f"cannot be looked at ({error.strerror})"
    return None


def _one(path: Path, source: str, domain: str, problems: Problems) -> list[InputFile]:
    """Return the file that a folder or a glob gave, or count why it is none to read."""
    if why := _why_not_a_file(path):
        problems.add("no file", str(path), why)
        return []
    kind = kind_of(path)
    if kind is None:
        problems.add("not text", str(path), f"this kind of file is not read; {READABLE} are")
        return []
    return [InputFile(path, source, domain, kind)]


def _files_in(folder: Path, problems: Problems) -> list[InputFile]:
    name = folder.resolve().name or "text"
    paths: list[Path] = []
    for base, folders, names in _walk(str(folder), problems):
        linked = [inner for inner in folders if os.path.islink(os.path.join(base, inner))]
        paths += [Path(base, inner) for inner in linked]
        paths += [Path(base, inner) for inner in names if not inner.startswith(".")]
    files: list[InputFile] = []
    for path in sorted(paths):
        inner = path.relative_to(folder)
        if path.is_symlink() and path.is_dir():
            problems.add("no file", str(path), "a linked folder; give it by its own name")
            continue
        domain = inner.parts[0] if len(inner.parts) > 1 else name
        files += _one(path, f"{name}/{inner.as_posix()}", domain, problems)
    return files
