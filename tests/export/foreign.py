"""Models and tokenizers as other makers publish them, small and random."""

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from cygnet.export.gguf_file import LLAMA3_PATTERN
from cygnet.files import write_json
from cygnet.text.tokenizer import train_tokenizer

TEXTS = [
    "A swan, a lake; 白日依山尽，黄河入海流。 12,345 naïve café 🦢",
    "The swan swims the lake.",
] * 3
SIZES = {
    "vocab_size": 330, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 256,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
CONFIGS: dict[str, Any] = {
    "qwen3": lambda **k: transformers.Qwen3Config(**SIZES, head_dim=32, **k),
    "qwen2": lambda **k: transformers.Qwen2Config(**SIZES, **k),
    "llama": lambda **k: transformers.LlamaConfig(**SIZES, **k),
}
LLAMA3_TEMPLATE = (
    "{{- bos_token }}{%- for m in messages %}{{- '<|start_header_id|>' + m.role + "
    "'<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{%- endif %}"
)
LLAMA3_CONTROL = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>",
)  # fmt: skip


def foreign_model(kind: str, **settings: Any) -> Any:
    """Return a random model of transformers, in which every weight shows."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind](**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            offset = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(offset + 0.1 * torch.randn(parameter.shape))
    return model


def llama3_tokenizer(folder: Path) -> None:
    """Write a tokenizer in the way of Llama 3, with a control token that is not marked special."""
    inner = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator(TEXTS, trainer)
    inner.add_special_tokens(list(LLAMA3_CONTROL))
    inner.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    begin = "<|begin_of_text|>"
    inner.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, inner.token_to_id(begin))]
    )
    inner.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin,
            "eos_token": {"__type": "AddedToken", "content": "<|eot_id|>"},
            "chat_template": LLAMA3_TEMPLATE,
        },
    )  # fmt: skip


def foreign_folder(folder: Path, kind: str, **settings: Any) -> Any:
    """Write a whole model folder; return the model."""
    model = foreign_model(kind, **settings)
    model.save_pretrained(folder, max_shard_size="60KB" if kind == "qwen2" else "5GB")
    if kind == "llama":
        llama3_tokenizer(folder)
    else:
        # transformers splits text in Qwen's way for these, and in a Qwen2 brings it to NFC first,
        # whatever tokenizer.json says.
        train_tokenizer(TEXTS, 300).save(folder)
    if kind == "qwen2":
        values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        write_json(folder / "tokenizer.json", {**values, "normalizer": {"type": "NFC"}})
    return model
