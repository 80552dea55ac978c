"""Files as streams of bytes: decompressed, bounded, and ending where the damage begins."""

from __future__ import annotations

import csv
import io
import lzma
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from cygnet.corpus.read.find import InputFile
from cygnet.corpus.read.kinds import (
    HEAD_BYTES,
    compression_by_name,
    compression_of,
    kind_by_head,
)
from cygnet.errors import UserError
from cygnet.progress import Advance

BLOCK_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How much may come out of compressed files and archives.

    Raises:
        UserError: a bound is not positive.
    """

    max_member_bytes: int = 1 << 34
    """The most bytes of an archive's member, and of what must be laid on disk to be read."""
    max_ratio: int = 250
    """The most bytes unpacked from one; text seldom comes to 20."""
    free_bytes: int = 1 << 26
    """So many bytes are unpacked before the ratio counts."""
    spool_bytes: int = 1 << 23
    """What must be sought in lies in memory up to so many bytes, then in a temporary file."""

    def __post_init__(self) -> None:
        for name in ("max_member_bytes", "max_ratio", "free_bytes", "spool_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give a number of at least 1")


class Fault(NamedTuple):
    """Why a stream ended before its end."""

    kind: str
    """A key of `problems.LOST`."""
    why: str


def fault_types() -> tuple[type[Exception], ...]:
    """Return what the readers of files raise for what is wrong with a file."""
    import pyarrow

    return (
        *(OSError, EOFError, ValueError, OverflowError, NotImplementedError),
        *(struct.error, csv.Error),
        *(zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError),
        pyarrow.ArrowException,
    )


def in_a_line(error: BaseException) -> str:
    """Return an error's message as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class Flow(io.RawIOBase):
    """A stream that ends at the first fault, which it keeps, instead of raising it.

    So whatever reads it, makes use of all that came before.

    Args:
        read: gives at most so many bytes; none at the end.
        advance: is told the number of bytes of each block.
        max_bytes: the most that may come.
        bounds: with `num_packed`, how many bytes may come out of those.
        num_packed: says how many bytes have been unpacked so far.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        *,
        advance: Advance | None = None,
        max_bytes: int | None = None,
        bounds: Bounds | None = None,
        num_packed: Callable[[], int] | None = None,
    ) -> None:
        self._read, self._advance, self._max_bytes = read, advance, max_bytes
        self._bounds, self._num_packed = bounds, num_packed
        self._fault_types = fault_types()
        self.fault: Fault | None = None
        self.num_bytes = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer's first `BLOCK_BYTES`, or less at the end; return how many came."""
        wanted, num = min(len(buffer), BLOCK_BYTES), 0
        while num < wanted and self.fault is None:
            try:
                block = self._read(wanted - num)
            except self._fault_types as error:
                self.fault = Fault("damaged file", in_a_line(error))
                break
            if not block:
                break
            buffer[num : num + len(block)] = block
            num += len(block)
            self.num_bytes += len(block)
            self._check()
        if num and self._advance is not None:
            self._advance(num)
        return num

    def _check(self) -> None:
        if self._max_bytes is not None and self.num_bytes > self._max_bytes:
            self.fault = too_large(f"over max_member_bytes ({self._max_bytes:,})")
        if self._bounds is None or self._num_packed is None:
            return
        if self.num_bytes > max(
            self._bounds.free_bytes, self._bounds.max_ratio * self._num_packed()
        ):
            ratio = self.num_bytes // max(self._num_packed(), 1)
            self.fault = too_large(
                f"{ratio:,} bytes unpacked from one, over max_ratio ({self._bounds.max_ratio})"
            )


def too_large(why: str) -> Fault:
    """Return the fault of something that goes over a bound."""
    return Fault("unpacks too large", why)


def _decompressed(how: str, packed: IO[bytes]) -> Callable[[int], bytes]:
    """Return what reads at most so many decompressed bytes; joined streams are read to the end."""
    # Each gives what it has before it raises, which read() of the same would not.
    if how == "gzip":
        import gzip

        return gzip.GzipFile(fileobj=packed).read1
    if how == "bz2":
        import bz2

        return bz2.BZ2File(packed).read1
    if how == "xz":
        return lzma.LZMAFile(packed).read1
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(packed, mode="r"), how)
    return lambda size: bytes(stream.read(min(size, BLOCK_BYTES // 4)))


class Stream(io.BufferedReader):
    """The bytes of a file, which say whether they were cut off (see `decode.is_cut`)."""

    def __init__(self, flow: Flow, opened: Opened) -> None:
        super().__init__(flow, BLOCK_BYTES)
        self._opened = opened

    @property
    def is_cut(self) -> bool:
        """Whether a fault has ended them."""
        return self._opened.fault is not None


class Opened:
    """A file's stream of decompressed bytes, and what its first bytes say of it.

    Args:
        raw: its bytes as they lie on disk, in an archive or behind a URL.
        file: what is known of it.
        bounds: on what is unpacked.
        advance: is told the number of raw bytes read.
        max_bytes: the most raw bytes.
        num_packed: of a member of an archive, how many bytes of that it takes.
        in_place: `raw` can be sought in at no great cost.
    """

    def __init__(
        self,
        raw: IO[bytes],
        file: InputFile,
        bounds: Bounds,
        *,
        advance: Advance | None = None,
        max_bytes: int | None = None,
        num_packed: Callable[[], int] | None = None,
        in_place: bool = False,
    ) -> None:
        read = getattr(raw, "read1", raw.read)
        flow = Flow(
            read, advance=advance, max_bytes=max_bytes, bounds=bounds, num_packed=num_packed
        )
        self._flows, self._bounds = [flow], bounds
        self._raw = raw if in_place else None
        self.stream: IO[bytes] = Stream(flow, self)
        self.other_kind = ""
        """What the file is, where its name says otherwise."""
        self.what = ""
        """What a file that is not read is."""
        self.is_empty = False
        self.kind: str | None = file.kind
        """How to read it; None for a file that is not read."""
        if not file.is_slice:  # `slices` has looked
            self._look(file, max_bytes)

    def _look(self, file: InputFile, max_bytes: int | None) -> None:
        how = compression_of(self._peek())
        if how == "gzip" and file.kind == "warc" and self._is_packed_warc():
            return
        if how is not None:
            self._decompress(how, max_bytes)
        head = self._peek()
        self.is_empty = not head
        if compression_of(head):
            self.kind, self.what = None, "compressed twice"
            return
        self.kind, self.what = kind_by_head(head, file.kind)
        if self.kind is not None and self.what:
            self.other_kind = self.what
        elif how != compression_by_name(file.path) and head:
            self.other_kind = f"{how}-compressed" if how else "not compressed"

    def _peek(self) -> bytes:
        assert isinstance(self.stream, io.BufferedReader)
        return self.stream.peek(HEAD_BYTES)[:HEAD_BYTES]

    def _is_packed_warc(self) -> bool:
        """Say whether this is a web archive, which is packed record by record.

        Its reader unpacks each itself, so its offsets are those that others look records up by.
        """
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS + 16).decompress(self._peek(), HEAD_BYTES)
        except zlib.error:
            return False
        return kind_by_head(head, "warc") == ("warc", "") and head.startswith(b"WARC/1.")

    def _decompress(self, how: str, max_bytes: int | None) -> None:
        packed = self._flows[0]
        flow = Flow(
            _decompressed(how, self.stream),
            max_bytes=max_bytes,
            bounds=self._bounds,
            num_packed=lambda: packed.num_bytes,
        )
        self._flows.append(flow)
        self._raw = None
        self.stream = Stream(flow, self)

    @property
    def fault(self) -> Fault | None:
        """Why the stream ended before its end; None so long as nothing is wrong."""
        return next((flow.fault for flow in self._flows if flow.fault is not None), None)

    @property
    def num_read(self) -> int:
        """How many raw bytes `advance` was told of."""
        return self._flows[0].num_bytes

    def seekable(self) -> IO[bytes]:
        """Return the bytes as a stream to seek in: the file itself, or a temporary one.

        Nothing may have been read of `stream`.
        """
        if self._raw is not None:
            self._raw.seek(0)
            return self._raw
        spool: Any = tempfile.SpooledTemporaryFile(self._bounds.spool_bytes)  # noqa: SIM115
        num_bytes = 0
        while block := self.stream.read(BLOCK_BYTES):
            num_bytes += len(block)
            if num_bytes > self._bounds.max_member_bytes:
                bound = f"over max_member_bytes ({self._bounds.max_member_bytes:,})"
                self._flows[-1].fault = too_large(bound)
                break
            spool.write(block)
        spool.seek(0)
        return spool


class Slice(io.RawIOBase):
    """The bytes of a file from one place to another, as if they were a file."""

    def __init__(self, raw: IO[bytes], start: int, stop: int | None) -> None:
        self._raw, self._stop, self._at = raw, stop, start
        raw.seek(start)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read as `io.RawIOBase` does."""
        size = len(buffer) if self._stop is None else min(len(buffer), self._stop - self._at)
        block = self._raw.read(size)
        buffer[: len(block)] = block
        self._at += len(block)
        return len(block)

    def close(self) -> None:
        """Close the file too."""
        self._raw.close()
        super().close()


def open_raw(file: InputFile) -> IO[bytes]:
    """Open a file's bytes as they lie on disk or behind a URL.

    Raises:
        OSError: it cannot be opened.
        UserError: it needs a package that is not installed.
    """
    if file.url:
        from cygnet.corpus.read.remote import open_url

        return open_url(file.url)
    raw = open(file.path, "rb")  # noqa: SIM115 (closed by who asked for it)
    if file.is_slice and file.kind != "parquet":
        return io.BufferedReader(Slice(raw, file.start, file.stop), BLOCK_BYTES)
    return raw
