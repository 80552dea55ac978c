"""Members of zip and tar archives, one by one, nothing laid on disk."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from cygnet.corpus.read.open import Bounds, Fault, Flow, fault_types, in_a_line, too_large

_DEFLATED, _STORED = 8, 0
_LOCAL = struct.Struct("<4s5H3I2H")
"""A member's header in a zip (APPNOTE.TXT 6.3.10, 4.3.7)."""
_LOCAL_MARK = b"PK\x03\x04"
_ENCRYPTED, _SIZES_BEHIND, _UTF8 = 1 << 0, 1 << 3, 1 << 11
_NO_SIZE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive."""

    name: str
    stream: IO[bytes] | None
    """None where it is not to be read."""
    fault: Fault | None = None
    """Why it is not to be read."""
    num_packed: Callable[[], int] | None = None
    """Says how many bytes of the archive have been unpacked for it so far."""


def is_hidden(name: str) -> bool:
    """Say whether a member is hidden, or left there by a system (`__MACOSX/`)."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def zip_members(stream: IO[bytes], bounds: Bounds) -> Iterator[Member]:
    """Yield the members of a zip archive, in the order of its directory.

    An archive cut off before its directory is read from its start as far as it goes; then the
    last member has a fault and no name.

    Args:
        stream: can be sought in.
        bounds: on a member's bytes and its ratio, as the directory states them.
    """
    try:
        archive = zipfile.ZipFile(stream)
    except fault_types() as error:
        stream.seek(0)
        yield from _members_without_directory(stream)
        yield Member("", None, Fault("damaged file", in_a_line(error)))
        return
    size = stream.seek(0, io.SEEK_END)
    num_packed = 0
    for info in archive.infolist():
        if info.is_dir():
            continue
        num_packed += info.compress_size
        fault = _stated_fault(info, bounds)
        if num_packed > size:
            fault = too_large("its members overlap each other")
        if fault is not None:
            yield Member(info.filename, None, fault)
            continue
        packed = info.compress_size
        try:
            with archive.open(info) as member:
                yield Member(info.filename, member, None, lambda packed=packed: packed)  # type: ignore[misc]
        except fault_types() as error:
            yield Member(info.filename, None, Fault("damaged file", in_a_line(error)))


def _stated_fault(info: zipfile.ZipInfo, bounds: Bounds) -> Fault | None:
    if info.flag_bits & _ENCRYPTED:
        return Fault("damaged file", "encrypted with a password; unpack it first")
    if info.file_size > bounds.max_member_bytes:
        return too_large(f"{info.file_size:,} bytes, over max_member_bytes")
    ratio = info.file_size // max(info.compress_size, 1)
    if info.file_size > bounds.free_bytes and ratio > bounds.max_ratio:
        return too_large(f"{ratio:,} bytes unpacked from one, over max_ratio ({bounds.max_ratio})")
    return None


def _members_without_directory(stream: IO[bytes]) -> Iterator[Member]:
    """Yield members by their own headers, up to the first that cannot be followed."""
    while True:
        header = stream.read(_LOCAL.size)
        if len(header) < _LOCAL.size:
            return
        mark, _, flags, method, _, _, _, packed, _, name_length, extra_length = _LOCAL.unpack(
            header
        )
        has_size = not flags & _SIZES_BEHIND and packed != _NO_SIZE
        if mark != _LOCAL_MARK or flags & _ENCRYPTED or method not in (_DEFLATED, _STORED):
            return
        if method == _STORED and not has_size:
            return
        name = stream.read(name_length).decode("utf-8" if flags & _UTF8 else "cp437", "replace")
        stream.read(extra_length)
        data = _Data(stream, packed if method == _STORED else None)
        if not name.endswith("/"):
            yield Member(name, io.BufferedReader(data), None, lambda data=data: data.num_packed)  # type: ignore[misc]
        if not data.skip():
            return
        if flags & _SIZES_BEHIND:
            # The mark is optional, and the sizes have 4 or 8 bytes; the next member tells which.
            behind = stream.read(28)
            at = behind.find(_LOCAL_MARK)
            if at < 0:
                return
            stream.seek(at - len(behind), io.SEEK_CUR)


class _Data(io.RawIOBase):
    """A member's bytes where only its start is known; deflated data say where they end."""

    def __init__(self, stream: IO[bytes], stored: int | None) -> None:
        self._stream, self._left = stream, stored
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self.num_packed = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read as `io.RawIOBase` does.

        Raises:
            EOFError, zlib.error: the archive ends inside the member, or is damaged there.
        """
        block = self._stored(len(buffer)) if self._left is not None else self._inflated(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def _stored(self, size: int) -> bytes:
        assert self._left is not None
        block = self._stream.read(min(size, self._left))
        if self._left and not block:
            raise EOFError("the archive ends inside this member")
        self._left -= len(block)
        self.num_packed += len(block)
        return block

    def _inflated(self, size: int) -> bytes:
        while not self._inflate.eof:
            data = self._inflate.unconsumed_tail or self._stream.read(1 << 14)
            if not data:
                raise EOFError("the archive ends inside this member")
            block = self._inflate.decompress(data, size)
            self.num_packed += len(data) - len(self._inflate.unconsumed_tail)
            if self._inflate.eof:
                self._stream.seek(-len(self._inflate.unused_data), io.SEEK_CUR)
            if block:
                return block
        return b""

    def skip(self) -> bool:
        """Read to the member's end; say whether it is there."""
        flow = Flow(lambda size: self.read(size) or b"")
        buffer = bytearray(1 << 16)
        while flow.readinto(buffer):
            pass
        return flow.fault is None


def tar_members(stream: IO[bytes]) -> Iterator[Member]:
    """Yield the members of a tar archive, in order; one pass, so each must be read at once.

    An archive cut off is read as far as it goes; then the last member has a fault and no name.
    """
    try:
        ending: Any = _Ending(stream)
        with tarfile.open(fileobj=ending, mode="r|", errorlevel=1) as archive:
            for info in archive:
                archive.members = []  # type: ignore[attr-defined]  # or the list grows for ever
                if info.issparse():
                    yield Member(info.name, None, too_large("a sparse file, full of holes"))
                elif info.isfile():
                    data = archive.extractfile(info)
                    yield Member(info.name, data and io.BufferedReader(_Sips(data), 1 << 13))
    except fault_types() as error:
        yield Member("", None, Fault("damaged file", in_a_line(error)))


class _Ending:
    """A stream that is at its end but once.

    A tar with a wrong size asks for what is not there, block by block, up to that size.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._is_at_end = stream, False

    def read(self, size: int = -1) -> bytes:
        """Read as the stream does.

        Raises:
            EOFError: it was at its end before.
        """
        block = self._stream.read(size)
        if size and not block:
            if self._is_at_end:
                raise EOFError("the archive ends inside a member")
            self._is_at_end = True
        return block


class _Sips(io.RawIOBase):
    """Reads little at a time: tarfile loses what it has when the archive ends inside a read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read as `io.RawIOBase` does."""
        block = self._stream.read(min(len(buffer), 1 << 13))
        buffer[: len(block)] = block
        return len(block)
