"""`cygnet ppo` from folders to a folder: what it refuses, what it writes, and that it goes on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cygnet.commands.ppo import PpoCommand, ppo_command
from cygnet.config import TrainConfig
from cygnet.errors import UserError
from cygnet.export.adapter import with_adapter
from cygnet.export.huggingface import load_folder, save_folder
from cygnet.model.lora import LoraConfig
from cygnet.model.scoring import ScoringTransformer
from cygnet.stages.reinforcement.ppo import PpoConfig
from cygnet.text.tokenizer import Tokenizer
from tests.models import random_model

TRAIN = TrainConfig(
    steps=6, max_seq_len=96, micro_batch=2, dtype="fp32", device="cpu", compile="off", log_every=1,
    eval_every=3, checkpoint_every=3, learning_rate=1e-3,
)  # fmt: skip
SETTINGS = PpoConfig(
    answers_per_rollout=6, epochs_per_rollout=2, minibatches=2, max_new_tokens=8, heldout_prompts=2,
)  # fmt: skip


@pytest.fixture
def command(tokenizer: Tokenizer, tmp_path: Path) -> PpoCommand:
    """A policy, two reward models, and prompts of which a few are held out."""
    save_folder(random_model(), tokenizer, tmp_path / "start")
    for seed in (1, 2):
        scorer = ScoringTransformer.around(random_model(seed=seed))
        with torch.no_grad():
            scorer.score.weight.normal_(generator=torch.Generator().manual_seed(seed))
        save_folder(scorer, tokenizer, tmp_path / f"reward{seed}")
    prompts = [{"prompt": f"soup {number}"} for number in range(60)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    return PpoCommand(
        data=(str(tmp_path / "prompts.jsonl"),), from_=tmp_path / "start",
        reward_model=tmp_path / "reward1", judge_model=tmp_path / "reward2",
        out=tmp_path / "run", settings=SETTINGS, train=TRAIN,
    )  # fmt: skip


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_language_model_that_has_learnt(
    command: PpoCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    ppo_command(command)
    model, _ = load_folder(command.out)
    start, _ = load_folder(command.from_ or Path())
    assert model.state_dict().keys() == start.state_dict().keys()
    moved = [
        not torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), start.state_dict().values(), strict=True)
    ]
    assert all(moved)
    found = lines(command.out)
    rollouts = [line for line in found if "reward" in line]
    assert [line["step"] for line in rollouts] == [1, 5]
    assert all("judge_reward" in line for line in rollouts)
    assert rollouts[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert rollouts[1]["kl"] != 0
    assert [line["step"] for line in found if "heldout_judge_reward" in line] == [0, 3, 6]
    assert sum("value_loss" in line for line in found) == 6
    ppo_command(command)
    assert "up to date" in capsys.readouterr().err


def test_a_policy_learns_by_adapters_too(command: PpoCommand) -> None:
    """The value head is trained with them, and stays out of what is kept."""
    ppo_command(replace(command, lora=LoraConfig(lora=True, lora_rank=4)))
    start, _ = load_folder(command.from_ or Path())
    found, _ = load_folder(command.out)
    merged = with_adapter(start, command.out / "adapter")
    assert all(map(torch.equal, merged.state_dict().values(), found.state_dict().values()))
    rollouts = [line for line in lines(command.out) if "kl" in line]
    assert rollouts[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert rollouts[1]["kl"] != 0


def test_a_run_that_is_cut_within_a_rollout_goes_on_with_it(
    command: PpoCommand, tmp_path: Path
) -> None:
    ppo_command(command)
    cut = replace(command, out=tmp_path / "cut")
    ppo_command(cut)
    for file in (tmp_path / "cut" / "checkpoints" / "step_00000006").iterdir():
        file.unlink()
    shutil.rmtree(cut.out / "model")
    (cut.out / "metrics.jsonl").write_text("")
    ppo_command(cut)
    assert min(line["step"] for line in lines(cut.out)) == 4
    whole, again = (load_folder(run)[0].state_dict() for run in (command.out, cut.out))
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_the_values_may_begin_with_the_reward_models_head(
    command: PpoCommand, tmp_path: Path
) -> None:
    figures = {}
    for head in ("zero", "reward"):
        settings = replace(SETTINGS, value_head=head)
        run = replace(command, out=tmp_path / head, settings=settings)
        ppo_command(run)
        figures[head] = next(line for line in lines(run.out) if "explained_variance" in line)
    # A forecast of zero explains nothing; one that differs from token to token is never just that.
    assert figures["zero"]["explained_variance"] == pytest.approx(0, abs=1e-6)
    assert abs(figures["reward"]["explained_variance"]) > 1e-3


def test_what_cannot_be_is_refused(command: PpoCommand, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a model to start from"):
        ppo_command(replace(command, from_=None))
    with pytest.raises(UserError, match="needs a reward model: --reward_model"):
        ppo_command(replace(command, reward_model=None))
    with pytest.raises(UserError, match="reward model is wanted"):
        ppo_command(replace(command, reward_model=command.from_))
    with pytest.raises(UserError, match=r"--lora_dropout 0.1: ppo compares"):
        ppo_command(replace(command, lora=LoraConfig(lora=True, lora_dropout=0.1)))
    with pytest.raises(UserError, match=r"--tokens 4096: how many tokens a step of ppo"):
        ppo_command(replace(command, train=replace(TRAIN, steps=None, tokens=4096)))
    with pytest.raises(UserError, match="no prompt leaves room"):
        ppo_command(replace(command, train=replace(TRAIN, max_seq_len=12)))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "soup"}\n{"question": "water"}\n')
    with pytest.raises(UserError, match=r"prompts\.jsonl:2"):
        ppo_command(command)
