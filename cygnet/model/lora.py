"""Low-rank adapters: a frozen model, and beside its matrices small ones that learn.

LoRA (Hu et al. 2021, equation 3) adds s B A x to W x, with A drawn and B zero, so that training
begins at the model as it is. s is alpha / rank, with rsLoRA alpha / sqrt(rank) (Kalajdzievski
2023). DoRA (Liu et al. 2024, equation 5) keeps the length of each row of W + s B A as a vector of
its own that learns too.

The base's parameters keep their names; an adapter's stand beside them as `q_proj.lora_A`,
`q_proj.lora_B` and, of DoRA, `q_proj.lora_magnitude_vector`, which are the names of PEFT.

Shapes: O outputs, I inputs, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cygnet.errors import UserError, nearest
from cygnet.model.nf4 import Nf4Weight, unpacked
from cygnet.model.transformer import Linear, Transformer

LORA_A, LORA_B, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"
PACKED = ("packed.codes", "packed.magnitudes")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of attention and feed-forward."""

TINY = 1e-12
"""Length that a row of zeros is divided by."""

Model = TypeVar("Model", bound=Transformer)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters.

    Raises:
        UserError: a value is out of its range.
    """

    lora: bool = False
    """Train low-rank adapters and leave the model's own weights as they are."""
    lora_rank: int = 8
    """Rank of each adapter's matrices."""
    lora_alpha: float = 16.0
    """What an adapter adds is multiplied by alpha / rank."""
    lora_targets: tuple[str, ...] = TARGETS
    """Layers that get one: the last part of their names, or more of it (layers.3.mlp.up_proj)."""
    lora_dropout: float = 0.0
    """Share of an adapter's inputs that is zero in training."""
    use_dora: bool = False
    """Let the length of each row of a matrix learn apart from its direction (DoRA)."""
    use_rslora: bool = False
    """Multiply by alpha / sqrt(rank), which high ranks need (rsLoRA)."""
    quantize: Literal["none", "nf4"] = "none"
    """Keep the frozen matrices in 4 bits while the adapters train (QLoRA)."""

    def __post_init__(self) -> None:
        if self.lora_rank < 1:
            raise UserError(f"lora_rank is {self.lora_rank}; give 1 or more")
        if not 0 < self.lora_alpha < math.inf:
            raise UserError(f"lora_alpha is {self.lora_alpha}; give a number above zero")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"lora_dropout is {self.lora_dropout}; give a share below 1")
        for field in fields(self):
            value = getattr(self, field.name)
            if not self.lora and value != field.default:
                raise UserError(f"--{field.name} {value} goes with --lora, which is not given")

    def refuse_dropout(self, stage: str) -> None:
        """Refuse dropout in a stage that learns from ratios of probabilities.

        The ratio compares a token under the model that is trained with the same under the model
        that it was drawn from; with dropout it is not one before the first update either.

        Raises:
            UserError: there is dropout.
        """
        if self.lora and self.lora_dropout:
            raise UserError(
                f"--lora_dropout {self.lora_dropout}: {stage} compares the model with itself "
                "before the update, and dropout would change it by chance; leave it at 0"
            )

    def scale(self, rank: int) -> float:
        """Return what B A is multiplied by."""
        return self.lora_alpha / (math.sqrt(rank) if self.use_rslora else rank)


NO_LORA = LoraConfig()


@dataclass(frozen=True)
class Adapter:
    """An adapter apart from its model.

    Attributes:
        config: how it was made.
        weights: `model.layers.0.self_attn.q_proj.lora_A` and so on, float32; and whatever else
            of the model was trained with it.
    """

    config: LoraConfig
    weights: Mapping[str, Tensor]


class LoraLinear(Linear):
    """A linear layer with an adapter.

    Args:
        base: gives weight and bias, which are shared and frozen.
        config: gives rank, scale, dropout and whether it is DoRA.
        rank: in place of the config's.
    """

    def __init__(self, base: Linear, config: LoraConfig, rank: int | None = None) -> None:
        with torch.device("meta"):
            super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.rank = rank or config.lora_rank
        self.scale, self.dropout = config.scale(self.rank), config.lora_dropout
        weight, bias = base.weight.detach(), base.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.packed: Nf4Weight | None = None
        if config.quantize == "nf4":
            self.packed = Nf4Weight(weight)
            del self.weight
        else:
            self.weight = nn.Parameter(weight, requires_grad=False)
        zeros = partial(torch.zeros, device=weight.device, dtype=torch.float32)
        self.lora_A = nn.Parameter(zeros(self.rank, base.in_features))
        self.lora_B = nn.Parameter(zeros(base.out_features, self.rank))
        self.lora_magnitude_vector: nn.Parameter | None = None
        if config.use_dora:
            self.lora_magnitude_vector = nn.Parameter(self.base().float().norm(dim=1))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw A as PEFT does (Kaiming-uniform with a = sqrt(5)); B is zero."""
        bound = 1 / math.sqrt(self.in_features)
        drawn = torch.empty(self.lora_A.shape).uniform_(-bound, bound, generator=generator)
        self.lora_A.copy_(drawn)

    def base(self) -> Tensor:
        """Return W, (O, I)."""
        return self.weight if self.packed is None else self.packed.whole()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O), in the type of x."""
        given = x
        # Held-out metrics, samples and rollouts are computed without gradients.
        if self.dropout and self.training and torch.is_grad_enabled():
            given = F.dropout(x, self.dropout)
        low = F.linear(given, self.lora_A.to(x.dtype))
        added = self.scale * F.linear(low, self.lora_B.to(x.dtype))
        whole = self.packed(x) if self.packed else F.linear(x, self.weight.to(x.dtype))
        whole = whole + added
        if self.lora_magnitude_vector is not None:
            whole = whole * self._rescaling().to(x.dtype)
        return whole if self.bias is None else whole + self.bias.to(x.dtype)

    def _rescaling(self) -> Tensor:
        """Return magnitude / length of each row of W + s B A, (O,) float32.

        The length counts as a constant in the backward pass (Liu et al. 2024, section 4.3).
        """
        assert self.lora_magnitude_vector is not None
        with torch.no_grad():
            added = self.lora_B.float() @ self.lora_A.float()
            length = (self.base().float() + self.scale * added).square().sum(dim=1).sqrt()
            length = length.clamp(min=TINY)
        return self.lora_magnitude_vector.float() / length


def add_lora(model: Transformer, config: LoraConfig, generator: torch.Generator) -> None:
    """Put fresh adapters on a model's layers, in place, and freeze all else.

    A model that answers with a score keeps its `score` layer trainable.

    Args:
        model: computes afterwards what it did before.
        config: which layers, and how.
        generator: on the CPU; draws A, layer by layer.

    Raises:
        UserError: a target matches no layer; names those there are.
    """
    names = _targeted(model, config.lora_targets)
    _freeze(model)
    for name in names:
        layer = LoraLinear(_linear(model, name), config)
        layer.draw(generator)
        model.set_submodule(name, layer)
    _note(model, config)


def put_adapter(model: Transformer, adapter: Adapter) -> None:
    """Put an adapter on a model, in place; the model's own weights are shared, not copied.

    Raises:
        UserError: the adapter is of a model with other layers.
    """
    ranks = _ranks(model, adapter)
    _freeze(model)
    for name, rank in ranks.items():
        model.set_submodule(name, LoraLinear(_linear(model, name), adapter.config, rank))
    model.load_state_dict(dict(adapter.weights), strict=False)
    _note(model, adapter.config)


def take_adapter(model: Transformer) -> Adapter | None:
    """Return a copy of the adapter on a model, or None where there is none.

    It holds whatever else is trainable too.
    """
    config = lora_of(model)
    if config is None:
        return None
    weights = {
        name: tensor.detach().float().cpu().clone()
        for name, tensor in model.named_parameters()
        if is_adapter(name) or tensor.requires_grad
    }
    return Adapter(config, weights)


def remove_adapter(model: Transformer) -> None:
    """Take the adapter off a model, in place: what remains is the frozen base."""
    for name, layer in _adapted(model):
        model.set_submodule(name, _plain(layer, layer.base()))
    _note(model, None)


@torch.no_grad()
def with_weights(model: Model, weights: Mapping[str, Tensor]) -> Model:
    """Return a model like `model`, with an adapter where that has one, around other weights.

    Args:
        model: may hold a part of the weights alone.
        weights: the state dict of a whole one; its tensors are not copied.
    """
    config = lora_of(model)
    with torch.device("meta"):
        made = type(model)(model.config, model.compute_dtype)
        for name in _named(weights):
            assert config is not None
            rank = len(weights[f"{name}.{LORA_A}"])
            made.set_submodule(name, LoraLinear(_linear(made, name), config, rank))
    made.take_weights(weights)
    _note(made, config)
    return made


@torch.no_grad()
def merged(model: Model) -> Model:
    """Return a plain model that computes what the model with its adapter does.

    What has no adapter is shared, not copied; a model without any is returned itself. Of a base in
    4 bits it is that base which is merged, as training saw it.
    """
    config = lora_of(model)
    if config is None:
        return model
    weights = plain_weights(model.state_dict(), config)
    return type(model).from_weights(model.config, weights, model.compute_dtype)


@torch.no_grad()
def plain_weights(weights: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Return the state dict of the plain model from that of one with an adapter of `config`."""
    named = _named(weights)
    parts = (LORA_A, LORA_B, MAGNITUDE, *PACKED)
    replaced = {f"{name}.{part}" for name in named for part in parts}
    plain = {name: tensor for name, tensor in weights.items() if name not in replaced}
    for name in named:
        a, b = weights[f"{name}.{LORA_A}"].float(), weights[f"{name}.{LORA_B}"].float()
        if f"{name}.packed.codes" in weights:
            codes, magnitudes = (weights[f"{name}.{part}"] for part in PACKED)
            base = unpacked(codes, magnitudes, [len(b), a.shape[1]], torch.float32)
        else:
            base = weights[f"{name}.weight"].float()
        matrix = base + config.scale(len(a)) * (b @ a)
        magnitude = weights.get(f"{name}.{MAGNITUDE}")
        if magnitude is not None:
            length = matrix.norm(dim=1).clamp(min=TINY)
            matrix = matrix * (magnitude.float() / length)[:, None]
        plain[f"{name}.weight"] = matrix
    return plain


def lora_of(model: nn.Module) -> LoraConfig | None:
    """Return the settings of the adapter on a model, or None where there is none.

    A process that holds a part of a model knows them, whether that part has an adapter or not.
    """
    found: Any = getattr(model, "lora_config", None)
    return found


def is_adapter(name: str) -> bool:
    """Say whether a parameter of that name is an adapter's."""
    return name.endswith((f".{LORA_A}", f".{LORA_B}", f".{MAGNITUDE}"))


class Adapters:
    """One model with several adapters, of which one at a time is on.

    Args:
        model: the base; `use` changes it in place.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.named: dict[str, Adapter] = {}
        self.current: str | None = None

    def add(self, name: str, adapter: Adapter) -> None:
        """Keep an adapter under a name.

        Raises:
            UserError: it does not fit the model.
        """
        before = self.current
        self.named[name] = adapter
        try:
            self.use(name)
        except UserError:
            del self.named[name]
            raise
        finally:
            self.use(before)

    def use(self, name: str | None) -> None:
        """Put the adapter of that name on in place of the one that is; None for the base alone."""
        if name is not None and name not in self.named:
            known = ", ".join(self.named) or "none"
            raise UserError(f"no adapter {name!r}; there are {known}{nearest(name, self.named)}")
        remove_adapter(self.model)
        self.current = None
        if name is not None:
            adapter = self.named[name]
            # Its base is the model as it is here, whatever type it had in training.
            here = replace(adapter.config, quantize="none")
            put_adapter(self.model, Adapter(here, adapter.weights))
            self.current = name


def _adapted(model: nn.Module) -> list[tuple[str, LoraLinear]]:
    return [(n, module) for n, module in model.named_modules() if isinstance(module, LoraLinear)]


def _named(weights: Iterable[str]) -> list[str]:
    """Return the names of the layers that have an adapter."""
    return [name.removesuffix(f".{LORA_A}") for name in weights if name.endswith(f".{LORA_A}")]


def _linear(model: Transformer, name: str) -> Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, Linear)
    return layer


def _ranks(model: Transformer, adapter: Adapter) -> dict[str, int]:
    """Return the rank of the adapter for each layer that has one; refuse one that does not fit."""
    layers, own = dict(model.named_modules()), model.state_dict()
    parts = [LORA_A, LORA_B, *([MAGNITUDE] if adapter.config.use_dora else [])]
    ranks: dict[str, int] = {}
    for name, tensor in adapter.weights.items():
        module, _, part = name.rpartition(".")
        layer = layers.get(module)
        if part not in parts and name in own and own[name].shape == tensor.shape:
            continue
        if part not in parts or not isinstance(layer, Linear) or isinstance(layer, LoraLinear):
            raise UserError(f"the adapter holds {name}, for which the model has no place")
        if missing := [part for part in parts if f"{module}.{part}" not in adapter.weights]:
            raise UserError(f"the adapter lacks {module}.{missing[0]}")
        rank = ranks.setdefault(module, len(adapter.weights[f"{module}.{LORA_A}"]))
        out, into = layer.out_features, layer.in_features
        wanted = {LORA_A: (rank, into), LORA_B: (out, rank), MAGNITUDE: (out,)}[part]
        if tuple(tensor.shape) != wanted:
            raise UserError(
                f"the adapter's {name} is {tuple(tensor.shape)}, and for this model it must be "
                f"{wanted}"
            )
    if not ranks:
        raise UserError("the adapter holds no matrices")
    return ranks


def _plain(layer: LoraLinear, weight: Tensor) -> Linear:
    with torch.device("meta"):
        plain = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if layer.bias is not None:
        plain.bias = layer.bias
    return plain


def _note(model: nn.Module, config: LoraConfig | None) -> None:
    cast(Any, model).lora_config = config


def _freeze(model: Transformer) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("score."))


def _targeted(model: Transformer, targets: Iterable[str]) -> list[str]:
    """Return the names of the blocks' layers that targets match, in the model's order."""
    there = [
        name
        for name, module in model.named_modules()
        if isinstance(module, Linear) and name.startswith("model.layers.")
    ]
    found: set[str] = set()
    for target in targets:
        matching = {name for name in there if f".{name}".endswith(f".{target}")}
        if not matching:
            kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in there))
            raise UserError(
                f"--lora_targets {target}: no layer is called so; there are {', '.join(kinds)}"
                f"{nearest(target, kinds)}"
            )
        found |= matching
    if not found:
        raise UserError(f"--lora_targets: name a layer; there are {', '.join(TARGETS)}")
    return [name for name in there if name in found]
