"""Numpy's files: written whole, and rows of them read where they lie.

A map of a file takes ten times as long to make as a few rows to read, and holds a file open.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ArrayFile:
    """A `.npy` file that is open until nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")  # noqa: SIM115
        major, _ = np.lib.format.read_magic(self._file)
        read_header = np.lib.format.read_array_header_1_0
        if major > 1:
            read_header = np.lib.format.read_array_header_2_0
        shape, by_columns, self._dtype = read_header(self._file)
        assert not by_columns
        self._begin, self._length, self._row = self._file.tell(), shape[0], shape[1:]

    def rows(self, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Return the rows from one to another, or to the end."""
        last = self._length if last is None else min(last, self._length)
        size = self._dtype.itemsize * math.prod(self._row)
        num_bytes, at = (last - first) * size, self._begin + first * size
        content = bytearray()
        while piece := os.pread(self._file.fileno(), num_bytes - len(content), at + len(content)):
            content += piece
        if len(content) < num_bytes:
            raise OSError(f"{self._file.name}: shorter than its header says; delete it")
        return np.frombuffer(content, self._dtype).reshape(last - first, *self._row)


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write a `.npy` file so that a crash leaves the old file or the new one, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
