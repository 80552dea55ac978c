"""Model folders in the layout of Hugging Face: written, found and read without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cygnet.config import ModelConfig
from cygnet.errors import UserError
from cygnet.files import folder_atomic, write_json
from cygnet.model.transformer import Transformer
from cygnet.text.tokenizer import Tokenizer

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
PLACES = (".", "model", "dpo/model", "sft/model", "pretrain/model")
"""Where a folder that a person names may hold its model; of several, the first is taken."""

_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position",
    "rms_norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_embeddings",
}
"""Names in config.json and the names of our own settings; `rope_theta` comes beside them."""


def save_folder(
    model: Transformer, tokenizer: Tokenizer, folder: Path, extra: Mapping[str, Any] | None = None
) -> Path:
    """Write a folder that plain transformers loads as `Qwen3ForCausalLM`; return it.

    The weights are float32. The folder is there whole or not at all; one that stood there before
    is replaced. The same model gives the same bytes.

    Args:
        model: its config and weights.
        tokenizer: its files go beside the weights.
        folder: where to.
        extra: kept in config.json under `cygnet`, where other programs leave it alone.
    """
    weights = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in model.state_dict().items()
    }
    with folder_atomic(folder) as temporary:
        tokenizer.save(temporary)
        write_json(temporary / CONFIG_FILE, _transformers_config(model.config, tokenizer, extra))
        write_json(
            temporary / "generation_config.json",
            {
                "do_sample": True,
                "temperature": 0.8,
                "top_p": 0.95,
                "top_k": 0,
                "eos_token_id": [tokenizer.im_end_id, tokenizer.eos_id],
                "pad_token_id": tokenizer.eos_id,
            },
        )
        save_file(weights, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder


def find_model(path: Path) -> Path:
    """Return the model folder that a person means by a run folder or model folder.

    A run of several stages gives the last stage's model.

    Raises:
        UserError: there is none; says what is missing.
    """
    for place in PLACES:
        if all((path / place / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE)):
            return path / place
    if not path.exists():
        raise UserError(f"{path}: no such folder; give that of a finished run or of a model")
    present = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if (path / name).is_file()]
    if present:
        missing = WEIGHTS_FILE if present == [CONFIG_FILE] else CONFIG_FILE
        raise UserError(f"{path}: has {present[0]} but no {missing}, so it is no whole model")
    raise UserError(
        f"{path}: holds no model ({CONFIG_FILE} and {WEIGHTS_FILE}, there or in its model/); give "
        "the folder of a finished run or of a model"
    )


def load_folder(
    folder: Path, compute_dtype: torch.dtype = torch.float32
) -> tuple[Transformer, Tokenizer]:
    """Load a model folder or the last model of a run folder, with weights in float32 on the CPU.

    Args:
        folder: written by `save_folder`, or a Qwen3 of another maker in one weights file.
        compute_dtype: the type that the model will compute in.

    Raises:
        UserError: it is no model that Cygnet can run; names the file and what is wrong.
    """
    folder = find_model(folder)
    tokenizer = Tokenizer.load(folder)
    config = _read_config(folder / CONFIG_FILE)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} entries and the model only "
            f"{config.vocab_size}, so they are not of one model"
        )
    weights = _read_weights(folder / WEIGHTS_FILE, config)
    return Transformer.from_weights(config, weights, compute_dtype), tokenizer


def _transformers_config(
    config: ModelConfig, tokenizer: Tokenizer, extra: Mapping[str, Any] | None
) -> dict[str, Any]:
    sizes = {theirs: getattr(config, ours) for theirs, ours in _KEYS.items()}
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **sizes,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        # transformers reads rope_parameters; older versions and other engines read rope_theta.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": tokenizer.im_end_id,
        "pad_token_id": tokenizer.eos_id,
        **({"cygnet": dict(extra)} if extra else {}),
    }


def _read_config(path: Path) -> ModelConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(values, dict) or values.get("model_type") != "qwen3":
        kind = values.get("model_type") if isinstance(values, dict) else None
        raise UserError(f"{path}: model_type is {kind!r}; Cygnet runs models of type 'qwen3'")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    unsupported = {
        "attention_bias": values.get("attention_bias"),
        "use_sliding_window": values.get("use_sliding_window"),
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
    }
    for name, is_used in unsupported.items():
        if is_used:
            raise UserError(f"{path}: {name} is used, which Cygnet cannot run")
    settings = {ours: values[theirs] for theirs, ours in _KEYS.items() if theirs in values}
    missing = [theirs for theirs, ours in _KEYS.items() if ours not in settings]
    if missing := [name for name in missing if name not in ("head_dim", "tie_word_embeddings")]:
        raise UserError(f"{path}: lacks {', '.join(missing)}")
    settings.setdefault("head_dim", 128)  # defaults of transformers' Qwen3Config
    settings.setdefault("tie_embeddings", False)
    theta: Any = rope.get("rope_theta", values.get("rope_theta", 10_000.0))
    try:
        return ModelConfig(**settings, rope_theta=float(theta))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: a value is of the wrong type ({error})") from error


def _read_weights(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({error})") from error
    if config.tie_embeddings:
        found.pop("lm_head.weight", None)  # some writers store the shared matrix twice
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in Transformer(config).state_dict().items()}
    for name, shape in wanted.items():
        if name not in found:
            raise UserError(f"{path}: lacks {name}, so it does not fit its {CONFIG_FILE}")
        if found[name].shape != shape:
            raise UserError(
                f"{path}: {name} is {tuple(found[name].shape)}, and by its {CONFIG_FILE} it "
                f"should be {tuple(shape)}"
            )
    if unknown := sorted(found.keys() - wanted.keys()):
        raise UserError(f"{path}: holds {unknown[0]}, which a Qwen3 model does not have")
    # A copy: the tensors of a mapped file lie at addresses that slow matrix products down.
    return {name: tensor.to(torch.float32, copy=True) for name, tensor in found.items()}
