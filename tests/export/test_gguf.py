"""What llama.cpp computes from our GGUF files is what the model computes (invariant 7)."""

from pathlib import Path

import pytest
import torch

from cygnet.config import ModelConfig
from cygnet.errors import UserError
from cygnet.export import gguf_file
from cygnet.export.gguf_file import FILE_TYPES, pre_tokenizer_name, rounded, write_gguf
from cygnet.export.verify import Probe, judge
from cygnet.model.transformer import Transformer
from cygnet.text.tokenizer import Tokenizer, train_tokenizer
from tests.export.foreign import TEXTS, llama3_tokenizer
from tests.models import random_model

gguf = pytest.importorskip("gguf")
QWEN3 = ModelConfig(
    vocab_size=330, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32,
    intermediate_size=96, max_position=256,
)  # fmt: skip
SIZES = {**vars(QWEN3), "qk_norm": False}
LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_max_position": 64}
YARN = {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_max_position": 64}
MODELS = {
    "qwen3": QWEN3,
    "qwen3 untied": ModelConfig(**{**vars(QWEN3), "tie_embeddings": False}),
    "qwen3 yarn": ModelConfig(**{**vars(QWEN3), **YARN}),
    "qwen2": ModelConfig(**{**SIZES, "qkv_bias": True, "head_dim": 16}),
    "llama": ModelConfig(**SIZES),
    "llama llama3": ModelConfig(**{**SIZES, **LLAMA3}),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


def check(model: Transformer, tokenizer: Tokenizer, folder: Path, quantization: str) -> None:
    pytest.importorskip("xllamacpp")
    from cygnet.export.engines import check_llama_cpp

    write_gguf(model, tokenizer, folder / "model.gguf", quantization, "model")
    probe = Probe(model, rounded(model, quantization), tokenizer)
    judge(check_llama_cpp(folder / "model.gguf", probe, quantization), quantization)


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_is_the_model(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    check(random_model(MODELS[name]), tokenizer, tmp_path, "f32")


@pytest.mark.parametrize("quantization", [name for name in FILE_TYPES if name != "f32"])
def test_llama_cpp_reads_every_type_that_is_written(
    tmp_path: Path, tokenizer: Tokenizer, quantization: str
) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 288, "head_dim": 64}
    check(random_model(ModelConfig(**{**vars(QWEN3), **sizes})), tokenizer, tmp_path, quantization)


def test_a_llama_whose_rows_are_in_the_wrong_order_is_found_out(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "_interleaved", lambda array, heads: array)
    with pytest.raises(UserError, match="differs from the model: log-probabilities"):
        check(random_model(MODELS["llama"]), tokenizer, tmp_path, "f32")


def test_a_llama3_tokenizer_has_its_own_name_and_ids(tmp_path: Path) -> None:
    llama3_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert pre_tokenizer_name(tokenizer) == "llama-bpe"
    check(random_model(MODELS["llama"]), tokenizer, tmp_path, "f32")


def test_a_way_of_splitting_that_llama_cpp_has_no_name_for_is_refused(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace(r"|\\p{N}|", r"|\\p{N}{1,2}|"))
    with pytest.raises(UserError, match="no name for the way"):
        pre_tokenizer_name(Tokenizer.load(tmp_path))


def test_rounding_is_what_the_file_holds(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_model(QWEN3)
    write_gguf(model, tokenizer, tmp_path / "model.gguf", "q8_0", "model")
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    found = held["blk.1.ffn_gate.weight"]
    values = torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type).copy())
    ours = rounded(model, "q8_0").state_dict()["model.layers.1.mlp.gate_proj.weight"]
    assert torch.equal(values, ours)
    exact = model.state_dict()["model.layers.1.mlp.gate_proj.weight"]
    assert 0 < (ours - exact).abs().max() < 0.01


def test_ends_and_control_tokens_are_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_gguf(random_model(QWEN3), tokenizer, tmp_path / "model.gguf", "f32", "model")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    said = {name.removeprefix("tokenizer.ggml."): field for name, field in fields.items()}
    assert said["eos_token_id"].contents() == said["eot_token_id"].contents()
    assert said["eos_token_id"].contents() == tokenizer.im_end_id
    assert said["padding_token_id"].contents() == tokenizer.eos_id
    assert said["add_bos_token"].contents() is False
    types = said["token_type"].contents()
    control = [i for i, kind in enumerate(types) if kind == gguf.TokenType.CONTROL]
    assert control == sorted(tokenizer.special_ids.values())
    assert set(types[tokenizer.vocab_size :]) == {gguf.TokenType.UNUSED}
