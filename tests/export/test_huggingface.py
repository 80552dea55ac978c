"""The exported folder is an ordinary Qwen3 to transformers (invariant 7)."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from cygnet.config import ModelConfig
from cygnet.errors import UserError
from cygnet.export.huggingface import find_model, load_folder, save_folder
from cygnet.text.tokenizer import Tokenizer, train_tokenizer
from tests.models import random_model

TEXT = "A swan, a lake; 白日依山尽，黄河入海流。 <|im_start|> 12,345 naïve café 🦢"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT] * 3, 320)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head_dim", [None, 32])
def test_transformers_gives_the_same_logits_and_ids(
    tmp_path: Path, tokenizer: Tokenizer, tied: bool, head_dim: int | None
) -> None:
    config = ModelConfig(
        vocab_size=320, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2,
        head_dim=head_dim, intermediate_size=96, rope_theta=12_345.0, rms_norm_eps=0.01,
        tie_embeddings=tied,
    )  # fmt: skip
    model = random_model(config)
    folder = save_folder(model, tokenizer, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(theirs, transformers.Qwen3ForCausalLM)
    tokens = torch.randint(0, 320, (2, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(tokens).logits
        found = model.logits(model(tokens))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 12_345.0
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    plain = TEXT.replace("<|im_start|>", "")
    assert their_tokenizer(plain)["input_ids"] == tokenizer.encode(plain)


def test_a_saved_folder_loads_to_the_same_model_and_is_the_same_bytes_twice(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    model = random_model()
    one, two = (save_folder(model, tokenizer, tmp_path / name) for name in "ab")
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes()
    loaded, loaded_tokenizer = load_folder(one)
    assert loaded.config == ModelConfig(**{**vars(model.config), "head_dim": 16})
    assert loaded_tokenizer.hash == tokenizer.hash
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_a_model_that_transformers_made_is_read(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = transformers.Qwen3Config(
        vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, intermediate_size=96, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.Qwen3ForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    model, _ = load_folder(tmp_path / "theirs")
    tokens = torch.arange(200)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            model.logits(model(tokens)), theirs(tokens).logits, rtol=1e-4, atol=1e-4
        )


def test_the_last_stage_of_a_run_is_taken(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for stage in ("pretrain", "sft"):
        save_folder(random_model(), tokenizer, tmp_path / stage / "model")
    assert find_model(tmp_path) == tmp_path / "sft/model"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has config.json but no"),
        (lambda folder: (folder / "config.json").write_text("{}"), "model_type is None"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "damaged"),
    ],
)
def test_what_is_no_model_is_refused_by_name(
    tmp_path: Path, tokenizer: Tokenizer, spoil: object, message: str
) -> None:
    folder = save_folder(random_model(), tokenizer, tmp_path / "model")
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        load_folder(folder)


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        load_folder(tmp_path)
