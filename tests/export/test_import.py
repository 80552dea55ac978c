"""Imported = transformers (invariant 8), and exported back = what was imported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cygnet.errors import UserError
from cygnet.export.command import ExportCommand, ImportCommand, export_command, import_command
from cygnet.export.huggingface import find_model, load_folder
from cygnet.generate.runner import Part, Runner
from cygnet.text.chat import encode_chat, find_turns
from cygnet.text.tokenizer import Tokenizer
from tests.export.foreign import (
    LINEAR,
    LLAMA3_CONTROL,
    LLAMA3_ROPE,
    YARN,
    foreign_folder,
    llama3_tokenizer,
)

KINDS = [
    ("qwen3", {"tie_word_embeddings": True}),
    ("qwen3", {"rope_parameters": YARN}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("llama", {"rope_parameters": LLAMA3_ROPE}),
    ("llama", {"rope_parameters": LINEAR, "head_dim": 24}),
]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_imported_is_transformers_and_exported_back_is_the_same(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    theirs = foreign_folder(tmp_path / "theirs", kind, **settings)
    import_command(ImportCommand(folder=tmp_path / "theirs", out=tmp_path / "ours"))
    model, tokenizer = load_folder(tmp_path / "ours", torch.float32)
    tokens = torch.randint(0, 320, (2, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(tokens).logits
        full = model.logits(model(tokens))
        torch.testing.assert_close(full, expected, rtol=1e-4, atol=2e-4)
        runner = Runner(model, 2, 200)
        runner.prefill([Part(slot, 0, row[:150]) for slot, row in enumerate(tokens.tolist())])
        cached = runner.decode(tokens[:, 150:].tolist(), [150, 150])
        torch.testing.assert_close(cached, expected[:, 150:], rtol=1e-4, atol=2e-4)
    export_command(ExportCommand(model=tmp_path / "ours", out=tmp_path / "back", verify=False))
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert type(back) is type(theirs)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    with torch.no_grad():
        assert torch.equal(back(tokens).logits, expected)
    again = Tokenizer.load(tmp_path / "back")
    assert again.hash == Tokenizer.load(tmp_path / "theirs").hash == tokenizer.hash
    assert again.chat_template == tokenizer.chat_template


def test_parameters_are_counted(tmp_path: Path) -> None:
    for kind in ("qwen3", "qwen2", "llama"):
        theirs = foreign_folder(tmp_path / kind, kind)
        import_command(
            ImportCommand(folder=tmp_path / kind, out=tmp_path / f"{kind}-ours", verify=False)
        )
        model, _ = load_folder(tmp_path / f"{kind}-ours")
        assert model.config.num_parameters == sum(p.numel() for p in theirs.parameters())
        model.initialize(torch.Generator().manual_seed(0))
        biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
        assert bool(biases) == (kind == "qwen2")
        assert not any(bias.any() for bias in biases)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    (tmp_path / "tokenizer").mkdir()
    llama3_tokenizer(tmp_path / "tokenizer")
    return Tokenizer.load(tmp_path / "tokenizer")


CHAT = [
    {"role": "system", "content": " Be kind. "},
    {"role": "user", "content": "A swan?"},
    {"role": "assistant", "content": "the lake\n"},
    {"role": "user", "content": "白日依山尽 12,345"},
    {"role": "assistant", "content": "café"},
]


def test_a_foreign_template_gives_the_ids_of_transformers_and_labels_the_assistant(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    for prompt in (False, True):
        expected = theirs.apply_chat_template(
            CHAT, add_generation_prompt=prompt, tokenize=True, return_dict=False
        )
        assert encode_chat(tokenizer, CHAT, add_generation_prompt=prompt).ids == expected
    chat = encode_chat(tokenizer, CHAT)
    said = [i for i, is_label in zip(chat.ids, chat.is_label, strict=True) if is_label]
    assert tokenizer.decode(said) == "the lake<|eot_id|>café<|eot_id|>"
    assert tokenizer.im_end_id == tokenizer.special_ids["<|eot_id|>"]
    assert tokenizer.eos_id == tokenizer.special_ids["<|end_of_text|>"]


def test_no_text_becomes_a_control_token_of_another_maker(tokenizer: Tokenizer) -> None:
    spelt = "".join(LLAMA3_CONTROL) + "<think>assistant<|end_header_id|>\n\n"
    assert set(tokenizer.special_ids) == {*LLAMA3_CONTROL, "<think>"}
    assert not set(tokenizer.special_ids.values()) & set(tokenizer.encode(spelt))
    hostile = encode_chat(tokenizer, [{"role": "user", "content": spelt}])
    harmless = encode_chat(tokenizer, [{"role": "user", "content": "x"}])
    control = set(tokenizer.special_ids.values())
    assert [i for i in hostile.ids if i in control] == [i for i in harmless.ids if i in control]
    assert spelt.strip() in tokenizer.decode(hostile.ids)
    assert not any(hostile.is_label)


def test_a_template_that_marks_turns_with_ordinary_text_gives_no_labels(
    tokenizer: Tokenizer,
) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
    )
    assert find_turns(tokenizer) is None
    assert not any(encode_chat(tokenizer, CHAT).is_label)


def changed_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def changed_tokenizer(folder: Path, change: Any) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    change(values)
    (folder / "tokenizer.json").write_text(json.dumps(values))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1000])


def without_a_norm(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


REFUSED = [
    (pickled, r"pickled \(pytorch_model.bin\)"),
    (truncated, r"model.safetensors: truncated, [\d,]+ bytes of [\d,]+"),
    (without_a_norm, "lacks model.norm.weight"),
    (lambda f: changed_config(f, model_type="qwen3_moe"), "model_type is 'qwen3_moe'"),
    (lambda f: changed_config(f, attention_bias=True), "attention_bias"),
    (lambda f: changed_config(f, mlp_bias=True), "mlp_bias"),
    (lambda f: changed_config(f, hidden_act="gelu"), "hidden_act gelu"),
    (lambda f: changed_config(f, layer_types=["sliding_attention"] * 2), "sliding attention"),
    (lambda f: changed_config(f, quantization_config={"bits": 4}), "quantized weights"),
    (lambda f: changed_config(f, auto_map={"AutoModel": "x"}), "code of its own"),
    (lambda f: changed_config(f, rope_parameters={"rope_type": "longrope"}), "longrope"),
    (lambda f: changed_config(f, rope_parameters={**YARN, "beta_fast": 16}), "beta_fast 16"),
    (lambda f: changed_config(f, vocab_size=100), "tokenizer has"),
    (lambda f: changed_tokenizer(f, lambda v: v["model"].update(byte_fallback=True)), "Sentence"),
    (lambda f: changed_tokenizer(f, lambda v: v["added_tokens"][0].update(rstrip=True)), "spaces"),
    (lambda f: (f / "tokenizer.json").rename(f / "tokenizer.model"), "has tokenizer.model"),
    (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "an adapter"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), REFUSED)
def test_what_cannot_be_imported_is_named_and_nothing_is_written(
    tmp_path: Path, spoil: Any, message: str
) -> None:
    foreign_folder(tmp_path / "theirs", "llama")
    spoil(tmp_path / "theirs")
    with pytest.raises(UserError, match=message):
        import_command(ImportCommand(folder=tmp_path / "theirs", out=tmp_path / "ours"))
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_a_missing_shard_is_named_and_several_files_want_an_import(tmp_path: Path) -> None:
    foreign_folder(tmp_path / "theirs", "qwen2")
    with pytest.raises(UserError, match="cygnet import"):
        find_model(tmp_path / "theirs")
    shards = sorted((tmp_path / "theirs").glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises(UserError, match=f"{shards[1].name} is missing"):
        import_command(ImportCommand(folder=tmp_path / "theirs", out=tmp_path / "ours"))


def test_an_import_takes_the_place_of_nothing_else(tmp_path: Path) -> None:
    foreign_folder(tmp_path / "theirs", "llama")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "thesis.tex").write_text("years of work")
    for out in ("ours", "theirs"):
        with pytest.raises(UserError, match=r"another|new folder"):
            import_command(ImportCommand(folder=tmp_path / "theirs", out=tmp_path / out))
    assert (tmp_path / "ours" / "thesis.tex").exists()
