"""Blocked attention is attention; packed with document masks = each document alone."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.model import attention as room
from cygnet.model.attention import blocked_attention, document_mask, fused_attention
from cygnet.model.loss import linear_cross_entropy
from cygnet.model.transformer import Transformer
from tests.models import random_model

Attention = Callable[..., torch.Tensor]


def plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: torch.Tensor | None
) -> torch.Tensor:
    """Vaswani et al. 2017, equation 1, with every head's keys spelt out."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if documents is None:
        documents = torch.zeros(q.shape[0], q.shape[2], dtype=torch.int32)
    return scores.masked_fill(~document_mask(documents), -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("ours", [blocked_attention, fused_attention])
@settings(max_examples=40)
@given(
    rows=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    tokens=st.integers(1, 300),
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=5) | st.none(),
    seed=st.integers(0, 99),
)
def test_attention_is_plain_attention_on_every_device(
    ours: Attention,
    rows: int,
    kv_heads: int,
    group: int,
    tokens: int,
    lengths: list[int] | None,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, kv_heads * group, tokens, 8, generator=generator, requires_grad=True)
    k = torch.randn(rows, kv_heads, tokens, 8, generator=generator, requires_grad=True)
    v = torch.randn(rows, kv_heads, tokens, 8, generator=generator, requires_grad=True)
    documents = None
    if lengths is not None:
        ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[:tokens]
        padding = torch.full((tokens - len(ids),), -1)
        documents = torch.cat([ids, padding]).int().expand(rows, -1)
    found = ours(q, k, v, documents)
    reference = plain_attention(q, k, v, documents)
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-5)
    weights = torch.randn(found.shape, generator=generator)
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), (q, k, v)),
        torch.autograd.grad((reference * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def packed(lengths: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 320, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).int()
    positions = torch.cat([torch.arange(n) for n in lengths])
    return tokens[None], documents[None], positions[None]


@settings(max_examples=12)
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_packed_with_masks_is_each_document_alone(lengths: list[int], seed: int) -> None:
    model = random_model()
    tokens, documents, positions = packed(lengths, seed)
    together = model.logits(model(tokens, positions, documents))[0]
    together.logsumexp(-1).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    start = 0
    for length in lengths:
        alone = model.logits(model(tokens[:, start : start + length]))[0]
        torch.testing.assert_close(together[start : start + length], alone, rtol=1e-4, atol=1e-4)
        alone.logsumexp(-1).sum().backward()
        start += length
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=2e-3, atol=2e-3)


def test_a_token_sees_nothing_of_other_documents_and_nothing_later(model: Transformer) -> None:
    tokens, documents, positions = packed([40, 30], 0)
    before = model(tokens, positions, documents)
    changed = tokens.clone()
    changed[0, 45] = (changed[0, 45] + 1) % 320
    after = model(changed, positions, documents)
    assert torch.equal(before[0, :45], after[0, :45])
    assert not torch.equal(before[0, 45:], after[0, 45:])


def test_compiled_is_eager(model: Transformer) -> None:
    tokens, documents, positions = packed([150, 60, 46], 1)
    labels = tokens.roll(-1, 1)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        hidden = model(tokens, positions, documents)
        linear_cross_entropy(hidden.flatten(0, 1), model.output_weight, labels.flatten()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    eager = gradients()
    for block in model.model.layers:
        block.compile(dynamic=False)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, eager[name], rtol=1e-3, atol=1e-3)


def test_gpu_attention_is_the_same_function() -> None:
    """What a GPU runs (torch's own kernels) and what the CPU runs agree."""
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(2, 4, 70, 8, generator=generator)
    k, v = torch.randn(2, 2, 2, 70, 8, generator=generator)
    documents = torch.arange(70).div(25, rounding_mode="floor").int().expand(2, -1)
    masked = room.masked_attention(q, k, v, document_mask(documents))
    torch.testing.assert_close(masked, blocked_attention(q, k, v, documents))
