"""How processes share a model, and the bytes of it that each of them holds.

The shapes are those of the model that trains, the slices those that each way really cuts
(`cygnet/train/parallel/`, torch and DeepSpeed); benchmarks/parallel_memory.py holds all of it
against tensors that were counted in running processes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from cygnet.config import ModelConfig, TrainConfig
from cygnet.errors import UserError
from cygnet.model.transformer import Transformer
from cygnet.train.optim import parameter_kind

MASTER_BYTES = 4
"""Weights, summed gradients and optimizer state are float32."""
CUTTING_MODELS = ("tensor", "pipeline")
"""Ways in which several processes hold one model between them, each computing a part of it."""
EACH = "float32, 4 bytes a parameter"
DEFAULT_STAGE = 2
"""Of ZeRO, without a file of settings."""
REDUCE_BUCKET = 500_000_000
"""DeepSpeed's `reduce_bucket_size`: elements that are summed over processes at once."""
MAX_LIVE = 1_000_000_000
"""DeepSpeed's `stage3_max_live_parameters`: elements that stay whole between their uses."""
PERSISTENCE_THRESHOLD = 100_000
"""DeepSpeed's `stage3_param_persistence_threshold`: smaller tensors are never cut."""


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
        return "offload_optimizer" in self.zero

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
    return settings


def zero_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return `zero_optimization` of DeepSpeed's settings, its stage filled in."""
    given = settings.get("zero_optimization", {})
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


@dataclass(frozen=True)
class Held:
    """Bytes that one process holds, whatever goes through the model.

    Attributes:
        weights: float32 ones, and those of another type that compute.
        gradients: when they are most.
        optimizer: state between steps.
        buffers: what is whole for a while: weights gathered, gradients on their way.
        update: scratch of the optimizer.
        casts: weights in the type of the computation, kept for the backward pass.
        notes: why, by the name of the field.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    update: int
    casts: int
    notes: dict[str, str]


def held(
    model: ModelConfig,
    layout: Layout,
    optimizer: str,
    dtype: torch.dtype,
    accumulates: bool,
    place: int = 0,
) -> Held:
    """Return what the process at `place` holds; the first holds as much as any of its kind.

    Args:
        model: sizes of the whole model.
        layout: how it is shared.
        optimizer: `muon` or `adamw`.
        dtype: of the computation.
        accumulates: a step has several micro-batches.
        place: in a pipeline.
    """
    weights = weights_at(model, layout, place)
    if layout.way == "fsdp":
        return _fsdp(weights, layout, optimizer, dtype, accumulates)
    if layout.way == "deepspeed":
        return _deepspeed(weights, layout, dtype)
    size = sum(weight.size for weight in weights)
    bytes_ = MASTER_BYTES * size
    state, why = _state(weights, optimizer)
    buffers, why_buffers = 0, ""
    if layout.way in CUTTING_MODELS and layout.data_size > 1:
        buffers, why_buffers = bytes_, "gradients as one message, to sum over the groups"
    share = layout.model_processes if layout.way == "tensor" else 1
    return Held(
        weights=bytes_,
        gradients=bytes_,
        optimizer=state,
        buffers=buffers,
        update=_update(weights, optimizer, dtype, 1, layout.processes if share == 1 else share),
        casts=dtype.itemsize * size if dtype.itemsize < MASTER_BYTES else 0,
        notes={
            "weights": EACH,
            "gradients": EACH,
            "optimizer": why,
            "buffers": why_buffers,
        },
    )


def _sizes(weights: tuple[Weight, ...]) -> dict[str, int]:
    sizes = {"matrix": 0, "embedding": 0, "vector": 0}
    for weight in weights:
        sizes[weight.kind] += weight.size
    return sizes


def _state(weights: tuple[Weight, ...], optimizer: str) -> tuple[int, str]:
    """Return the bytes of the optimizer's state of these weights or slices, and why."""
    sizes = _sizes(weights)
    if optimizer == "adamw":
        return 2 * MASTER_BYTES * sum(sizes.values()), "two float32 buffers, AdamW"
    buffers = 2 * sum(sizes.values()) - sizes["matrix"]
    return (
        MASTER_BYTES * buffers,
        "one float32 buffer for Muon's matrices, two for AdamW's",
    )


def _update(
    weights: tuple[Weight, ...], optimizer: str, dtype: torch.dtype, cut: int, sharing: int
) -> int:
    """Return the bytes of the optimizer's scratch.

    Args:
        weights: whole, as far as this process computes with them.
        optimizer: `muon` or `adamw`.
        dtype: of the computation.
        cut: the process holds this part of each, one of so many.
        sharing: processes that share the work on Muon's matrices.
    """
    if optimizer == "adamw":
        # The square roots of one group's second moments.
        return MASTER_BYTES * sum(_sizes(weights).values()) // cut
    shapes: dict[tuple[int, ...], int] = {}
    for weight in weights:
        if weight.kind == "matrix":
            shapes[weight.shape] = shapes.get(weight.shape, 0) + weight.size
    group = max(shapes.values(), default=0)
    c = 2 if dtype is torch.bfloat16 else MASTER_BYTES
    own = group // cut
    # Momentum and update in float32, the stack; iterates of those worked on; what is exchanged.
    scratch = own * (2 * MASTER_BYTES + c) + 3 * c * group // sharing
    return scratch + (2 * c * own if sharing > 1 else 0)


def _fsdp(
    weights: tuple[Weight, ...],
    layout: Layout,
    optimizer: str,
    dtype: torch.dtype,
    accumulates: bool,
) -> Held:
    def slice_of(weight: Weight) -> Weight:
        rows = -(-weight.shape[0] // layout.processes)
        return dataclasses.replace(weight, shape=(rows, *weight.shape[1:]))

    slices = tuple(map(slice_of, weights))
    whole, own = (sum(w.size for w in some) for some in (weights, slices))
    state, why = _state(slices, optimizer)
    block = sum(weight.size for weight in weights if weight.layer == 0)
    outside = sum(weight.size for weight in weights if weight.layer is None)
    gathered = dtype.itemsize if dtype is torch.bfloat16 else MASTER_BYTES
    # Two blocks whole, one in use and one on its way; what is outside of them stays whole; a
    # block's gradients are laid out for their sum, and those outside of the blocks are whole too.
    buffers = 2 * block * gathered + outside * MASTER_BYTES + MASTER_BYTES * max(block, outside)
    gradients = MASTER_BYTES * (whole if accumulates else own)
    casts = 0
    if dtype.itemsize < MASTER_BYTES:
        casts = dtype.itemsize * (outside if dtype is torch.bfloat16 else whole)
    return Held(
        weights=MASTER_BYTES * own,
        gradients=gradients,
        optimizer=state,
        buffers=buffers,
        update=_update(weights, optimizer, dtype, layout.processes, layout.processes),
        casts=casts,
        notes={
            "weights": f"a slice of each, {EACH}",
            "gradients": "whole until the last micro-batch" if accumulates else f"slices, {EACH}",
            "optimizer": f"of these slices; {why}",
            "buffers": "blocks gathered, gradients on their way",
        },
    )


def _deepspeed(weights: tuple[Weight, ...], layout: Layout, dtype: torch.dtype) -> Held:
    stage, zero, processes = layout.stage, layout.zero, layout.processes
    whole = sum(weight.size for weight in weights)
    # bf16 without ZeRO computes from float32 weights.
    lowered = dtype is torch.float16 or (dtype is torch.bfloat16 and stage > 0)
    c = dtype.itemsize if lowered else MASTER_BYTES
    own = whole if stage == 0 else sum(_parts(weights, stage, processes))
    master = 0 if c == MASTER_BYTES and stage in (0, 3) else MASTER_BYTES * own
    bucket = c * min(whole, int(zero.get("reduce_bucket_size", REDUCE_BUCKET)))
    update = 2 * MASTER_BYTES * own
    notes = {"weights": EACH, "gradients": EACH, "optimizer": "two float32 buffers, AdamW"}
    if stage:
        notes["weights"] = f"{'a slice' if stage == 3 else 'whole'}, {c} bytes each"
        notes["weights"] += ", and a float32 slice" if master else ""
        notes["gradients"] = f"{'whole' if stage == 1 else 'a slice'}, {c} bytes each"
        notes["optimizer"] = f"of a slice; {notes['optimizer']}"
    if stage == 0:
        notes["buffers"] = "gradients as one message"
        weights_bytes, gradients, buffers = c * whole + master, c * whole, bucket
    elif stage < 3:
        notes["buffers"] = "gradients on their way"
        weights_bytes = c * whole + master
        gradients, buffers = c * (whole if stage == 1 else own), bucket
    else:
        threshold = int(zero.get("stage3_param_persistence_threshold", PERSISTENCE_THRESHOLD))
        kept = sum(weight.size for weight in weights if weight.size <= threshold)
        live = min(whole, int(zero.get("stage3_max_live_parameters", MAX_LIVE)))
        notes["buffers"] = "weights gathered, gradients on their way"
        weights_bytes, gradients = c * (own + kept) + master, c * own
        buffers = c * (live - min(kept, live)) + bucket
    return Held(
        weights=weights_bytes,
        gradients=gradients,
        optimizer=2 * MASTER_BYTES * own,
        buffers=buffers,
        update=update,
        casts=dtype.itemsize * whole if dtype.itemsize < c else 0,
        notes=notes,
    )


def _parts(weights: tuple[Weight, ...], stage: int, processes: int) -> Iterator[int]:
    """Yield the elements of each of this process's partitions, padding included."""
    if stage == 3:
        yield from (-(-weight.size // processes) for weight in weights)
    else:
        # A partition of each parameter group; DeepSpeed aligns its ends to two elements.
        for size in _sizes(weights).values():
            yield 2 * -(-size // (2 * processes))
