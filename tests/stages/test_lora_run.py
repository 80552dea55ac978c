"""`--lora`: the run keeps the adapter and a plain model, and both compute what was trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cygnet.config import TrainConfig
from cygnet.errors import UserError
from cygnet.export.adapter import base_hash, load_adapter, with_adapter
from cygnet.export.huggingface import load_folder, load_scorer, save_folder
from cygnet.files import JsonlWriter, read_json, write_json
from cygnet.model.lora import LoraConfig, put_adapter
from cygnet.model.scoring import ScoringTransformer
from cygnet.model.transformer import Transformer
from cygnet.stages.preference.dpo import DpoConfig, dpo
from cygnet.stages.preference.reward import RewardConfig, reward
from cygnet.stages.reinforcement.grpo import GrpoConfig
from cygnet.stages.reinforcement.grpo_run import grpo
from cygnet.stages.sft import sft
from cygnet.text.tokenizer import Tokenizer
from tests.models import random_model
from tests.stages.reinforcement.test_grpo import ByFunction, by_length

CONFIG = TrainConfig(
    steps=8, batch_tokens=4 * 128, max_seq_len=128, learning_rate=0.02, dtype="fp32",
    compile="off", micro_batch=2, log_every=1, checkpoint_every=3,
)  # fmt: skip
LORA = LoraConfig(lora=True, lora_rank=4)
TOKENS = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def start(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    return save_folder(random_model(), tokenizer, tmp_path / "start")


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    for name in ("train.jsonl.zst", "heldout.jsonl.zst"):
        with JsonlWriter(folder / name) as writer:
            for i in range(20):
                turns = [("user", f"How do I make soup {i}?"), ("assistant", "Boil the water.")]
                messages = [{"role": role, "content": said} for role, said in turns]
                writer.write({"messages": messages, "source": f"mine.jsonl:{i}"})
    write_json(folder / "manifest.json", {})
    return folder


@torch.no_grad()
def logits(model: Transformer) -> Tensor:
    return model.logits(model(TOKENS))


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tuned(chats: Path, start: Path, run: Path, config: TrainConfig = CONFIG, **lora: Any) -> Path:
    wanted = LoraConfig(lora=True, lora_rank=4, **lora)
    return sft(chats, start, run.parent / "shards", run, config, lora=wanted)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True, "lora_dropout": 0.1}])
def test_a_run_keeps_adapter_and_model(
    chats: Path, start: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    model, _ = load_folder(tuned(chats, start, run, **settings))
    base, _ = load_folder(start)
    assert read_json(run / "adapter/cygnet.json")["base_sha256"] == base_hash(base)
    assert (logits(model) - logits(base)).abs().max() > 0.1
    assert torch.equal(logits(with_adapter(base, run / "adapter")), logits(model))
    heldout = [line["heldout_loss"] for line in metrics(run) if "heldout_loss" in line]
    assert heldout[-1] < 0.7 * heldout[0]
    file = max((run / "checkpoints").iterdir()) / "rank_00000.safetensors"
    assert file.stat().st_size < 0.7 * (start / "model.safetensors").stat().st_size


def test_a_second_run_has_nothing_to_do_and_one_with_other_adapters_is_refused(
    chats: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    tuned(chats, start, run)
    tuned(chats, start, run)
    assert "up to date, nothing to do" in capsys.readouterr().err
    with pytest.raises(UserError, match="lora_alpha"):
        tuned(chats, start, run, lora_alpha=3.0)


def test_stopped_and_resumed_is_never_stopped(chats: Path, start: Path, tmp_path: Path) -> None:
    """With dropout, whose generator goes on where it stood."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run in (whole, cut):
        tuned(chats, start, run, lora_dropout=0.3)
    for file in (cut / "checkpoints/step_00000008").iterdir():
        file.unlink()
    for name in ("model", "adapter"):
        for file in (cut / name).iterdir():
            file.unlink()
        (cut / name).rmdir()
    (cut / "metrics.jsonl").write_text("")
    tuned(chats, start, cut, lora_dropout=0.3)
    assert metrics(cut)[0]["step"] == 7
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_a_base_in_4_bits_gives_the_model_that_was_trained(
    chats: Path, start: Path, tmp_path: Path
) -> None:
    model, _ = load_folder(tuned(chats, start, tmp_path / "run", quantize="nf4"))
    base, _ = load_folder(start)
    adapter = load_adapter(tmp_path / "run/adapter")
    packed = LoraConfig(lora=True, lora_rank=4, quantize="nf4")
    put_adapter(base, type(adapter)(packed, adapter.weights))
    torch.testing.assert_close(logits(model), logits(base), rtol=1e-4, atol=1e-4)


def write_pairs(folder: Path) -> Path:
    folder.mkdir()
    for name in ("train.jsonl.zst", "heldout.jsonl.zst"):
        with JsonlWriter(folder / name) as writer:
            for i in range(12):
                prompt = [{"role": "user", "content": f"soup {i}"}]
                writer.write({"prompt": prompt, "chosen": "boil water", "rejected": "How salt"})
    return folder


def test_preferences_are_learnt_by_adapters_too(start: Path, tmp_path: Path) -> None:
    """The reference is the base: the first margin is zero."""
    run, pairs = tmp_path / "run", write_pairs(tmp_path / "pairs")
    dpo(pairs, start, tmp_path, run, CONFIG, DpoConfig(), lora=LORA)
    lines = metrics(run)
    assert lines[0]["heldout_margin"] == pytest.approx(0, abs=1e-4)
    assert lines[-1]["heldout_margin"] > 0.1
    base, _ = load_folder(start)
    found, _ = load_folder(run)
    assert torch.equal(logits(with_adapter(base, run / "adapter")), logits(found))


def test_a_reward_model_learns_by_adapters_and_its_score(start: Path, tmp_path: Path) -> None:
    run, pairs = tmp_path / "run", write_pairs(tmp_path / "pairs")
    reward(pairs, start, run, CONFIG, RewardConfig(), lora=LORA)
    base = ScoringTransformer.around(load_folder(start)[0])
    found, _ = load_scorer(run)
    merged = with_adapter(base, run / "adapter")
    with torch.no_grad():
        scores = found.scores(found(TOKENS))
        assert torch.equal(merged.scores(merged(TOKENS)), scores)
    assert scores.std() > 0


def test_what_earns_is_learnt_by_adapters_too(start: Path, tmp_path: Path) -> None:
    """The merged model answers, and the adapter learns from it."""
    run, rows = tmp_path / "run", [{"prompt": f"soup {i}"} for i in range(6)]
    method = GrpoConfig(prompts_per_step=2, group_size=4, max_new_tokens=8)
    config = replace(CONFIG, steps=2, learning_rate=1e-3)
    grpo((rows[:4], rows[4:]), ByFunction(by_length), start, run, config, method, lora=LORA)
    base, _ = load_folder(start)
    found, _ = load_folder(run)
    assert torch.equal(logits(with_adapter(base, run / "adapter")), logits(found))
    assert not torch.equal(logits(base), logits(found))
    with pytest.raises(UserError, match=r"--lora_dropout 0.1: grpo compares.*leave it at 0"):
        dropping = replace(LORA, lora_dropout=0.1)
        grpo((rows[:4], rows[4:]), ByFunction(by_length), start, run, config, method, lora=dropping)
    told = [line["mismatch"] for line in metrics(run) if "mismatch" in line]
    assert len(told) == 2 and max(told) < 1e-4  # what samples is what is trained
