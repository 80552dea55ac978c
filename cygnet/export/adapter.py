"""Adapters on disk, in the layout of PEFT, with the hash of the base they were trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cygnet import __version__
from cygnet.errors import UserError
from cygnet.files import folder_atomic, read_json, write_json
from cygnet.model.lora import (
    LORA_A,
    LORA_B,
    MAGNITUDE,
    Adapter,
    LoraConfig,
    is_adapter,
    merged,
    put_adapter,
)
from cygnet.model.transformer import Transformer

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NOTES_FILE = "cygnet.json"
"""What PEFT leaves alone: the base's hash."""
PREFIX = "base_model.model."
_UNSUPPORTED = (
    "alpha_pattern", "rank_pattern", "fan_in_fan_out", "lora_bias", "use_qalora", "use_bdlora",
    "kasa_config", "layer_replication", "target_parameters", "trainable_token_indices",
    "alora_invocation_tokens", "arrow_config", "megatron_config",
)  # fmt: skip
"""Settings of PEFT that change what an adapter computes in ways that are not ours."""
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways of drawing A and B that change the base too."""


def refuse_adapter(folder: Path) -> None:
    """Refuse an adapter's folder where a whole model is wanted, and say what can be done with it.

    Raises:
        UserError: it is one.
    """
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: an adapter (LoRA), not a whole model; cygnet export BASE --adapter "
            f"{folder} merges it into its base, cygnet serve BASE --adapter {folder} offers it"
        )


def base_hash(model: Transformer) -> str:
    """Return a SHA-256 of a model's weights, whatever files and types of float they come from.

    Args:
        model: without an adapter. A `score` layer does not count: it is trained with the adapter.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("score."):
            digest.update(f"{name} {tuple(tensor.shape)} ".encode())
            floats = tensor.detach().to("cpu", torch.float32).contiguous()
            digest.update(floats.view(torch.uint8).numpy())
    return digest.hexdigest()


def save_adapter(adapter: Adapter, folder: Path, base: str, base_sha256: str) -> None:
    """Write an adapter folder that `peft` loads; one that stood there before is replaced.

    Args:
        adapter: what to write.
        folder: where to.
        base: the base's folder or name, for people and for PEFT.
        base_sha256: its `base_hash`.
    """
    weights = {_their_name(name): tensor for name, tensor in adapter.weights.items()}
    notes = {
        "base_sha256": base_sha256,
        "quantize": adapter.config.quantize,
        "cygnet": __version__,
    }
    with folder_atomic(folder) as temporary:
        save_file(weights, temporary / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        write_json(temporary / ADAPTER_CONFIG, _their_config(adapter, base))
        write_json(temporary / NOTES_FILE, notes)


def load_adapter(folder: Path) -> Adapter:
    """Read an adapter folder, written by Cygnet or by PEFT.

    Raises:
        UserError: it is none, it is damaged, or PEFT made it in a way that is not ours; names the
            file and what is wrong.
    """
    path, weights_path = folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS
    for file in (path, weights_path):
        if not file.is_file():
            raise UserError(f"{folder}: holds no {file.name}; give an adapter's folder")
    values = read_json(path)
    config = _our_config(values, path)
    try:
        found = load_file(weights_path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights_path}: damaged ({error})") from error
    weights = {_our_name(name, weights_path): tensor for name, tensor in found.items()}
    return Adapter(config, {name: tensor.float() for name, tensor in weights.items()})


def check_base(folder: Path, model: Transformer) -> None:
    """Refuse an adapter folder whose base is another model than this one.

    An adapter that PEFT wrote does not say which weights it was trained on.

    Raises:
        UserError: the hashes differ.
    """
    wanted = read_json(folder / NOTES_FILE).get("base_sha256")
    if wanted is not None and wanted != base_hash(model):
        name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        raise UserError(
            f"{folder}: the adapter was trained on another base ({name}, SHA-256 "
            f"{str(wanted)[:12]}…); on this one's weights it would compute something else"
        )


def with_adapter(model: Transformer, folder: Path) -> Transformer:
    """Return a plain model, the base with the adapter of a folder merged; `model` stays as it was.

    Raises:
        UserError: see `load_adapter`, `check_base` and `put_adapter`.
    """
    adapter = load_adapter(folder)
    check_base(folder, model)
    weights = model.state_dict()
    copy = type(model).from_weights(model.config, weights, model.compute_dtype)
    try:
        put_adapter(copy, adapter)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    return merged(copy)


def _their_name(name: str) -> str:
    is_matrix = name.endswith((f".{LORA_A}", f".{LORA_B}"))
    return f"{PREFIX}{name}{'.weight' if is_matrix else ''}"


def _our_name(name: str, path: Path) -> str:
    if not name.startswith(PREFIX):
        raise UserError(f"{path}: holds {name}, which is no name of PEFT's")
    name = name.removeprefix(PREFIX)
    for part in (LORA_A, LORA_B, MAGNITUDE):
        name = name.replace(f".{part}.weight", f".{part}")
    return name


def _their_config(adapter: Adapter, base: str) -> dict[str, Any]:
    config = adapter.config
    others = [name.partition(".")[0] for name in adapter.weights if not is_adapter(name)]
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if "score" in others else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "target_modules": _targets(adapter.weights),
        "lora_dropout": config.lora_dropout,
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": sorted(set(others)) or None,
    }


def _targets(names: Iterable[str]) -> list[str]:
    """Return the shortest list that names the adapter's layers and no others."""
    layers = {name.removesuffix(f".{LORA_A}") for name in names if name.endswith(f".{LORA_A}")}
    kinds: dict[str, set[str]] = {}
    for layer in layers:
        _, _, number, kind = layer.split(".", 3)
        kinds.setdefault(kind, set()).add(number)
    everywhere = set().union(*kinds.values())
    short = {kind.rpartition(".")[2] for kind, numbers in kinds.items() if numbers == everywhere}
    kind_of = {layer: layer.rpartition(".")[2] for layer in layers}
    return sorted({kind if kind in short else layer for layer, kind in kind_of.items()})


def _our_config(values: Mapping[str, Any], path: Path) -> LoraConfig:
    if values.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {values.get('peft_type')!r}; Cygnet runs LORA")
    others = [name for name in _UNSUPPORTED if values.get(name)]
    if values.get("bias", "none") != "none":
        others.append("bias")
    if set(values.get("modules_to_save") or ()) - {"score"}:
        others.append("modules_to_save")
    drawn = values.get("init_lora_weights")
    if isinstance(drawn, str) and drawn.lower().startswith(_BASE_CHANGING):
        others.append("init_lora_weights")
    if others:
        given = values[others[0]]
        raise UserError(f"{path}: {others[0]} is {given!r}, which Cygnet cannot run")
    try:
        return LoraConfig(
            lora=True,
            lora_rank=int(values["r"]),
            lora_alpha=float(values["lora_alpha"]),
            lora_dropout=float(values.get("lora_dropout", 0.0)),
            use_dora=bool(values.get("use_dora", False)),
            use_rslora=bool(values.get("use_rslora", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: r, lora_alpha or lora_dropout is missing or wrong") from error
