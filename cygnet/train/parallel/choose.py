"""Which way of spreading a run takes."""

from __future__ import annotations

import dataclasses
from importlib import import_module

import torch

from cygnet.config import ModelConfig, TrainConfig
from cygnet.errors import UserError
from cygnet.model.lora import lora_of
from cygnet.model.transformer import Transformer
from cygnet.train.comparison import choose
from cygnet.train.hardware import Hardware
from cygnet.train.layout import CUTTING_MODELS, layout_of, read_deepspeed
from cygnet.train.parallel.group import world
from cygnet.train.parallel.single import Single

SEVERAL_NEEDED = (*CUTTING_MODELS, "fsdp")
"""Ways that one process alone does not take."""


def check_parallel(config: TrainConfig, model: ModelConfig, processes: int) -> None:
    """Refuse settings that contradict each other, the model or the number of processes.

    Raises:
        UserError: names both settings.
    """
    each = config.model_processes
    if config.deepspeed and config.parallel not in ("auto", "deepspeed"):
        raise UserError(
            f"--deepspeed {config.deepspeed} and --parallel {config.parallel}: give one"
        )
    if each is not None and config.parallel not in CUTTING_MODELS:
        raise UserError(
            f"--model_processes {each} goes with --parallel {' or '.join(CUTTING_MODELS)}, not "
            f"{config.parallel}"
        )
    if config.parallel == "deepspeed" and config.optimizer == "muon":
        raise UserError(
            "--parallel deepspeed and --optimizer muon: ZeRO cuts across the matrices that Muon "
            "needs whole; give --optimizer adamw, or --parallel fsdp, which cuts as much"
        )
    read_deepspeed(config.deepspeed)
    if config.parallel != "auto":
        problem = layout_of(config, processes).problem(model)
        if problem:
            raise UserError(problem)


def choose_parallel(
    config: TrainConfig,
    model: ModelConfig,
    hardware: Hardware,
    processes: int,
    *,
    weights_loaded: bool = False,
) -> tuple[TrainConfig, str]:
    """Return the settings with `parallel` decided, and why it is that.

    Args:
        config: as asked for.
        model: sizes.
        hardware: what each process has.
        processes: of the run.
        weights_loaded: the weights were in memory already when the free memory was measured.

    Raises:
        UserError: settings contradict each other.
    """
    if config.deepspeed and config.parallel == "auto" and config.model_processes is None:
        config = dataclasses.replace(config, parallel="deepspeed")
        check_parallel(config, model, processes)
        return config, f"settings are given, {config.deepspeed}"
    check_parallel(config, model, processes)
    if config.parallel != "auto":
        return config, "as asked for"
    if processes == 1:
        return dataclasses.replace(config, parallel="ddp"), "one process holds everything"
    return choose(config, model, hardware, processes, weights_loaded=weights_loaded)


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
    lora = lora_of(model)
    if name == "tensor" and lora and lora.quantize != "none":
        raise UserError(
            f"--quantize {lora.quantize} and --parallel tensor: matrices in 4 bits are not cut; "
            "give --parallel ddp or fsdp"
        )
    module, kind = WAYS[name]
    way: type[Single] = getattr(import_module(f"cygnet.train.parallel.{module}"), kind)
    return way(model, config, hardware)
