"""GGUF, the file format of llama.cpp and Ollama: weights, tokenizer and chat template in one file.

Written through the `gguf` library of the llama.cpp project. llama.cpp rotates neighbouring
dimensions in a Llama and half-split ones in Qwen2 and Qwen3, so a Llama's query and key rows are
put in that order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cygnet.config import ModelConfig
from cygnet.errors import UserError, require
from cygnet.export.architecture import model_type
from cygnet.model.rope import rope_frequencies
from cygnet.model.transformer import Transformer
from cygnet.text.tokenizer import PATTERN, Tokenizer

FILE_TYPES = {
    "f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0",
    "q6_k": "MOSTLY_Q6_K", "q5_k": "MOSTLY_Q5_K_S", "q5_1": "MOSTLY_Q5_1", "q5_0": "MOSTLY_Q5_0",
    "q4_k": "MOSTLY_Q4_K_S", "q4_1": "MOSTLY_Q4_1", "q4_0": "MOSTLY_Q4_0", "q3_k": "MOSTLY_Q3_K_S",
}  # fmt: skip
"""What can be written, and llama.cpp's names for files of it. `gguf.quants` writes all but the
K-quants, which it can only read; those are libgguf's."""
_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's, from its tokenizer.json."""


def write_gguf(
    model: Transformer, tokenizer: Tokenizer, path: Path, quantization: str, name: str
) -> None:
    """Write one GGUF file.

    Args:
        model: a Qwen3, Qwen2 or Llama.
        tokenizer: goes into the file, with its chat template.
        path: where to; written in place, so give a temporary one.
        quantization: one of FILE_TYPES, for the matrices; vectors stay float32.
        name: what programs show for the model.

    Raises:
        UserError: the `gguf` library is missing, or llama.cpp has no name for what the model does.
    """
    gguf: Any = require("gguf", "export")
    config = model.config
    splitting = pre_tokenizer_name(tokenizer)
    writer = gguf.GGUFWriter(path, model_type(config))
    _add_sizes(writer, gguf, config, name, quantization)
    _add_tokenizer(writer, gguf, tokenizer, config.vocab_size, splitting)
    for tensor_name, array, kind in _tensors(gguf, model, quantization):
        writer.add_tensor(tensor_name, _quantized(gguf, array, kind), raw_dtype=kind)
    if config.rope_scaling == "llama3":
        plain = config.rope_theta ** -(
            torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size
        )
        writer.add_tensor("rope_freqs.weight", (plain / rope_frequencies(config)).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rounded(model: Transformer, quantization: str) -> Transformer:
    """Return the model that a GGUF file of it holds: float32 weights after rounding."""
    gguf: Any = require("gguf", "export")
    weights = {}
    for name, tensor in model.state_dict().items():
        array = tensor.detach().float().cpu().numpy()
        kind = _kind(gguf, name, array, quantization)
        back = gguf.quants.dequantize(_quantized(gguf, array, kind), kind)
        weights[name] = torch.from_numpy(np.ascontiguousarray(back, dtype=np.float32)).clone()
    return Transformer.from_weights(model.config, weights, torch.float32)


def pre_tokenizer_name(tokenizer: Tokenizer) -> str:
    """Return llama.cpp's name for how this tokenizer splits text before it merges bytes.

    llama.cpp does not read the expression: it has a fixed list of them, each under a name.

    Raises:
        UserError: it has none for this one.
    """
    description = tokenizer.description()
    steps = _steps(description.get("pre_tokenizer") or {})
    ignores_merges = bool(description["model"].get("ignore_merges"))
    known = {
        ((("Split", PATTERN), ("ByteLevel", False)), False): "qwen2",
        ((("Split", LLAMA3_PATTERN), ("ByteLevel", False)), True): "llama-bpe",
        ((("ByteLevel", True),), False): "gpt-2",
        ((("Digits", True), ("ByteLevel", True)), False): "smollm",
    }
    found = known.get((steps, ignores_merges))
    if found is None:
        raise UserError(
            "gguf: llama.cpp has no name for the way in which this tokenizer splits text, so it "
            "would give other ids; export --to hf instead"
        )
    return found


def _steps(step: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return the pre-tokenizer as (kind, setting) pairs."""
    kind = step.get("type")
    if kind == "Sequence":
        return tuple(pair for inner in step["pretokenizers"] for pair in _steps(inner))
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return (("Split", step["pattern"].get("Regex")),)
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return (("ByteLevel", step["use_regex"]),)
    if kind == "Digits":
        return (("Digits", step["individual_digits"]),)
    return (("unknown", kind),)


def _add_sizes(writer: Any, gguf: Any, config: ModelConfig, name: str, quantization: str) -> None:
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[quantization]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_theta)
    if model_type(config) == "qwen2" and config.head_size * config.num_heads != config.hidden_size:
        raise UserError("gguf: llama.cpp takes a Qwen2 only with heads of hidden_size / num_heads")
    if config.rope_scaling == "llama3" and model_type(config) != "llama":
        raise UserError("gguf: llama.cpp knows llama3's rope_scaling in a Llama alone")
    if config.rope_scaling in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType[config.rope_scaling.upper()])
        writer.add_rope_scaling_factor(config.rope_factor)
    if config.rope_scaling == "yarn":
        writer.add_rope_scaling_orig_ctx_len(config.rope_original_max_position)


def _add_tokenizer(
    writer: Any, gguf: Any, tokenizer: Tokenizer, vocab_size: int, splitting: str
) -> None:
    description = tokenizer.description()
    special = {index: token for token, index in tokenizer.special_ids.items()}
    token_of = {index: token for token, index in description["model"]["vocab"].items()} | special
    tokens, types = [], []
    for index in range(vocab_size):
        kind = gguf.TokenType.CONTROL if index in special else gguf.TokenType.NORMAL
        tokens.append(token_of.get(index, f"[PAD{index}]"))
        types.append(kind if index in token_of else gguf.TokenType.UNUSED)
    merges = [
        merge if isinstance(merge, str) else " ".join(merge)
        for merge in description["model"]["merges"]
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    begins = tokenizer.special_ids.get(tokenizer.named_tokens.get("bos_token", ""))
    # Without one of its own llama.cpp would take entry 11.
    writer.add_bos_token_id(tokenizer.eos_id if begins is None else begins)
    writer.add_add_bos_token(tokenizer.begins_texts)
    writer.add_eos_token_id(tokenizer.im_end_id)
    writer.add_eot_token_id(tokenizer.im_end_id)
    writer.add_pad_token_id(tokenizer.eos_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _tensors(
    gguf: Any, model: Transformer, quantization: str
) -> Iterator[tuple[str, np.ndarray[Any, Any], Any]]:
    config = model.config
    for name, tensor in model.state_dict().items():
        array = tensor.detach().float().cpu().numpy()
        kind = _kind(gguf, name, array, quantization)
        if model_type(config) == "llama" and (heads := _num_rotated_heads(config, name)):
            array = _interleaved(array, heads)
        yield _gguf_name(name), np.ascontiguousarray(array), kind


def _kind(gguf: Any, name: str, array: np.ndarray[Any, Any], quantization: str) -> Any:
    """Return the type that a tensor is stored in."""
    kinds = gguf.GGMLQuantizationType
    if array.ndim == 1:
        return kinds.F32
    if quantization in ("f32", "f16", "bf16"):
        return kinds[quantization.upper()]
    # Rounding embeddings and output to few bits costs most. Rows hold whole blocks of weights that
    # share a scale: 256 in K-quants, else 32.
    is_outer = "embed_tokens" in name or "lm_head" in name
    wanted = kinds.Q8_0 if is_outer else kinds[quantization.upper()]
    fitting = (k for k in (wanted, kinds.Q8_0) if not array.shape[1] % gguf.GGML_QUANT_SIZES[k][0])
    return next(fitting, kinds.F16)


def _quantized(gguf: Any, array: np.ndarray[Any, Any], kind: Any) -> np.ndarray[Any, Any]:
    """Return the bytes of a tensor in a type, one row of bytes for each row."""
    if kind.name.endswith("_K"):
        return require("libgguf", "export").quantize_rows(array, int(kind))
    return gguf.quants.quantize(array, kind)


def _num_rotated_heads(config: ModelConfig, name: str) -> int:
    if ".q_proj." in name:
        return config.num_heads
    return config.num_kv_heads if ".k_proj." in name else 0


def _interleaved(array: np.ndarray[Any, Any], num_heads: int) -> np.ndarray[Any, Any]:
    """Reorder each head's rows from half-split to neighbouring pairs of dimensions."""
    halves = array.reshape(num_heads, 2, -1, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _gguf_name(name: str) -> str:
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer:
        return f"blk.{layer[1]}.{_NAMES[layer[2]]}.{layer[3]}"
    return f"{_NAMES[name.removesuffix('.weight')]}.weight"
