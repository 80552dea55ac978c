"""A JSON-lines file encoded in pieces, by all cores, so that a kill costs a few seconds of work.

The file is cut at line ends. Each piece is encoded by itself and lies, written atomically, in a
work folder beside the result; the next start takes up those that are there. What a piece holds
depends on its lines alone, so it is all one which process encodes it, when, and how many do.

The work folder of `out` is `.NAME.work` beside it: `job.json` says what the pieces are of,
`tokenizer/` what encodes them, and a piece is there once its `.index` is.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from cygnet.cores import usable_cores
from cygnet.errors import UserError
from cygnet.files import locked_folder, open_bytes, read_json, write_atomic, write_json
from cygnet.progress import progress, say
from cygnet.text.tokenizer import Tokenizer

MIN_PIECE_BYTES, MAX_PIECE_BYTES = 2**21, 2**25
PIECES_WANTED = 64
"""A file becomes about so many pieces or more, where they are not under or over these sizes."""
SMALL_PIECES = 2
"""Up to so many are encoded in this process: starting others costs half a second of a core each."""
INDEX = "index"
"""Suffix of the file that is written last: with it, a piece is there whole."""
_JOB, _TOKENIZER = "job.json", "tokenizer"
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from cygnet.text.piece_worker import main; main(sys.argv[2])"
)
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Piece:
    """Some lines of a file."""

    number: int
    first_line: int
    """Counted from 1, over the whole file."""
    content: bytes


def json_lines(piece: Piece, name: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a piece of the file `name`.

    Raises:
        UserError: a line is no JSON object.
    """
    decode = json.JSONDecoder().decode
    lines = piece.content.decode("utf-8", "replace").split("\n")  # at once: a fifth faster
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, piece.first_line):
        try:
            value = decode(line)
        except ValueError as error:
            raise UserError(f"{name}:{number}: no JSON ({error}); make the file again") from error
        if not isinstance(value, dict):
            raise UserError(f"{name}:{number}: no JSON object; make the file again")
        yield value


class PieceEncoder(Protocol):
    """What makes of the lines of a piece the files that are kept of it."""

    def encode(self, piece: Piece) -> dict[str, bytes]:
        """Return the contents by suffix, that of `INDEX` last.

        Raises:
            UserError: a line cannot be used; the message names it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Work:
    """The work folder of one result, locked by this process."""

    folder: Path

    def path(self, number: int, suffix: str) -> Path:
        """Return where a piece's file of this suffix is."""
        return self.folder / f"piece_{number:06d}.{suffix}"

    def is_done(self, number: int) -> bool:
        """Say whether a piece is there whole."""
        return self.path(number, INDEX).exists()

    def write(self, number: int, files: Mapping[str, bytes]) -> None:
        """Keep what came of a piece."""
        for suffix, content in files.items():
            write_atomic(self.path(number, suffix), content)

    def load_tokenizer(self) -> Tokenizer:
        """Return the tokenizer that the pieces are encoded by."""
        return Tokenizer.load(self.folder / _TOKENIZER)

    def job(self) -> dict[str, Any]:
        """Return what `working` was given."""
        return read_json(self.folder / _JOB)


@contextmanager
def working(out: Path, tokenizer: Tokenizer, job: Mapping[str, Any]) -> Iterator[Work]:
    """Give the work folder of `out`, with the pieces that an earlier start finished.

    Waits while another process works in it. The folder goes when all went well, or nothing can be
    made of the input; after any other failure, and after a kill, it stays for the next start.

    Args:
        out: the result.
        tokenizer: encodes the pieces.
        job: JSON; what the pieces depend on. Those of another job are thrown away.
    """
    folder = _folder(out)
    with locked_folder(folder, lambda: say(f"{folder}: another process works there; waiting")):
        try:
            job = json.loads(json.dumps(job))
            if read_json(folder / _JOB) != job:
                _empty(folder)
                tokenizer.save(folder / _TOKENIZER)
                write_json(folder / _JOB, job)
            yield Work(folder)
            _empty(folder)
            folder.rmdir()
        except UserError:
            _empty(folder)
            folder.rmdir()
            raise


def sweep_up(out: Path) -> None:
    """Remove what a process that was killed at its very end left of the work folder of `out`."""
    shutil.rmtree(_folder(out), ignore_errors=True)


def _folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.work")


def _empty(folder: Path) -> None:
    """Remove what is in a work folder; the job first, so that half of it is taken for nothing."""
    (folder / _JOB).unlink(missing_ok=True)
    for left in list(folder.iterdir()):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def encode_pieces(
    source: Path, work: Work, encoder: PieceEncoder, num_workers: int | None = None
) -> int:
    """Encode each piece of a JSON-lines file that is not yet there, and return how many there are.

    Args:
        source: JSON lines, compressed or not; read as a stream.
        work: from `working`, whose job names the encoder for `piece_worker`.
        encoder: the same, for this process: a small file is not worth starting others.
        num_workers: processes; none takes one for each core that this process may use.

    Raises:
        UserError: the encoder refuses a line.
        RuntimeError: a worker died.
    """
    num_workers = num_workers or usable_cores()
    counted = num_kept = 0

    def missing() -> Iterator[Piece]:
        nonlocal counted, num_kept
        for piece in _cut(source, piece_bytes(source)):
            counted += 1
            if work.is_done(piece.number):
                num_kept += 1
            else:
                yield piece

    todo = missing()
    first = list(islice(todo, SMALL_PIECES + 1))
    with progress("tokens", None) as advance:
        if len(first) <= SMALL_PIECES or num_workers == 1:
            for piece in chain(first, todo):
                work.write(piece.number, encoder.encode(piece))
                advance(piece.content.count(b"\n"))
        else:
            with _Workers(work, num_workers) as workers:
                for num_lines in _map_bounded(workers.encode, chain(first, todo), num_workers):
                    advance(num_lines)
    if num_kept:
        say(f"{source.name}: {num_kept} of {counted} pieces were encoded before, and are kept")
    return counted


def piece_bytes(source: Path) -> int:
    """Return the bytes of a piece, before its last line is whole; of the file's size alone."""
    wanted = source.stat().st_size // PIECES_WANTED
    return min(max(wanted, MIN_PIECE_BYTES), MAX_PIECE_BYTES)


def _cut(source: Path, num_bytes: int) -> Iterator[Piece]:
    number, line = 0, 1
    with open_bytes(source) as file:
        while content := file.read(num_bytes):
            content += file.readline()
            yield Piece(number, line, content)
            number, line = number + 1, line + content.count(b"\n")


def _map_bounded(function: Callable[[T], R], items: Iterable[T], num_threads: int) -> Iterator[R]:
    """Yield the results in order, with two items a thread in memory."""
    pool = ThreadPoolExecutor(num_threads)
    try:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Workers:
    """Processes that encode pieces, started as they are needed; they end when this process does.

    Not `multiprocessing`: its children start the main script once more, and those of a killed
    parent wait for ever, where these end with their standard input.
    """

    def __init__(self, work: Work, num_workers: int) -> None:
        self._work = work
        self._all: list[subprocess.Popen[bytes]] = []
        self._is_closed = False
        self._idle: queue.LifoQueue[subprocess.Popen[bytes] | None] = queue.LifoQueue()
        for _ in range(num_workers):
            self._idle.put(None)

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        for process in self._all:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):  # what a dead one did not read cannot be sent any more
                    if stream:
                        stream.close()

    def encode(self, piece: Piece) -> int:
        """Let a worker encode a piece and write what came of it; return its number of lines."""
        process = self._idle.get()
        try:
            process = process or self._started()
            request, reply = process.stdin, process.stdout
            assert request is not None and reply is not None
            write_piece(request, piece)
            answer = json.loads(reply.readline())
        except (OSError, ValueError) as error:
            code, process = process and process.poll(), None
            raise RuntimeError(
                f"tokens: the process that encodes piece {piece.number} died (code {code}); "
                "start again: finished pieces are kept"
            ) from error
        finally:
            self._idle.put(process)
        if "refused" in answer:
            raise UserError(answer["refused"])
        return answer["num_lines"]

    def _started(self) -> subprocess.Popen[bytes]:
        if self._is_closed:
            raise OSError("closed")
        arguments = [json.dumps(sys.path), str(self._work.folder.resolve())]
        process = subprocess.Popen(
            [sys.executable, "-c", _START, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "0"},
        )
        self._all.append(process)
        return process


def write_piece(stream: IO[bytes], piece: Piece) -> None:
    """Send a piece: a line of three numbers, then its content."""
    stream.write(b"%d %d %d\n" % (piece.number, piece.first_line, len(piece.content)))
    stream.write(piece.content)
    stream.flush()


def read_piece(stream: IO[bytes]) -> Piece | None:
    """Read what `write_piece` sent; None at the end."""
    head = stream.readline().split()
    if len(head) != 3:
        return None
    number, first_line, num_bytes = map(int, head)
    content = stream.read(num_bytes)
    return Piece(number, first_line, content) if len(content) == num_bytes else None
