"""The bytes that one of several processes holds, for each way of sharing a model.

The slices are those that each way really cuts (`cygnet/train/parallel/`, torch and DeepSpeed);
benchmarks/parallel_memory.py holds them against tensors that were counted in running processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch

from cygnet.config import ModelConfig
from cygnet.train.layout import CUTTING_MODELS, Layout, Weight, weights_at

MASTER_BYTES = 4
"""Weights, summed gradients and optimizer state are float32."""
REDUCE_BUCKET = 500_000_000
"""DeepSpeed's `reduce_bucket_size`: elements that are summed over processes at once."""
MAX_LIVE = 1_000_000_000
"""DeepSpeed's `stage3_max_live_parameters`: elements that stay whole between their uses."""
PERSISTENCE_THRESHOLD = 100_000
"""DeepSpeed's `stage3_param_persistence_threshold`: smaller tensors are never cut."""
KEEP_SHARE = 0.1
"""Share of the free memory that weights may take that fsdp keeps whole for the length of a step."""
EACH = "float32, 4 bytes a parameter"


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
    keeps: bool = False,
    place: int = 0,
) -> Held:
    """Return what the process at `place` holds; the first holds as much as any of its kind.

    Args:
        model: sizes of the whole model.
        layout: how it is shared.
        optimizer: `muon` or `adamw`.
        dtype: of the computation.
        accumulates: a step has several micro-batches.
        keeps: see `keeps_whole`.
        place: in a pipeline.
    """
    weights = weights_at(model, layout, place)
    if layout.way == "fsdp":
        return _fsdp(weights, layout, optimizer, dtype, accumulates, keeps)
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


def keeps_whole(model: ModelConfig, dtype: torch.dtype, free_bytes: int) -> bool:
    """Say whether fsdp has room to keep gathered weights whole for the length of a step."""
    return model.num_parameters * dtype.itemsize <= KEEP_SHARE * free_bytes


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
    keeps: bool,
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
    # Blocks gathered, all of them or one in use and one on its way; what is outside of them stays
    # whole; the gradients of a block, or of what is outside, are laid out for their sum.
    blocks = whole - outside if keeps else 2 * block
    buffers = gathered * blocks + MASTER_BYTES * (outside + max(block, outside))
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
            "buffers": ("all" if keeps else "two") + " blocks gathered, gradients on their way",
        },
    )


def _deepspeed(weights: tuple[Weight, ...], layout: Layout, dtype: torch.dtype) -> Held:
    stage, zero, processes = layout.stage, layout.zero, layout.processes
    whole = sum(weight.size for weight in weights)
    # bf16 without ZeRO computes from float32 weights.
    lowered = dtype is torch.float16 or (dtype is torch.bfloat16 and stage > 0)
    c = dtype.itemsize if lowered else MASTER_BYTES
    own = whole if stage == 0 else sum(_parts(weights, stage, processes))
    # Another copy in float32, beside float32 weights too.
    master = 0 if c == MASTER_BYTES and stage == 0 else MASTER_BYTES * own
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
        summed = whole if stage == 1 else _touched(weights, processes)
        gradients, buffers = c * summed, bucket
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


def _touched(weights: tuple[Weight, ...], processes: int) -> int:
    """Return the elements of all parameters that reach into a process's partitions, at most.

    ZeRO 2 keeps the gradient of a parameter whole where the end of a partition cuts through it.
    """
    # Changes from one process to the next.
    steps = [0] * (processes + 1)
    for kind, size in _sizes(weights).items():
        part = 2 * -(-size // (2 * processes))
        start = 0
        for weight in weights:
            if weight.kind == kind:
                end = start + weight.size
                steps[start // part] += weight.size
                steps[(end - 1) // part + 1] -= weight.size
                start = end
    return max(accumulate(steps))


def _parts(weights: tuple[Weight, ...], stage: int, processes: int) -> Iterator[int]:
    """Yield the elements of each of this process's partitions, padding included."""
    if stage == 3:
        yield from (-(-weight.size // processes) for weight in weights)
    else:
        # A partition of each parameter group; DeepSpeed aligns its ends to two elements.
        for size in _sizes(weights).values():
            yield 2 * -(-size // (2 * processes))
