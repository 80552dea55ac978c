import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.corpus.arrow import to_arrow, to_numpy

COLUMNS: dict[str, tuple[st.SearchStrategy[Any], Any]] = {
    "text": (st.text(), object),
    "whole": (st.integers(-(2**63), 2**63 - 1), np.int64),
    "small": (st.integers(0, 2**16 - 1), np.uint16),
    "real": (st.floats(width=32, allow_nan=False), np.float32),
    "truth": (st.booleans(), bool),
    "bytes": (st.binary(min_size=16, max_size=16), "V16"),
}


@pytest.mark.parametrize("name", COLUMNS)
@given(st.data())
def test_what_goes_in_comes_out_of_columns_in_chunks(name: str, data: st.DataObject) -> None:
    values, dtype = COLUMNS[name]
    chunks = [
        np.array(chunk, dtype)
        for chunk in data.draw(st.lists(st.lists(values, max_size=20), min_size=1, max_size=4))
    ]
    table = pyarrow.concat_tables(pyarrow.table({"column": to_arrow(chunk)}) for chunk in chunks)
    first = data.draw(st.integers(0, len(table)))
    found = to_numpy(table.slice(first).column("column"))
    expected = np.concatenate(chunks)[first:]
    if name == "text":
        expected = np.array([mendable(text) for text in expected], object)
    assert found.dtype == np.dtype(dtype)
    assert found.tolist() == expected.tolist()


def mendable(text: str) -> Any:
    return text.encode("utf-8", "replace").decode()


def test_columns_are_made_and_read_without_pandas() -> None:
    pytest.importorskip("pandas")
    script = (
        "import sys, numpy, pyarrow\n"
        "from cygnet.corpus.arrow import to_arrow, to_numpy\n"
        "table = pyarrow.table({'a': to_arrow(['x']), 'b': to_arrow(numpy.array([1.5]))})\n"
        "assert [to_numpy(table.column(name)).tolist() for name in 'ab'] == [['x'], [1.5]]\n"
        "assert 'pandas' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
