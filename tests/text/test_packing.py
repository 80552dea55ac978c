import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.errors import UserError
from cygnet.text.packing import cached_plan, packing_plan
from cygnet.text.shards import ShardReader, write_shards

lengths_of_documents = st.lists(st.integers(0, 40), max_size=60)


def offsets_of(lengths):
    return np.cumsum([0, *lengths]).astype(np.uint64)


@given(lengths_of_documents, st.integers(1, 16), st.integers(1, 70))
def test_every_token_but_the_last_of_a_document_fills_one_position(lengths, row_length, window):
    offsets = offsets_of(lengths)
    plan = packing_plan(offsets, row_length, window_documents=window)
    given_tokens = np.concatenate(
        [np.arange(0), *(s + np.arange(n) for s, n in zip(plan.starts, plan.lengths, strict=True))]
    )
    expected = [
        i
        for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        for i in range(start, end - 1)
    ]
    assert sorted(given_tokens.tolist()) == expected


@given(lengths_of_documents, st.integers(1, 16), st.integers(1, 70))
def test_no_row_overflows_or_is_empty_and_no_piece_crosses_a_border(lengths, row_length, window):
    offsets = offsets_of(lengths)
    plan = packing_plan(offsets, row_length, window_documents=window)
    assert plan.row_offsets[0] == 0 and plan.row_offsets[-1] == len(plan.starts)
    for first, last in zip(plan.row_offsets[:-1], plan.row_offsets[1:], strict=True):
        assert 0 < plan.lengths[first:last].sum() <= row_length
        assert (np.diff(plan.starts[first:last]) > 0).all()
    document = np.searchsorted(offsets, plan.starts, side="right")
    assert (document == np.searchsorted(offsets, plan.starts + plan.lengths, side="right")).all()


@given(lengths_of_documents.filter(bool), st.integers(1, 16))
def test_the_rows_are_within_the_bound_of_best_fit_decreasing(lengths, row_length):
    """Johnson 1973: at most 11/9 of the least possible, and 4 more."""
    plan = packing_plan(offsets_of(lengths), row_length)
    least = -(-int(plan.lengths.sum()) // row_length)
    assert plan.num_rows <= 11 / 9 * max(least, (2 * plan.lengths > row_length).sum()) + 4


def test_documents_of_mixed_length_leave_hardly_a_gap():
    lengths = np.random.default_rng(0).integers(20, 400, size=5000)
    assert packing_plan(offsets_of(lengths), 512).waste(512) < 0.02


def test_what_must_not_be_cut_and_does_not_fit_is_refused():
    with pytest.raises(
        UserError, match=r"18 tokens does not fit rows of 16; .* --max_seq_len to 17"
    ):
        packing_plan(offsets_of([3, 18]), 16, may_cut=False)
    assert packing_plan(offsets_of([3, 17]), 16, may_cut=False).num_rows == 2


@pytest.mark.parametrize("harm", [None, "flip", "truncate", "empty"])
def test_the_plan_beside_a_shard_is_made_once_and_again_when_damaged(tmp_path, harm):
    documents = [(list(range(n)), None) for n in (5, 9, 30, 2)]
    write_shards(tmp_path / "s", documents, "a", 600, {})
    shard = ShardReader(tmp_path / "s").shards[0]
    fresh = packing_plan(shard.offsets, 8)
    cached_plan(shard, 8)
    (file,) = (tmp_path / "s").glob("*.npy")
    content = bytearray(file.read_bytes())
    if harm == "flip":
        content[-3] ^= 1
    elif harm == "truncate":
        content = content[:-9]
    elif harm == "empty":
        content.clear()
    file.write_bytes(content)
    again = cached_plan(shard, 8)
    for name in ("row_offsets", "starts", "lengths"):
        assert (getattr(again, name) == getattr(fresh, name)).all()
    assert cached_plan(shard, 16).num_rows < fresh.num_rows
