"""Invariant 10: LoRA with B = 0 = base; merged = unmerged; and what can be asked wrongly."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cygnet.errors import UserError
from cygnet.model.lora import (
    Adapters,
    LoraConfig,
    LoraLinear,
    add_lora,
    is_adapter,
    merged,
    remove_adapter,
    take_adapter,
)
from cygnet.model.transformer import Transformer
from tests.models import SMALL, random_model

TOKENS = torch.randint(0, SMALL.vocab_size, (2, 20), generator=torch.Generator().manual_seed(1))
KINDS: list[dict[str, Any]] = [
    {},
    {"use_dora": True},
    {"use_rslora": True, "lora_rank": 3},
    {"lora_targets": ("q_proj", "layers.1.mlp.down_proj"), "use_dora": True},
]


def adapted(model: Transformer, seed: int = 0, **settings: Any) -> Transformer:
    add_lora(model, LoraConfig(lora=True, **settings), torch.Generator().manual_seed(seed))
    return model


def trained(model: Transformer, seed: int = 0, **settings: Any) -> Transformer:
    """Return a model whose adapter is no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    adapted(model, seed, **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def logits(model: Transformer) -> Tensor:
    return model.logits(model(TOKENS))


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("settings", KINDS)
def test_with_b_zero_it_is_the_base(settings: dict[str, Any], qkv_bias: bool) -> None:
    config = dataclasses.replace(SMALL, qkv_bias=qkv_bias, qk_norm=not qkv_bias)
    expected = logits(random_model(config))
    torch.testing.assert_close(logits(adapted(random_model(config), **settings)), expected)


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("settings", KINDS)
def test_merged_is_unmerged(settings: dict[str, Any], qkv_bias: bool) -> None:
    config = dataclasses.replace(SMALL, qkv_bias=qkv_bias, qk_norm=not qkv_bias)
    base = logits(random_model(config))
    model = trained(random_model(config), **settings)
    plain = merged(model)
    assert not any(isinstance(module, LoraLinear) for module in plain.modules())
    assert plain.state_dict().keys() == random_model(config).state_dict().keys()
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-4, atol=1e-5)
    assert (logits(plain) - base).abs().max() > 0.01
    remove_adapter(model)
    assert torch.equal(logits(model), base)


def test_the_adapter_alone_learns_and_the_base_stays() -> None:
    model = adapted(random_model(), use_dora=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.01)
    for _ in range(2):
        loss = F.cross_entropy(model.logits(model(TOKENS)).flatten(0, 1), TOKENS.flatten())
        loss.backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != is_adapter(name), name
    assert sum(map(is_adapter, before)) == 3 * 7 * SMALL.num_layers == len(learning)


def test_the_same_seed_gives_the_same_adapter() -> None:
    first, again, other = (take_adapter(adapted(random_model(), seed)) for seed in (0, 0, 1))
    assert first and again and other
    for name, tensor in first.weights.items():
        assert torch.equal(tensor, again.weights[name])
        assert torch.equal(tensor, other.weights[name]) == name.endswith("lora_B")


def test_dropout_is_of_training_alone() -> None:
    model = trained(random_model(), lora_dropout=0.5)
    still = trained(random_model())
    assert torch.equal(logits(model), logits(still))
    assert not torch.equal(model(TOKENS), still(TOKENS))
    torch.testing.assert_close(logits(merged(model)), logits(still), rtol=1e-4, atol=1e-5)


def test_dora_is_the_formula_of_its_paper() -> None:
    """Equation 5 of Liu et al. 2024, written plainly in float64, with its gradients."""
    model = trained(random_model(), use_dora=True)
    layer = model.get_submodule("model.layers.0.mlp.up_proj").double()
    assert isinstance(layer, LoraLinear)
    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    w0, a, b = (t.detach().clone() for t in (layer.weight, layer.lora_A, layer.lora_B))
    assert layer.lora_magnitude_vector is not None
    m = layer.lora_magnitude_vector.detach().clone().requires_grad_()
    a.requires_grad_(), b.requires_grad_()
    v = w0 + 16.0 / 8 * b @ a
    expected = x @ (m[:, None] * v / v.detach().norm(dim=1, keepdim=True)).T
    out = layer(x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for ours, theirs in ((layer.lora_A, a), (layer.lora_B, b), (layer.lora_magnitude_vector, m)):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_several_adapters_take_turns() -> None:
    base = logits(random_model())
    adapters = Adapters(random_model())
    expected: dict[str | None, Tensor] = {None: base}
    for seed, settings in enumerate(KINDS):
        one = trained(random_model(), seed, **settings)
        expected[str(seed)] = logits(one)
        adapter = take_adapter(one)
        assert adapter
        adapters.add(str(seed), adapter)
    assert torch.equal(logits(adapters.model), base)
    for name in ("2", "0", None, "3", "1", "1"):
        adapters.use(name)
        torch.testing.assert_close(logits(adapters.model), expected[name])
    with pytest.raises(UserError, match="no adapter 'nine'; there are 0, 1, 2, 3"):
        adapters.use("nine")
    small = dataclasses.replace(SMALL, hidden_size=32, head_dim=16)
    other = take_adapter(adapted(random_model(small)))
    assert other
    with pytest.raises(UserError, match=r"is \(8, 32\), and for this model it must be \(8, 64\)"):
        adapters.add("other", other)
    assert "other" not in adapters.named
    torch.testing.assert_close(logits(adapters.model), expected["1"])


def test_what_cannot_be_asked() -> None:
    with pytest.raises(UserError, match=r"qproj: no layer is called so; there are q_proj.*did you"):
        adapted(random_model(), lora_targets=("o_proj", "qproj"))
    with pytest.raises(UserError, match="name a layer"):
        adapted(random_model(), lora_targets=())
    with pytest.raises(UserError, match="lora_rank is 0"):
        LoraConfig(lora_rank=0)
    with pytest.raises(UserError, match="--quantize nf4 goes with --lora"):
        LoraConfig(quantize="nf4")


def test_a_base_in_4_bits_trains_and_merges() -> None:
    model = trained(random_model(), quantize="nf4", use_dora=True)
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(layer, LoraLinear) and layer.packed is not None
    kept = sum(buffer.numel() for buffer in layer.packed.buffers())
    assert kept * 8 / (layer.in_features * layer.out_features) == 4.5
    plain = merged(model)
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-4, atol=1e-5)
    base = random_model().get_submodule("model.layers.0.mlp.up_proj").weight
    assert 0.05 < (layer.base() - base).norm() / base.norm() < 0.15
    tokens = TOKENS[:1]
    for one in (model, plain.requires_grad_()):
        one.model.embed_tokens.weight.requires_grad_().grad = None
        one(tokens).square().sum().backward()
    expected = plain.model.embed_tokens.weight.grad
    torch.testing.assert_close(model.model.embed_tokens.weight.grad, expected, rtol=1e-3, atol=1e-4)
