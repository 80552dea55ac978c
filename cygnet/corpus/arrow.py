"""Between numpy and Arrow, column by column, without pandas.

pyarrow's own `array` and `to_numpy` import pandas where it is installed: 0.4 s for every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_arrow(values: Sequence[str] | NDArray[Any]) -> Any:
    """Return a `pyarrow.Array` of texts, or of an array's numbers, truth values or bytes (`V16`).

    Lone surrogates become question marks.
    """
    import pyarrow

    count = len(values)
    if not isinstance(values, np.ndarray) or values.dtype.kind in "OU":
        encoded = [value.encode("utf-8", "replace") for value in values]
        offsets = np.zeros(count + 1, np.int64)
        np.cumsum([len(value) for value in encoded], out=offsets[1:])
        buffers = [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(b"".join(encoded))]
        return pyarrow.Array.from_buffers(pyarrow.large_string(), count, buffers)
    assert values.dtype.isnative
    if values.dtype == bool:
        kind, values = pyarrow.bool_(), np.packbits(values, bitorder="little")
    elif values.dtype.kind == "V":
        kind = pyarrow.binary(values.dtype.itemsize)
    else:
        kind = pyarrow.from_numpy_dtype(values.dtype)
    content = pyarrow.py_buffer(np.ascontiguousarray(values).tobytes())
    return pyarrow.Array.from_buffers(kind, count, [None, content])


def to_numpy(column: Any) -> NDArray[Any]:
    """Return a `pyarrow` column without gaps; texts as objects, bytes of one length as `V16`.

    What comes may share its memory with the column, and cannot be written to.
    """
    import pyarrow

    assert not column.null_count

    chunks = column.chunks if isinstance(column, pyarrow.ChunkedArray) else [column]
    kind = column.type
    if pyarrow.types.is_fixed_size_binary(kind):
        dtype = np.dtype(f"V{kind.byte_width}")
    elif pyarrow.types.is_primitive(kind) and not pyarrow.types.is_boolean(kind):
        dtype = np.dtype(kind.to_pandas_dtype())
    else:
        return np.array(column.to_pylist(), bool if pyarrow.types.is_boolean(kind) else object)
    arrays = [
        np.frombuffer(chunk.buffers()[1], dtype, len(chunk), chunk.offset * dtype.itemsize)
        for chunk in chunks
    ]
    whole = np.concatenate([np.empty(0, dtype), *arrays]) if len(arrays) != 1 else arrays[0]
    whole.flags.writeable = False
    return whole
