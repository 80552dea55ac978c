"""Which way of spreading a run takes."""

from __future__ import annotations

from importlib import import_module

import torch

from cygnet.config import ModelConfig, TrainConfig
from cygnet.errors import UserError
from cygnet.model.transformer import Transformer
from cygnet.train.hardware import Hardware
from cygnet.train.parallel.group import world
from cygnet.train.parallel.single import Single

CUTTING_MODELS = ("tensor", "pipeline")
SEVERAL_NEEDED = (*CUTTING_MODELS, "fsdp")
"""Ways that one process alone does not take."""


def check_parallel(config: TrainConfig) -> None:
    """Refuse settings that contradict each other or the number of processes.

    Raises:
        UserError: names both settings.
    """
    size, each = world().size, config.model_processes
    if config.deepspeed and config.parallel not in ("auto", "deepspeed"):
        raise UserError(
            f"--deepspeed {config.deepspeed} and --parallel {config.parallel}: give one"
        )
    if each is not None and config.parallel not in CUTTING_MODELS:
        raise UserError(
            f"--model_processes {each} goes with --parallel {' or '.join(CUTTING_MODELS)}, not "
            f"{config.parallel}"
        )
    if size % (each or 1):
        raise UserError(f"--model_processes {each} does not divide the {size} processes")
    if config.parallel == "deepspeed" and config.optimizer == "muon":
        raise UserError(
            "--parallel deepspeed and --optimizer muon: ZeRO cuts across the matrices that Muon "
            "needs whole; give --optimizer adamw, or --parallel fsdp, which cuts as much"
        )


def choose_parallel(config: TrainConfig, model: ModelConfig, free_bytes: int) -> tuple[str, str]:
    """Return how several processes share the work, and why.

    Args:
        config: as asked for.
        model: sizes.
        free_bytes: memory of each process.
    """
    if config.parallel != "auto":
        return config.parallel, "as asked for"
    if config.deepspeed:
        return "deepspeed", f"settings are given, {config.deepspeed}"
    # Weights, gradients and optimizer state, each float32, and as much again for activations.
    whole = 2 * 16 * model.num_parameters
    if whole <= free_bytes:
        return "ddp", "the model and its optimizer fit each process"
    return "fsdp", "the model and its optimizer would not fit each process whole"


WAYS = {
    "ddp": ("ddp", "Ddp"),
    "fsdp": ("fsdp", "Fsdp"),
    "tensor": ("tensor", "TensorParallel"),
    "pipeline": ("pipeline", "Pipeline"),
    "deepspeed": ("deepspeed", "DeepSpeed"),
}
"""Each way's file and class; only the one in use is imported."""


def spread(name: str, model: Transformer, config: TrainConfig, hardware: Hardware) -> Single:
    """Return the model spread in the way of that name; a process that is alone holds it whole.

    DeepSpeed spreads one process's state too, over the memories of GPU and CPU.

    Raises:
        UserError: the model or its dtype cannot be spread in that way.
    """
    if world().size == 1 and name != "deepspeed":
        return Single(model, config, hardware)
    if name in CUTTING_MODELS and hardware.dtype is torch.float16:
        raise UserError(
            f"--parallel {name} and fp16: each process would scale its part of the loss by itself; "
            "give --dtype bf16 or fp32, or --parallel fsdp"
        )
    module, kind = WAYS[name]
    way: type[Single] = getattr(import_module(f"cygnet.train.parallel.{module}"), kind)
    return way(model, config, hardware)
