from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.errors import UserError
from cygnet.text.loader import PackedLoader, permute
from cygnet.text.shards import ShardReader, write_shards

FIELDS = ("tokens", "labels", "document_ids", "positions")
SEQ_LEN = 8
lengths_of_documents = st.lists(st.integers(0, 30), min_size=1, max_size=30)


def make_loader(folder, lengths, rows=3, seed=0, has_labels=False, shard_tokens=2**28):
    """Every token of the corpus has an id of its own, so that ids tell which token was seen."""
    edges = np.cumsum([0, *lengths]).tolist()
    documents = [
        (list(range(start, end)), [i % 3 != 0 for i in range(start, end)])
        for start, end in pairwise(edges)
    ]
    options = {"has_labels": has_labels, "shard_tokens": shard_tokens}
    write_shards(folder / "s", documents, "a", 70_000, {}, **options)
    return PackedLoader(ShardReader(folder / "s"), rows, SEQ_LEN, seed)


def equal(one, other):
    return all(torch.equal(getattr(one, f), getattr(other, f)) for f in FIELDS)


@pytest.fixture
def loader(tmp_path):
    lengths = np.random.default_rng(1).integers(0, 25, size=60).tolist()
    return make_loader(tmp_path, lengths, shard_tokens=200)


@settings(max_examples=25)
@given(lengths_of_documents.filter(lambda n: max(n) > 1), st.integers(1, 5), st.integers(0, 2))
def test_an_epoch_learns_each_token_once(tmp_path_factory, lengths, rows, epoch):
    """Each but the first of a document is a label once; each but the last is given once."""
    folder = tmp_path_factory.mktemp("l")
    loader = make_loader(folder, lengths, rows, seed=5, shard_tokens=40)
    batch = loader.take(epoch * loader.num_rows, loader.num_rows)
    edges = np.cumsum([0, *lengths]).tolist()
    spans = [range(a, b) for a, b in pairwise(edges)]
    real = batch.document_ids >= 0
    assert sorted(batch.tokens[real].tolist()) == [i for span in spans for i in span[:-1]]
    assert sorted(batch.labels[real].tolist()) == [i for span in spans for i in span[1:]]
    assert batch.num_labels == batch.num_tokens == int(real.sum())


@settings(max_examples=25)
@given(lengths_of_documents.filter(lambda n: max(n) > 1), st.integers(0, 9))
def test_no_position_learns_across_a_border(tmp_path_factory, lengths, number):
    loader = make_loader(tmp_path_factory.mktemp("l"), lengths)
    batch = loader.batch(number)
    real = batch.document_ids >= 0
    assert (batch.labels[real] == batch.tokens[real] + 1).all()
    assert (batch.labels[~real] == -100).all() and (batch.tokens[~real] == 0).all()
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    assert (
        document_of[batch.tokens[real].numpy()] == document_of[batch.labels[real].numpy()]
    ).all()
    for row in range(len(batch.tokens)):
        ids, positions = batch.document_ids[row], batch.positions[row]
        held = ids[ids >= 0]
        assert held.tolist() == sorted(held.tolist())
        assert set(held.tolist()) == set(range(int(held.max()) + 1))
        for number in set(held.tolist()):
            inside = ids == number
            assert positions[inside].tolist() == list(range(int(inside.sum())))
            assert len(set(document_of[batch.tokens[row][inside].numpy()].tolist())) == 1
            assert (batch.tokens[row][inside].diff() == 1).all()


def test_only_marked_tokens_are_labels(tmp_path):
    loader = make_loader(tmp_path, [5, 9, 3, 7, 8], has_labels=True)
    batch = loader.take(0, loader.num_rows)
    real = batch.document_ids >= 0
    learnt = (batch.tokens + 1) % 3 != 0
    assert torch.equal(batch.labels != -100, real & learnt)
    assert (batch.labels[real & learnt] == batch.tokens[real & learnt] + 1).all()


def test_each_position_is_of_its_documents_kind(tmp_path):
    edges = np.cumsum([0, *np.random.default_rng(2).integers(1, 12, size=50)]).tolist()
    documents = [
        (list(range(start, end)), [True] * (end - start), f"kind {start % 3}")
        for start, end in pairwise(edges)
    ]
    options = {"has_labels": True, "has_kinds": True, "shard_tokens": 90}
    write_shards(tmp_path / "s", documents, "a", 70_000, {}, **options)
    reader = ShardReader(tmp_path / "s")
    loader = PackedLoader(reader, 3, 12, seed=1)
    begins = np.array(edges[:-1])
    for first in range(0, 2 * loader.num_rows, 5):
        batch, kinds = loader.take(first, 5), loader.kinds(first, 5)
        assert torch.equal(kinds >= 0, batch.document_ids >= 0)
        for token, kind in zip(batch.tokens[kinds >= 0], kinds[kinds >= 0], strict=True):
            begin = begins[np.searchsorted(begins, int(token), side="right") - 1]
            assert reader.kinds[int(kind)] == f"kind {begin % 3}"


def test_a_batch_depends_on_its_number_alone(loader, tmp_path):
    forwards = [loader.batch(n) for n in range(40)]
    resumed = PackedLoader(ShardReader(tmp_path / "s"), loader.rows_per_batch, SEQ_LEN, 0)
    for number in reversed(range(17, 40)):
        assert equal(resumed.batch(number), forwards[number])


def test_two_half_batches_are_one_batch(loader):
    whole = PackedLoader(loader.reader, 2 * loader.rows_per_batch, SEQ_LEN, 0)
    for number in range(20):
        for half in range(2):
            start = half * loader.rows_per_batch
            rows = whole.batch(number).rows(start, start + loader.rows_per_batch)
            assert equal(rows, loader.batch(2 * number + half))


def test_epochs_and_seeds_order_the_rows_anew(loader):
    def order(seed, epoch):
        own = PackedLoader(loader.reader, 3, SEQ_LEN, seed)
        return own.take(epoch * own.num_rows, own.num_rows).tokens[:, 0].tolist()

    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert len({tuple(o) for o in orders}) == 4
    assert len({tuple(sorted(o)) for o in orders}) == 1
    assert order(0, 1) == orders[1]


@given(st.integers(1, 300), st.integers(0, 2**40), st.integers(0, 1000))
def test_permute_is_a_permutation(size, seed, epoch):
    permuted = permute(np.arange(size), size, seed, epoch)
    assert sorted(permuted.tolist()) == list(range(size))


def test_permute_favours_no_place():
    """Each of 5 ranks comes to each of 5 places in about a fifth of 2,000 epochs."""
    counts = Counter(
        (rank, place)
        for epoch in range(2000)
        for rank, place in enumerate(permute(np.arange(5), 5, 0, epoch).tolist())
    )
    assert len(counts) == 25
    assert all(300 < count < 500 for count in counts.values())


def test_describe_names_the_documents_of_a_row(tmp_path):
    lengths = [5, 9, 30, 3, 7, 8]
    loader = make_loader(tmp_path, lengths)
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    batch = loader.batch(0)
    for row in range(loader.rows_per_batch):
        tokens = batch.tokens[row][batch.positions[row] == 0]
        tokens = tokens[batch.document_ids[row][batch.positions[row] == 0] >= 0]
        named = ", ".join(str(document_of[token]) for token in tokens.tolist())
        assert loader.describe(0, row) == f"{tmp_path / 's' / 'shard_00000'}, documents {named}"


def test_rows_and_devices_keep_the_fields(loader):
    batch = loader.batch(0)
    assert equal(batch.rows(0, 3), batch.to("cpu"))
    assert batch.rows(1, 2).tokens.shape == (1, SEQ_LEN)
    assert [getattr(batch, f).dtype for f in FIELDS] == [torch.int64] * 2 + [
        torch.int32,
        torch.int64,
    ]
    assert loader.batches_per_epoch == loader.num_rows / loader.rows_per_batch


def test_a_corpus_without_a_pair_of_tokens_is_refused(tmp_path):
    with pytest.raises(UserError, match="no document of two tokens"):
        make_loader(tmp_path, [1, 0, 1])
