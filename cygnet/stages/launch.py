"""Around the engine: from a starting model to the finished model folder."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cygnet.config import TrainConfig, plain
from cygnet.export.adapter import base_hash, save_adapter
from cygnet.export.huggingface import find_model, load_folder, save_folder
from cygnet.files import sha256_file
from cygnet.model.lora import (
    NO_LORA,
    Adapter,
    LoraConfig,
    add_lora,
    is_adapter,
    lora_of,
    merged,
    put_adapter,
    take_adapter,
)
from cygnet.model.transformer import Transformer
from cygnet.progress import say
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.checkpoint import Checkpoint, newest_checkpoint
from cygnet.train.engine import Engine
from cygnet.train.hardware import choose_device
from cygnet.train.parallel.group import connect, first, is_restart, on_rank_zero, world
from cygnet.train.run_folder import changes, hold, is_finished, keep_aside
from cygnet.train.stage import Stage

Save = Callable[[Transformer, Tokenizer, Path], object]


def train_and_save(
    name: str,
    model: Transformer,
    tokenizer: Tokenizer,
    make_stage: Callable[[], Stage],
    config: TrainConfig,
    run: Path,
    inputs: dict[str, Any],
    renew: bool = False,
    save: Save = save_folder,
    lora: LoraConfig = NO_LORA,
    start: Path | None = None,
    final: Callable[[Transformer], Transformer] = lambda model: model,
) -> Path:
    """Train `model` in a stage and write `run/model`; return that folder.

    A run that is finished with the same settings and inputs is left as it is.

    Args:
        name: of the stage.
        model: where to start; trained in place.
        tokenizer: saved beside the weights.
        make_stage: tokenizes what is needed and returns the stage; not called if all is done.
        config: training settings as asked for.
        run: the run folder.
        inputs: hashes and settings of all else that decides the result.
        renew: keep a run with other settings aside and start anew, rather than refuse.
        save: writes the finished model and its tokenizer to a folder.
        lora: where it is on, adapters are trained and kept in `run/adapter`; `run/model` is then
            the model with them merged.
        start: where `model` was loaded from; needed for adapters.
        final: takes away what served training alone.

    Raises:
        UserError: another run is writing into the folder, or what `Engine.train` raises.
    """
    if lora.lora:
        inputs = {**inputs, "lora": plain(lora)}
    origin = {"stage": name, "model": plain(model.config), "inputs": inputs}
    connect(config.timeout_s)
    choose_device(config.device)  # before anything is moved
    if config.resume == "never" and is_restart():
        config = dataclasses.replace(config, resume="auto")  # the job itself has begun this run
    with _only_writer(run):
        # Rank 0 looks for all: what it does next would change what the others find.
        if on_rank_zero(lambda: config.resume != "never" and is_finished(run, origin, config)):
            say(f"{name}: up to date, nothing to do ({run})")
            return run / "model"
        if renew:
            on_rank_zero(lambda: _keep_if_changed(name, run, origin, config))
        with first(f"the data of {name}", config.timeout_s):
            stage = make_stage()
        if lora.lora:
            add_lora(model, lora, torch.Generator().manual_seed(config.seed))
        Engine(model, stage, config, run, origin).train()
        on_rank_zero(lambda: _finish(model, tokenizer, run, save, start, final))
        return run / "model"


@contextmanager
def _only_writer(run: Path) -> Iterator[None]:
    held: list[int] = []
    on_rank_zero(lambda: held.append(hold(run)))
    try:
        yield
    finally:
        for handle in held:
            os.close(handle)


def _keep_if_changed(name: str, run: Path, origin: dict[str, Any], config: TrainConfig) -> None:
    changed = changes(run, origin, config) if (run / "config.yaml").exists() else []
    if changed:
        say(f"{name}: made again, for {'; '.join(changed)}")
        keep_aside(run)


def _finish(
    model: Transformer,
    tokenizer: Tokenizer,
    run: Path,
    save: Save,
    start: Path | None,
    final: Callable[[Transformer], Transformer],
) -> None:
    """Write the finished model's folder, and that of its adapter before it."""
    model = _trained(model, run, start)
    plain_model = final(merged(model))
    adapter = take_adapter(model)
    if adapter:
        assert start
        base, _ = load_folder(start)
        kept = set(plain_model.state_dict())
        weights = {n: t for n, t in adapter.weights.items() if is_adapter(n) or n in kept}
        sha256 = base_hash(base)
        save_adapter(Adapter(adapter.config, weights), run / "adapter", str(start), sha256)
    save(plain_model, tokenizer, run / "model")


def _trained(model: Transformer, run: Path, start: Path | None) -> Transformer:
    """Return the whole model; of one that is spread, as the last checkpoint has it."""
    checkpoint = newest_checkpoint(run / "checkpoints")
    if world().size == 1 or not checkpoint:
        return model
    with Checkpoint(checkpoint) as opened:
        weights = opened.whole("model")
    config, whole = lora_of(model), type(model)(model.config)
    if config is None:
        whole.load_state_dict(weights)
        return whole
    # Checkpoints hold what is trained; the base is where it was.
    assert start
    base, _ = load_folder(start)
    whole.load_state_dict(base.state_dict(), strict=False)
    put_adapter(whole, Adapter(config, weights))
    return whole


def load_start(path: Path) -> tuple[Transformer, Tokenizer, str]:
    """Load the model that a stage starts from; return model, tokenizer, hash of the weights."""
    folder = find_model(path)
    model, tokenizer = load_folder(folder)
    return model, tokenizer, sha256_file(folder / "model.safetensors")
