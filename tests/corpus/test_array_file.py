from pathlib import Path

import numpy as np
import pytest

from cygnet.corpus.array_file import ArrayFile


@pytest.mark.parametrize("shape", [(7,), (7, 3), (0,), (0, 3), (5, 0)])
@pytest.mark.parametrize("dtype", [np.uint32, np.float64, [("a", np.int64), ("b", np.uint8)]])
def test_rows_are_as_numpy_reads_them(tmp_path: Path, shape: tuple[int, ...], dtype: type) -> None:
    content = np.frombuffer(np.random.default_rng(0).bytes(9 * 7 * 3), np.uint8)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    array = np.resize(content, size).view(dtype).reshape(shape) if size else np.empty(shape, dtype)
    np.save(tmp_path / "array.npy", array)
    file = ArrayFile(tmp_path / "array.npy")
    for first, last in ((0, None), (0, 2), (2, 5), (4, 100)):
        last = last if len(array) else 0
        first = first if len(array) else 0
        found = file.rows(first, last)
        assert found.dtype == array.dtype and found.shape == array[first:last].shape
        assert found.tobytes() == array[first:last].tobytes()
