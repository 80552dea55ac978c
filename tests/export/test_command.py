"""`cygnet export`: whole or not at all, and checked before it is called done."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import transformers

from cygnet import cli
from cygnet.config import ModelConfig
from cygnet.errors import UserError
from cygnet.export import command, engines
from cygnet.export.command import ExportCommand, export_command
from cygnet.export.huggingface import load_folder, save_folder
from cygnet.export.verify import Check, Probe, judge
from cygnet.files import write_atomic, write_json
from cygnet.text.tokenizer import Tokenizer, train_tokenizer
from tests.export.foreign import TEXTS
from tests.models import random_model

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2,
    intermediate_size=96, max_position=256,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


@pytest.fixture
def run(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A run folder of two stages, as `cygnet run` leaves it."""
    run = tmp_path / "swan"
    write_atomic(run / "config.yaml", "data: []\nout: swan\n")
    builtin = {"path": "builtin/recipes_en.jsonl.gz", "bytes": 12345, "sha256": "ab" * 32}
    own = {"path": "notes/diary.txt", "bytes": 7, "sha256": "cd" * 32}
    write_json(run / "data" / "manifest.json", {"inputs": [builtin, own]})
    for stage, steps in (("pretrain", 7), ("sft", 5)):
        settings = f"stage: {stage}\nversion: 0.1.0\ncommit: c0ffee\ntrain:\n  steps: {steps}\n"
        write_atomic(run / stage / "config.yaml", settings)
        metric = {"value": steps / 4, "low": 1.0, "high": 2.0, "count": 96}
        write_json(run / stage / "eval.json", {"metrics": {"bits_per_byte": metric}})
    save_folder(random_model(CONFIG), tokenizer, run / "model")
    return run


def test_a_folder_in_bf16_and_pieces_passes_transformers_and_ctranslate2(
    tmp_path: Path, run: Path
) -> None:
    pytest.importorskip("ctranslate2")
    out = tmp_path / "out"
    export_command(ExportCommand(model=run, quantize="bf16", out=out, max_shard_gb=5e-5))
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert theirs.dtype == torch.bfloat16
    manifest = json.loads((out / "export.json").read_text())
    engines = {check["engine"].split()[0] for check in manifest["checks"]}
    assert engines == {"rounding", "transformers", "ctranslate2"}
    assert all(c["figure"] <= c["bound"] for c in manifest["checks"] if c["bound"] is not None)


def test_the_card_tells_data_licences_metrics_and_how(tmp_path: Path, run: Path) -> None:
    export_command(ExportCommand(model=run, out=tmp_path / "out", verify=False))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for told in (
        "# swan", "Wikibooks", "CC BY-SA 4.0", "notes/diary.txt", "not recorded",
        "| bits_per_byte | 1.250 | 1.000 to 2.000 | 96 |", "commit `c0ffee`",
        "cygnet run run_config.yaml", "| pretrain | 7 |", "| sft | 5 |", "f32",
    ):  # fmt: skip
        assert told in card, told
    copied = (tmp_path / "out" / "run_config.yaml").read_text()
    assert copied == (run / "config.yaml").read_text()


def test_a_model_without_a_run_has_a_card_that_says_so(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    save_folder(random_model(CONFIG), tokenizer, tmp_path / "alone")
    out = tmp_path / "out"
    export_command(ExportCommand(model=tmp_path / "alone", out=out, verify=False))
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "# alone" in card and "No record of training data" in card and "Not evaluated" in card


@pytest.mark.parametrize("target", ["hf", "gguf", "ollama"])
def test_a_failed_check_leaves_what_was_there(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, target: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pytest.importorskip("xllamacpp")
    out = tmp_path / "out"
    arguments = ["export", str(run), "--to", target, "--quantize", "f32", "--out", str(out)]
    cli.main([*arguments, "--no-verify"])
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    right = Probe.log_probs
    monkeypatch.setattr(
        Probe, "log_probs", lambda self, tokens, exact=False: right(self, tokens[::-1], exact)
    )
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "differs from the model: log-probabilities" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "swan"]


def test_an_engine_that_breaks_is_named_and_nothing_is_written(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path, probe: Probe) -> list[Check]:
        raise RuntimeError("no\nsuch thing")

    monkeypatch.setattr(command, "check_transformers", broken)
    with pytest.raises(UserError, match=r"transformers cannot run the model \(no such thing\)"):
        export_command(ExportCommand(model=run, out=tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["swan"]


def test_not_a_number_is_out_of_bounds() -> None:
    figures = engines._figures("engine", [0.0, float("nan")], [0.0], 1.0)
    with pytest.raises(UserError, match="largest difference nan"):
        judge(figures, "table")


def test_a_single_file_is_put_in_its_place(tmp_path: Path, run: Path) -> None:
    pytest.importorskip("gguf")
    file = tmp_path / "swan.gguf"
    file.write_bytes(b"before")
    arguments = {"model": run, "to": "gguf", "out": file, "verify": False}
    export_command(ExportCommand(**arguments, quantize="q8_0"))
    assert file.read_bytes()[:4] == b"GGUF"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["swan", "swan.gguf"]


def test_an_export_takes_the_place_of_nothing_else(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UserError, match="no export"):
        export_command(ExportCommand(model=run, out=run, verify=False))
    with pytest.raises(UserError, match="is a folder"):
        export_command(ExportCommand(model=run, out=tmp_path / "x.gguf", verify=False))
    with pytest.raises(UserError, match="hf takes f32, f16, bf16"):
        export_command(ExportCommand(model=run, quantize="q4_0", out=tmp_path / "out"))


def test_weights_beyond_f16_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_model(CONFIG)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 7e4
    save_folder(model, tokenizer, tmp_path / "model")
    with pytest.raises(UserError, match=r"layers.1.mlp.up_proj.weight holds values beyond 65504"):
        export_command(
            ExportCommand(model=tmp_path / "model", quantize="f16", out=tmp_path / "out")
        )


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, run: Path) -> None:
    train_tokenizer(["quite another text, other words"] * 9, 290).save(run / "model")
    with pytest.raises(UserError, match="not the one that the model was trained with"):
        load_folder(run)


def test_the_modelfile_names_the_file_the_stops_and_the_context(tmp_path: Path, run: Path) -> None:
    pytest.importorskip("gguf")
    arguments = {"model": run, "to": "ollama", "out": tmp_path / "out", "verify": False}
    export_command(ExportCommand(**arguments))
    lines = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "FROM ./swan-q8_0.gguf" and (tmp_path / "out" / lines[0][7:]).is_file()
    assert {"PARAMETER num_ctx 256", 'PARAMETER stop "<|im_end|>"'} <= set(lines)
    (run / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(UserError, match="template of its own"):
        export_command(ExportCommand(**{**arguments, "out": tmp_path / "other"}))


def test_every_choice_of_the_command_line_can_be_written() -> None:
    hint = next(f for f in dataclasses.fields(ExportCommand) if f.name == "quantize")
    assert "Quantization" in str(hint.type)
    assert set(command.Quantization.__args__) == set(command.FILE_TYPES)  # type: ignore[attr-defined]
