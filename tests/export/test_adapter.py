"""Adapters in PEFT's layout: `peft` loads ours, we load PEFT's, and both compute the same."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

from cygnet.errors import UserError
from cygnet.export.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    base_hash,
    load_adapter,
    save_adapter,
    with_adapter,
)
from cygnet.export.command import ExportCommand, ImportCommand, export_command, import_command
from cygnet.export.huggingface import load_folder, save_folder
from cygnet.files import read_json, write_json
from cygnet.model.lora import merged, put_adapter, take_adapter
from cygnet.model.scoring import ScoringTransformer
from cygnet.model.transformer import Transformer
from cygnet.text.tokenizer import train_tokenizer
from tests.export.foreign import TEXTS, foreign_folder
from tests.model.test_lora import trained
from tests.models import random_model

TOKENS = torch.randint(0, 299, (2, 40), generator=torch.Generator().manual_seed(0))
KINDS = [
    ("cygnet", {}), ("qwen3", {"use_dora": True}), ("qwen2", {"use_rslora": True}),
    ("llama", {"use_dora": True, "lora_targets": ("v_proj", "layers.1.mlp.down_proj")}),
]  # fmt: skip
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@torch.no_grad()
def logits(model: Transformer) -> Tensor:
    return model.logits(model(TOKENS))


def base_folder(kind: str, folder: Path) -> Path:
    if kind == "cygnet":
        return save_folder(random_model(), train_tokenizer(TEXTS, 300), folder)
    foreign_folder(folder / "theirs", kind)
    import_command(ImportCommand(folder=folder / "theirs", out=folder / "ours", verify=False))
    return folder / "ours"


def saved(base: Path, folder: Path, **settings: Any) -> Transformer:
    """Write an adapter of a base; return the model with it."""
    model, _ = load_folder(base)
    sha256 = base_hash(model)
    adapter = take_adapter(trained(model, **settings))
    assert adapter
    save_adapter(adapter, folder, str(base), sha256)
    return model


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_peft_loads_ours(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    base = base_folder(kind, tmp_path / "base")
    model = saved(base, tmp_path / "adapter", **settings)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        plain = theirs(TOKENS).logits
        both = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "adapter"))
        found = both(TOKENS).logits
        torch.testing.assert_close(found, logits(model), **CLOSE)
        assert (found - plain).abs().max() > 0.01
    back, _ = load_folder(base)
    torch.testing.assert_close(logits(with_adapter(back, tmp_path / "adapter")), found, **CLOSE)
    put_adapter(back, load_adapter(tmp_path / "adapter"))
    assert torch.equal(logits(back), logits(model))


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_we_load_pefts(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    base = base_folder(kind, tmp_path / "base")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    asked = {name: value for name, value in settings.items() if name.startswith("use_")}
    targets = list(settings.get("lora_targets", ())) or "all-linear"
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=targets, task_type="CAUSAL_LM")
    for name, value in asked.items():
        setattr(config, name, value)
    both = peft.get_peft_model(theirs, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in both.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        expected = both(TOKENS).logits
    both.save_pretrained(tmp_path / "adapter")
    model, _ = load_folder(base)
    assert (logits(model) - expected).abs().max() > 0.01
    torch.testing.assert_close(logits(with_adapter(model, tmp_path / "adapter")), expected, **CLOSE)
    put_adapter(model, load_adapter(tmp_path / "adapter"))
    torch.testing.assert_close(logits(model), expected, **CLOSE)


def test_targets_name_no_layer_that_has_no_adapter(tmp_path: Path) -> None:
    targets = ("v_proj", "layers.1.mlp.down_proj")
    saved(base_folder("cygnet", tmp_path / "base"), tmp_path / "adapter", lora_targets=targets)
    written = read_json(tmp_path / "adapter" / ADAPTER_CONFIG)["target_modules"]
    assert written == ["model.layers.1.mlp.down_proj", "v_proj"]


def test_an_adapter_is_exported_merged(tmp_path: Path) -> None:
    base = base_folder("cygnet", tmp_path / "base")
    model = saved(base, tmp_path / "adapter")
    export_command(
        ExportCommand(
            model=base, adapter=tmp_path / "adapter", out=tmp_path / "merged", verify=False
        )
    )
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(whole(TOKENS).logits, logits(model), **CLOSE)
    back, _ = load_folder(tmp_path / "merged")
    torch.testing.assert_close(logits(back), logits(model), **CLOSE)


def test_another_base_is_refused(tmp_path: Path) -> None:
    base = base_folder("cygnet", tmp_path / "base")
    saved(base, tmp_path / "adapter")
    model, _ = load_folder(base)
    before = base_hash(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    assert base_hash(model) != before
    with pytest.raises(UserError, match="trained on another base"):
        with_adapter(model, tmp_path / "adapter")


def test_a_base_is_the_same_in_other_files(tmp_path: Path) -> None:
    """The hash is of the weights: the maker's own folder serves where its import does."""
    foreign_folder(tmp_path / "theirs", "qwen3")
    import_command(ImportCommand(folder=tmp_path / "theirs", out=tmp_path / "ours", verify=False))
    first, again = (load_folder(tmp_path / name)[0] for name in ("theirs", "ours"))
    assert base_hash(first) == base_hash(again)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; Cygnet runs LORA"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save is"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"r": None}, "r, lora_alpha or lora_dropout is missing or wrong"),
    ],
)
def test_what_cygnet_cannot_run_is_refused(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    saved(base_folder("cygnet", tmp_path / "base"), tmp_path / "adapter")
    path = tmp_path / "adapter" / ADAPTER_CONFIG
    write_json(path, {**read_json(path), **change})
    with pytest.raises(UserError, match=told):
        load_adapter(tmp_path / "adapter")


def test_a_score_is_saved_with_its_adapter(tmp_path: Path) -> None:
    """A reward model's last layer is new, and PEFT loads it as one of `modules_to_save`."""
    base = base_folder("cygnet", tmp_path / "base")
    model = ScoringTransformer.around(load_folder(base)[0])
    sha256 = base_hash(model)
    assert sha256 == base_hash(load_folder(base)[0])
    trained(model)
    assert model.score.weight.requires_grad
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
        expected = model.scores(model(TOKENS))[:, -1]
        torch.testing.assert_close((plain := merged(model)).scores(plain(TOKENS))[:, -1], expected)
    adapter = take_adapter(model)
    assert adapter
    save_adapter(adapter, tmp_path / "adapter", str(base), sha256)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, pad_token_id=299
    )
    both = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(both(TOKENS).logits[:, 0], expected, **CLOSE)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    saved(base_folder("cygnet", tmp_path / "base"), tmp_path / "adapter")
    with pytest.raises(UserError, match=r"an adapter \(LoRA\), not a whole model; cygnet export"):
        load_folder(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"an adapter \(LoRA\), not a whole model"):
        import_command(ImportCommand(folder=tmp_path / "adapter", out=tmp_path / "out"))


def test_broken_adapters_are_refused(tmp_path: Path) -> None:
    base = base_folder("cygnet", tmp_path / "base")
    model, _ = load_folder(base)
    with pytest.raises(UserError, match=f"holds no {ADAPTER_CONFIG}; give an adapter's folder"):
        load_adapter(base)
    saved(base, tmp_path / "adapter", use_dora=True)
    path = tmp_path / "adapter" / ADAPTER_CONFIG
    write_json(path, {**json.loads(path.read_text()), "use_dora": False})
    with pytest.raises(UserError, match=r"lora_magnitude_vector, for which the model has no place"):
        with_adapter(model, tmp_path / "adapter")
    file = tmp_path / "adapter" / ADAPTER_WEIGHTS
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="damaged"):
        load_adapter(tmp_path / "adapter")
