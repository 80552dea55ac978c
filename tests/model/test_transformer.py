"""Sizes, loss, and decoding from the cache = one full forward."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.config import ModelConfig
from cygnet.model import loss as room
from cygnet.model.kv_cache import KVCache, Rows, Segment, Segments
from cygnet.model.loss import linear_cross_entropy, token_log_probs
from cygnet.model.transformer import Transformer
from cygnet.text.loader import IGNORE
from tests.models import random_model


@pytest.mark.parametrize("tied", [True, False])
def test_num_parameters_is_exact(tied: bool) -> None:
    config = ModelConfig(tie_embeddings=tied, num_layers=2)
    model = Transformer(config)
    assert config.num_parameters == sum(p.numel() for p in model.parameters())


def test_26m_has_exactly_25_83_million_parameters() -> None:
    assert ModelConfig().num_parameters == 25_830_912


def no_gradient_wanted(logits: torch.Tensor, labels: torch.Tensor) -> Any:
    raise AssertionError("a gradient was computed for nothing")


@settings(max_examples=20)
@given(
    rows=st.integers(1, 40),
    chunk=st.sampled_from([1, 3, 8, 64]),
    ignored=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_linear_cross_entropy_is_torchs(rows: int, chunk: int, ignored: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 6, generator=generator, requires_grad=True)
    weight = torch.randn(11, 6, generator=generator, requires_grad=True)
    labels = torch.randint(0, 11, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < ignored] = IGNORE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "CHUNK_POSITIONS", chunk)
        ours = linear_cross_entropy(hidden, weight, labels)
        mine = torch.autograd.grad(3 * ours, (hidden, weight))
        with torch.no_grad():
            looked_at = linear_cross_entropy(hidden, weight, labels, kernel=no_gradient_wanted)
    assert torch.equal(looked_at, ours)
    reference = F.cross_entropy(hidden @ weight.T, labels, reduction="sum", ignore_index=IGNORE)
    theirs = torch.autograd.grad(3 * reference, (hidden, weight))
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    summed = token_log_probs((hidden @ weight.T).detach(), labels).sum()
    torch.testing.assert_close(-summed, reference, rtol=1e-4, atol=1e-4)


@settings(max_examples=10)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    chunk=st.integers(1, 50),
    new=st.integers(1, 6),
    together=st.sampled_from([1, 2]),
)
def test_packed_prefill_and_cached_decoding_are_the_full_forward(
    lengths: list[int], chunk: int, new: int, together: int
) -> None:
    model = random_model()
    generator = torch.Generator().manual_seed(1)
    new = together * new
    rows = [torch.randint(0, 320, (n + new,), generator=generator) for n in lengths]
    cache = KVCache(model.config, len(rows) + 1, max(lengths) + new)
    with torch.no_grad():
        last = torch.zeros(len(rows), model.config.hidden_size)
        for start in range(0, max(lengths), chunk):
            parts = [
                Segment(slot, start, min(chunk, n - start))
                for slot, n in enumerate(lengths)
                if n > start
            ]
            view = Segments(cache, parts, torch.device("cpu"))
            packed = torch.cat([rows[s.slot][s.start : s.start + s.num_tokens] for s in parts])
            hidden = model(packed[None], cache=view)
            last[[part.slot for part in parts]] = hidden[0, view.last]
        steps = [last[:, None]]
        for index in range(0, new, together):
            positions = torch.tensor([[n + index + i for i in range(together)] for n in lengths])
            tokens = torch.stack([row[p] for row, p in zip(rows, positions, strict=True)])
            view = Rows(cache, positions, int(positions.max()) + 1)
            steps.append(model(tokens, cache=view))
        decoded = model.logits(torch.cat(steps, 1))
        for row, found in zip(rows, decoded, strict=True):
            full = model.logits(model(row[None]))[0, -new - 1 :]
            torch.testing.assert_close(found, full, rtol=1e-4, atol=1e-4)


def test_slots_can_be_swapped_and_copied() -> None:
    cache = KVCache(random_model().config, 3, 5)
    for tensor in (*cache.keys, *cache.values):
        tensor.copy_(torch.randn(tensor.shape))
    before = [tensor.clone() for tensor in (*cache.keys, *cache.values)]
    cache.swap(0, 2, 4)
    cache.copy(2, 1, 3)
    for old, tensor in zip(before, (*cache.keys, *cache.values), strict=True):
        assert torch.equal(tensor[0, :, :4], old[2, :, :4])
        assert torch.equal(tensor[2, :, :4], old[0, :, :4])
        assert torch.equal(tensor[1, :, :3], old[0, :, :3])
        assert torch.equal(tensor[:, :, 4:], old[:, :, 4:])


def test_the_cache_refuses_what_it_cannot_hold(model: Transformer) -> None:
    with pytest.raises(IndexError, match="holds 3 positions"):
        Segments(KVCache(model.config, 1, 3), [Segment(0, 0, 4)], torch.device("cpu"))


def test_initial_blocks_are_the_identity() -> None:
    model = Transformer(ModelConfig(num_layers=2, hidden_size=64, num_heads=2, num_kv_heads=1))
    model.initialize(torch.Generator().manual_seed(0))
    tokens = torch.arange(9)[None]
    embedded = model.model.embed_tokens(tokens)
    torch.testing.assert_close(model(tokens), model.model.norm(embedded))
