"""Files that are either there whole or not at all, and that can be told apart by a hash."""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from cygnet.errors import UserError

T = TypeVar("T")
HASH_BYTES = 1 << 20
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Suffixes of compressed files, and pyarrow's names of how."""
TIMED = ("cost.json", "report.html")
"""Files that say how long something took, so that no two runs write the same."""
_seals: list[tuple[Path, frozenset[str]]] = []


def cache_folder() -> Path:
    """Return where what can be made again is kept for this user; it need not exist.

    Raises:
        OSError: the user has no home.
    """
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "cygnet"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise OSError(str(error)) from error
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "cygnet"


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Half characters, which names of files may hold, are written as escapes and read back so.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    try:
        content = text.encode()
    except UnicodeEncodeError:
        content = json.dumps(value, indent=2).encode() + b"\n"
    write_atomic(path, content)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is none that can be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@contextlib.contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """Give a temporary folder; on success fsync its files and rename it to `path`.

    An existing `path` is replaced. On an exception the temporary folder is removed and `path`
    stays as it was.

    Raises:
        UserError: `path` exists, is sealed, and would not be the same as before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _mend_after_a_crash(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists() and is_sealed(path):
            if not _is_same(temporary, path):
                raise UserError(why_sealed(path))
            return
        for file in [*temporary.rglob("*"), temporary]:
            fsync(file)
        if path.exists():
            outgoing = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.rename(path, outgoing)
            os.rename(temporary, path)
            shutil.rmtree(outgoing)
        else:
            os.rename(temporary, path)
        fsync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked_folder(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Make a folder and keep it from other processes that do the same; `waiting` is told of them.

    The lock ends with the process, however that ends. Whoever holds it may take the folder away.
    """
    lock = _lock(folder, waiting)
    try:
        yield
    finally:
        os.close(lock)


def _lock(folder: Path, waiting: Callable[[], None]) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists() and os.path.samestat(os.fstat(lock), os.stat(folder)):
            return lock
        os.close(lock)  # its holder finished, and took the folder away


@contextlib.contextmanager
def sealed(run: Path, but: Collection[str]) -> Iterator[None]:
    """Let no `folder_atomic` change what a run learnt from meanwhile.

    Args:
        run: its folder.
        but: what in it may be replaced.
    """
    _seals.append((run.resolve(), frozenset(but)))
    try:
        yield
    finally:
        _seals.pop()


def is_sealed(path: Path) -> bool:
    """Say whether a run learnt from what is there, and nothing may change it."""
    parts = path.resolve().parts
    return any(
        run.parts == parts[: len(run.parts)] and parts[len(run.parts)] not in but
        for run, but in _seals
    )


def why_sealed(path: Path) -> str:
    """Say what may be done where `is_sealed`."""
    return (
        f"{path}: would be made anew, and the run in {path.parent} learnt from it as it is; give "
        "another --out, or --resume never to keep that run aside and start anew"
    )


def _is_same(new: Path, old: Path) -> bool:
    files = [file.relative_to(new) for file in new.rglob("*") if file.is_file()]
    files = [file for file in files if file.name not in TIMED]
    return all(
        (old / file).is_file() and filecmp.cmp(new / file, old / file, shallow=False)
        for file in files
    )


def _mend_after_a_crash(path: Path) -> None:
    """Sweep up what killed processes left of `path`, and put back what one had moved away."""
    for left in path.parent.glob(f".{path.name}.*.*"):
        process, _, kind = left.name.removeprefix(f".{path.name}.").partition(".")
        if kind not in ("tmp", "old") or not left.is_dir() or _is_alive(process):
            continue
        if kind == "old" and not path.exists():
            os.rename(left, path)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def fsync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path, is_stopped: Callable[[], bool] = lambda: False) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes; of some alone where it is stopped."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while not is_stopped() and (block := file.read(HASH_BYTES)):
            digest.update(block)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """Return the hexadecimal SHA-256 of a text, which may hold lone surrogates."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest_of(value: Any) -> str:
    """Return the hexadecimal SHA-256 of a value's JSON, whatever the order of its keys."""
    return sha256_text(json.dumps(value, sort_keys=True, ensure_ascii=False))


def fair_draw(values: Sequence[T], count: int) -> list[T]:
    """Return some values, in the order of a hash: a fair draw of what may be sorted."""
    return sorted(values, key=digest_of)[:count]


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressing .gz and .zst as it streams."""
    compression = COMPRESSIONS.get(path.suffix)
    if compression is None:
        return open(path, "rb")
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression=compression))


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Read JSON lines that Cygnet wrote itself (foreign files go through `cygnet.corpus`)."""
    with open_bytes(path) as file:
        for line in file:
            yield json.loads(line)


class JsonlWriter:
    """Write JSON lines, compressed when the name ends in .gz or .zst. Use inside `folder_atomic`.

    The bytes written depend on the objects alone, so the same objects give the same file.
    """

    def __init__(self, path: Path) -> None:
        compression = COMPRESSIONS.get(path.suffix)
        if compression is None:
            self._file: Any = open(path, "wb")  # noqa: SIM115 (closed by __exit__)
        else:
            import pyarrow

            self._file = pyarrow.output_stream(str(path), compression=compression)

    def write(self, value: dict[str, Any]) -> None:
        """Append one object as one line."""
        self._file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
