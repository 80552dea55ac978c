"""Which files a person means by the paths they give."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cygnet.corpus.read.problems import Problems
from cygnet.errors import UserError, nearest
from cygnet.files import COMPRESSIONS

KINDS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
READABLE = "txt, md, jsonl, json, csv, tsv or parquet, each also .gz or .zst"
MAX_FILE_DOMAINS = 16


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to read."""

    path: Path
    source: str
    """Its name in documents and reports: from the given folder on, never the whole path."""
    domain: str
    """The given folder's subfolder or name; of a single file, its name without suffixes."""
    kind: str
    """A value of `KINDS`."""
    named: bool = False
    """Given by its own name, not found in a folder or by a glob."""


def kind_of(path: Path) -> str | None:
    """Return how a file is read, by its suffix; None for a kind that is not read."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes = suffixes[:-1]
    return KINDS.get(suffixes[-1].lower()) if suffixes else None


def _stem(path: Path) -> str:
    return Path(path.stem).stem if path.suffix in COMPRESSIONS else path.stem


def find_files(
    paths: Sequence[str], problems: Problems, exclude: Path | None = None
) -> list[InputFile]:
    """Return the files behind files, folders and globs, each once, in a fixed order.

    Hidden files and everything under `exclude` are passed over; what a folder or a glob gives that
    is no file, or one of an unknown kind, is counted in `problems`.

    Raises:
        UserError: a path does not exist, matches nothing, is no file, or is one of an unknown kind.
    """
    found: dict[Path, InputFile] = {}
    for given in paths:
        for file in _expand(given, problems):
            resolved = file.path.resolve()
            if exclude is None or not resolved.is_relative_to(exclude.resolve()):
                found.setdefault(resolved, file)
    files = list(found.values())
    if len({file.domain for file in files}) > MAX_FILE_DOMAINS:
        files = [
            dataclasses.replace(f, domain=f.path.resolve().parent.name or "text") if f.named else f
            for f in files
        ]
    return files


def _expand(given: str, problems: Problems) -> list[InputFile]:
    path = Path(given)
    if path.is_dir():
        return _files_in(path, problems)
    if why := _why_not_a_file(path):
        raise UserError(f"{given}: {why}")
    if path.exists():
        kind = kind_of(path)
        if kind is None:
            raise UserError(f"{given}: cannot read a file of this kind; give {READABLE}")
        return [InputFile(path, path.name, _stem(path), kind, named=True)]
    matches = sorted(glob.glob(given, recursive=True))
    if not matches:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{given}: no such file or folder{nearest(path.name, siblings)}")
    files: list[InputFile] = []
    for match in map(Path, matches):
        if match.is_dir():
            continue
        if why := _why_not_a_file(match):
            problems.add("no file", str(match), why)
            continue
        kind = kind_of(match)
        folder = match.resolve().parent.name or "text"
        if kind is None:
            problems.add("not text", str(match), f"this kind of file is not read; {READABLE} are")
        else:
            files.append(InputFile(match, f"{folder}/{match.name}", folder, kind))
    return files


def _why_not_a_file(path: Path) -> str | None:
    """Say why a path that is there, and is no folder, cannot be read as a file, or return None.

    A pipe is not waited for: who writes into it may never come.
    """
    if path.is_file() or path.is_dir():
        return None
    if path.exists():
        return "not a regular file (a pipe, a socket or a device); write its text to a file first"
    if path.is_symlink():
        return f"a link to {path.readlink()}, which is not there"
    return None


def _files_in(folder: Path, problems: Problems) -> list[InputFile]:
    name = folder.resolve().name or "text"
    files = []
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if any(part.startswith(".") for part in inner.parts):
            continue
        if why := _why_not_a_file(path):
            problems.add("no file", str(path), why)
            continue
        if path.is_dir():
            if path.is_symlink():
                problems.add("no file", str(path), "a linked folder; give it by its own name")
            continue
        kind = kind_of(path)
        if kind is None:
            problems.add("not text", str(path), f"this kind of file is not read; {READABLE} are")
            continue
        domain = inner.parts[0] if len(inner.parts) > 1 else name
        files.append(InputFile(path, f"{name}/{inner.as_posix()}", domain, kind))
    return files
