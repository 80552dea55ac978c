"""config.json of Qwen3, Qwen2 and Llama, and our own `ModelConfig`: one from the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cygnet.config import ModelConfig
from cygnet.errors import UserError
from cygnet.files import read_json
from cygnet.text.tokenizer import Tokenizer

CONFIG_FILE = "config.json"
ARCHITECTURES = {
    "qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM",
}  # fmt: skip
"""`model_type` and the class of transformers."""
SCORER = "ForSequenceClassification"
"""What stands in place of `ForCausalLM` in the name of a reward model's class."""
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
"""Names in config.json and the names of our own settings; the rotary ones come beside them."""
_TYPES: dict[str, type] = {"rms_norm_eps": float, "tie_embeddings": bool}
"""Of what is no whole number."""
_DEFAULTS = {
    "qwen3": {"head_dim": 128, "num_kv_heads": 32, "max_position": 32768, "rms_norm_eps": 1e-6},
    "qwen2": {"num_kv_heads": 32, "max_position": 32768, "rms_norm_eps": 1e-6},
    "llama": {"max_position": 2048, "rms_norm_eps": 1e-6},
}
"""What transformers takes where config.json says nothing."""
_ROPE_KEYS = {
    "linear": {"factor"},
    "llama3": {
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    },
    "yarn": {
        "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate",
        "attention_factor", "mscale", "mscale_all_dim",
    },
}  # fmt: skip
_ROPE_VALUES: dict[str, tuple[Any, ...]] = {
    "low_freq_factor": (1,), "high_freq_factor": (4,), "beta_fast": (None, 32),
    "beta_slow": (None, 1), "truncate": (None, True), "attention_factor": (None,),
    "mscale": (None, 0), "mscale_all_dim": (None, 0), "partial_rotary_factor": (None, 1),
}  # fmt: skip
"""The values that `cygnet/model/rope.py` computes with; no released Qwen or Llama has others."""


def model_type(config: ModelConfig) -> str:
    """Return the `model_type` of transformers that computes what this config says."""
    if config.qk_norm:
        return "qwen3"
    return "qwen2" if config.qkv_bias else "llama"


def transformers_config(
    config: ModelConfig,
    tokenizer: Tokenizer,
    dtype: str = "float32",
    extra: Mapping[str, Any] | None = None,
    is_scorer: bool = False,
) -> dict[str, Any]:
    """Return config.json.

    Args:
        config: of the model.
        tokenizer: gives the ids of control tokens.
        dtype: type of the stored weights.
        extra: kept under `cygnet`, where other programs leave it alone.
        is_scorer: of a reward model: a sequence classifier of one label.
    """
    kind = model_type(config)
    name, label = ARCHITECTURES[kind], {}
    if is_scorer:
        name = name.replace("ForCausalLM", SCORER)
        label = {"id2label": {"0": "score"}, "label2id": {"score": 0}}
    bos = tokenizer.special_ids.get(tokenizer.named_tokens.get("bos_token", ""))
    # mistral.rs wants all three of a Qwen's.
    window = {
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": config.num_layers,
    }  # fmt: skip
    biases = {"qwen3": {"attention_bias": False}, "llama": {"attention_bias": False}}
    if kind == "llama":
        biases["llama"]["mlp_bias"] = False
    sizes = {theirs: getattr(config, ours) for theirs, ours in _KEYS.items()}
    return {
        "architectures": [name],
        "model_type": kind,
        **label,
        **sizes,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        **biases.get(kind, {}),
        "attention_dropout": 0.0,
        **({} if kind == "llama" else window),
        **_rope(config),
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": dtype,
        "bos_token_id": bos,
        "eos_token_id": tokenizer.im_end_id,
        "pad_token_id": tokenizer.eos_id,
        "cygnet": {"tokenizer": tokenizer.vocabulary_hash, **(extra or {})},
    }


def read_config(path: Path) -> ModelConfig:
    """Read a config.json.

    Raises:
        UserError: it cannot be read, or the model is one that Cygnet cannot run; names what.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{path}: model_type is {kind!r}; Cygnet runs models of type {known}")
    _refuse_unsupported(values, path)
    settings = {
        ours: values[theirs] for theirs, ours in _KEYS.items() if values.get(theirs) is not None
    }
    for name, default in _DEFAULTS[kind].items():
        settings.setdefault(name, default)
    settings.setdefault("num_kv_heads", settings.get("num_heads"))
    settings.setdefault("tie_embeddings", False)
    settings.setdefault("head_dim", None)
    if missing := [theirs for theirs, ours in _KEYS.items() if ours not in settings]:
        raise UserError(f"{path}: lacks {', '.join(missing)}")
    for theirs, ours in _KEYS.items():
        value, wanted = settings[ours], _TYPES.get(ours, int)
        if value is not None and type(value) not in (wanted, int if wanted is float else wanted):
            raise UserError(f"{path}: {theirs} is {value!r}; it must be of type {wanted.__name__}")
    rope = _read_rope(values, path)
    try:
        return ModelConfig(**settings, **rope, qk_norm=kind == "qwen3", qkv_bias=kind == "qwen2")
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: a value is of the wrong type ({error})") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_notes(folder: Path) -> dict[str, Any]:
    """Return what Cygnet wrote under its own name into a folder's config.json; {} for none."""
    notes = read_json(folder / CONFIG_FILE).get("cygnet")
    return notes if isinstance(notes, dict) else {}


def scores_of(path: Path) -> int:
    """Return how many numbers the classifier of a config.json gives; 0 for a language model."""
    values = read_json(path)
    names = values.get("architectures") or []
    if not any(str(name).endswith(SCORER) for name in names):
        return 0
    return len(values.get("id2label") or (0, 1))  # transformers leaves two labels unsaid


def _refuse_unsupported(values: Mapping[str, Any], path: Path) -> None:
    sliding = values.get("layer_types") or []
    unsupported = {
        "attention_bias (a bias on the attention's output)": values.get("attention_bias"),
        "mlp_bias": values.get("mlp_bias"),
        "use_sliding_window": values.get("use_sliding_window"),
        "layer_types (sliding attention)": any(kind != "full_attention" for kind in sliding),
        "quantization_config (quantized weights)": values.get("quantization_config"),
        "auto_map (code of its own)": values.get("auto_map"),
        f"hidden_act {values.get('hidden_act')}": values.get("hidden_act", "silu") != "silu",
    }
    for name, is_used in unsupported.items():
        if is_used:
            raise UserError(f"{path}: {name} is used, which Cygnet cannot run")


def _rope(config: ModelConfig) -> dict[str, Any]:
    """Return the rotary settings, for transformers of now and for what reads older files."""
    scaling: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling != "none":
        scaling = {"rope_type": config.rope_scaling, "factor": config.rope_factor}
    if config.rope_scaling in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = config.rope_original_max_position
    if config.rope_scaling == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    # transformers reads rope_parameters; older versions and other engines read the other two.
    older = {} if config.rope_scaling == "none" else {"rope_scaling": scaling}
    return {
        "rope_theta": config.rope_theta,
        **older,
        "rope_parameters": {**scaling, "rope_theta": config.rope_theta},
    }


def _read_rope(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta", values.get("rope_theta") or 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if kind != "default":
        if kind not in _ROPE_KEYS:
            raise UserError(
                f"{path}: rope_scaling {kind!r} is used; Cygnet runs {', '.join(_ROPE_KEYS)}"
            )
        known |= _ROPE_KEYS[kind]
    for name, value in rope.items():
        if name not in known or (name in _ROPE_VALUES and value not in _ROPE_VALUES[name]):
            raise UserError(f"{path}: rope_scaling {kind} with {name} {value} is not supported")
    if kind == "default":
        return {"rope_theta": theta}
    original = rope.get("original_max_position_embeddings")
    if kind != "linear" and original is None:
        original = values.get("max_position_embeddings")
    return {
        "rope_theta": theta,
        "rope_scaling": kind,
        "rope_factor": float(rope["factor"]),
        "rope_original_max_position": original,
    }
