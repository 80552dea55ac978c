"""How processes share a model: which way, how many, and which parameters each computes with."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from cygnet.config import ModelConfig, TrainConfig
from cygnet.errors import UserError
from cygnet.model.transformer import Transformer
from cygnet.train.optim import parameter_kind

CUTTING_MODELS = ("tensor", "pipeline")
"""Ways in which several processes hold one model between them, each computing a part of it."""
DEFAULT_STAGE = 2
"""Of ZeRO, without a file of settings."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many processes there are, and how they share a model.

    Attributes:
        way: `single`, or a value of `--parallel` other than auto.
        processes: of the whole run.
        model_processes: how many of them hold one model together.
        zero: the `zero_optimization` of DeepSpeed's settings, with its stage.
    """

    way: str = "single"
    processes: int = 1
    model_processes: int = 1
    zero: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def data_size(self) -> int:
        """In how many shares the rows of a batch are cut."""
        return self.processes // self.model_processes

    @property
    def stage(self) -> int:
        """The stage of ZeRO; 0 for all that is not DeepSpeed."""
        return int(self.zero.get("stage", 0))

    @property
    def offloads(self) -> bool:
        """Whether the optimizer's state is in the machine's memory, not the device's."""
        return self.zero.get("offload_optimizer", {}).get("device", "none") != "none"

    @property
    def name(self) -> str:
        """Return the way as a table names it."""
        if self.way == "deepspeed":
            return f"ZeRO {self.stage}"
        if self.way in CUTTING_MODELS and self.data_size > 1:
            return f"{self.way}, by {self.model_processes}"
        return self.way

    def problem(self, model: ModelConfig) -> str | None:
        """Say why a model cannot be shared like this, or return None."""
        each = self.model_processes
        if self.processes % each:
            return f"--model_processes {each} does not divide the {self.processes} processes"
        if self.way == "tensor":
            for name in ("num_heads", "num_kv_heads", "intermediate_size"):
                if getattr(model, name) % each:
                    return (
                        f"--parallel tensor over {each} processes: {name} {getattr(model, name)} "
                        f"does not divide by {each}; give --model_processes a divisor of it, or "
                        "--parallel fsdp"
                    )
        if self.way == "pipeline" and each > model.num_layers:
            return (
                f"--parallel pipeline over {each} processes: the model has {model.num_layers} "
                f"layers; give --model_processes {model.num_layers} or fewer"
            )
        return None

    def part_of(self, model: ModelConfig, place: int = 0) -> ModelConfig:
        """Return the sizes of what one process computes: its heads and units, or its layers.

        Args:
            model: the whole.
            place: of the process in a pipeline, from zero.
        """
        each = self.model_processes
        if self.way == "tensor":
            return dataclasses.replace(
                model,
                num_heads=model.num_heads // each,
                num_kv_heads=model.num_kv_heads // each,
                head_dim=model.head_size,
                intermediate_size=model.intermediate_size // each,
            )
        if self.way == "pipeline":
            return dataclasses.replace(model, num_layers=len(stretch(model, each, place)))
        return model


ALONE = Layout()


def layout_of(config: TrainConfig, processes: int) -> Layout:
    """Return the layout that the settings ask for; `parallel` must not be auto.

    Raises:
        UserError: DeepSpeed's settings cannot be read.
    """
    if processes == 1:
        return ALONE
    way = config.parallel
    each = (config.model_processes or processes) if way in CUTTING_MODELS else 1
    zero: dict[str, Any] = {}
    if way == "deepspeed":
        zero = zero_settings(read_deepspeed(config.deepspeed))
    return Layout(way=way, processes=processes, model_processes=each, zero=zero)


def read_deepspeed(path: Path | None) -> dict[str, Any]:
    """Return a person's settings for DeepSpeed; none without a file.

    Raises:
        UserError: the file cannot be read.
    """
    if path is None:
        return {}
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: not a JSON object")
    section = settings.get("zero_optimization", {})
    if not isinstance(section, dict):
        raise UserError(f"{path}: zero_optimization is {section!r}; it must be an object")
    stage = section.get("stage", "auto")
    if stage not in ("auto", 0, 1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage is {stage}; ZeRO has 0, 1, 2 and 3")
    return settings


def zero_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return `zero_optimization` of DeepSpeed's settings, its stage filled in."""
    section = settings.get("zero_optimization", {})
    given = {name: value for name, value in section.items() if value != "auto"}
    return {**given, "stage": given.get("stage", 0 if settings else DEFAULT_STAGE)}


def stretch(model: ModelConfig, processes: int, place: int) -> range:
    """Return the layers that a process of a pipeline holds."""
    bounds = [round(i * model.num_layers / processes) for i in (place, place + 1)]
    return range(bounds[0], bounds[1])


@dataclass(frozen=True)
class Weight:
    """A parameter: `matrix`, `embedding` or `vector`, its shape, its layer or none."""

    kind: str
    shape: tuple[int, ...]
    layer: int | None

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@lru_cache(maxsize=256)
def weights_of(model: ModelConfig) -> tuple[Weight, ...]:
    """Return every parameter of a model of these sizes."""
    with torch.device("meta"):
        built = Transformer(model)
    found = []
    for name, parameter in built.named_parameters():
        words = name.split(".")
        layer = int(words[2]) if words[1] == "layers" else None
        found.append(Weight(parameter_kind(name, parameter.ndim), tuple(parameter.shape), layer))
    return tuple(found)


def weights_at(model: ModelConfig, layout: Layout, place: int) -> tuple[Weight, ...]:
    """Return the parameters, or its parts of them, that one process computes with."""
    if layout.way != "pipeline":
        return weights_of(layout.part_of(model))
    layers = stretch(model, layout.model_processes, place)
    is_first, is_last = place == 0, place == layout.model_processes - 1
    has_embedding = is_first or (is_last and model.tie_embeddings)
    embeddings = [w for w in weights_of(model) if w.kind == "embedding"]
    found = [w for w in weights_of(model) if w.layer in layers]
    found += embeddings[:1] if has_embedding else []
    if is_last:
        found += embeddings[1:]
        found += [w for w in weights_of(model) if w.kind == "vector" and w.layer is None]
    return tuple(found)
