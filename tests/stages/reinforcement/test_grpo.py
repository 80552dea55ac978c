"""What a GRPO step learns from, what it tells, and when it warns or stops."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cygnet.config import TrainConfig
from cygnet.errors import UserError
from cygnet.model.lora import LoraConfig, add_lora
from cygnet.model.transformer import Transformer
from cygnet.stages.reinforcement.groups import is_held_out
from cygnet.stages.reinforcement.grpo import GrpoBatch, GrpoConfig, GrpoStage
from cygnet.stages.reinforcement.grpo_losses import k3_kl
from cygnet.stages.reinforcement.grpo_metrics import reward_parts
from cygnet.stages.reinforcement.rollout import Episode
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.guards import RunStopped
from cygnet.train.hardware import find_hardware
from cygnet.train.parallel.single import Single
from tests.models import random_model

ROWS = [{"prompt": f"soup {number}"} for number in range(6)]


@dataclass(frozen=True)
class Worth:
    total: float
    parts: dict[str, float]
    failure: str | None = None


class ByFunction:
    """A judge of one plain function; none for an answer that it cannot judge."""

    def __init__(self, value: Callable[[str], float | None]) -> None:
        self.value, self.num_failures, self.first_failure = value, 0, None

    def judge(self, answer: str, row: Any, messages: Any = None) -> Worth:
        found = self.value(answer)
        if found is None:
            self.num_failures += 1
            self.first_failure = self.first_failure or "no value"  # type: ignore[assignment]
            return Worth(0.0, {}, "no value")
        return Worth(found, {"rule": found})


def by_length(answer: str) -> float:
    return len(answer) % 5 / 5


def stage(
    tokenizer: Tokenizer, value: Callable[[str], float | None] = by_length,
    reference: Transformer | None = None, **method: Any,
) -> GrpoStage:  # fmt: skip
    settings = {"prompts_per_step": 3, "group_size": 4, "max_new_tokens": 12} | method
    return GrpoStage(
        tokenizer, ROWS[:4], ROWS[4:], ByFunction(value), GrpoConfig(**settings), 64, seed=0,
        reference=reference,
    )  # fmt: skip


def step(made: GrpoStage, model: Transformer, batch: GrpoBatch) -> torch.Tensor:
    model.zero_grad()
    total, _ = made.loss(model, batch)
    (total / made.weight(batch)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_steps_make_what_is_rewarded_likelier(tokenizer: Tokenizer) -> None:
    model = random_model()
    made = stage(tokenizer, lambda answer: answer.count("a"), prompts_per_step=4, group_size=16)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    rewards = []
    for number in range(12):
        rewards.append(made.collect(number, lambda: model)["reward"])
        step(made, model, made.batch(number))
        optimizer.step()
    assert sum(rewards[-3:]) > 3 * sum(rewards[:3])


@pytest.mark.parametrize(
    "settings", [{}, {"use_dora": True}, {"quantize": "nf4"}], ids=["lora", "dora", "nf4"]
)
def test_an_adapted_model_is_the_policy_that_it_is_compared_with(
    tokenizer: Tokenizer, settings: dict[str, Any]
) -> None:
    """In bf16 a merged matrix is rounded otherwise, which clips a third of GSPO's tokens."""
    model = random_model()
    model.compute_dtype = torch.bfloat16
    single = adapted(model, settings)
    made = stage(tokenizer, loss="gspo", group_size=8, updates_per_rollout=2)
    with torch.no_grad():
        made.collect(0, single.whole)
    batch = made.batch(0)
    _, metrics = made.loss(model, batch)
    assert batch.advantages.any()
    assert metrics["clipped"] == 0 and metrics["step_kl"] == 0
    assert metrics["mismatch"] > 0  # the merged model, which answers, is told apart


def adapted(model: Transformer, settings: dict[str, Any]) -> Single:
    """Put an adapter on a model that has learnt something already."""
    generator = torch.Generator().manual_seed(1)
    add_lora(model, LoraConfig(lora=True, **settings), generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(0, 0.02, generator=generator)
    config = TrainConfig(device="cpu")
    return Single(model, config, find_hardware(config))


def test_answers_without_an_advantage_are_left_out_and_change_no_gradient(
    tokenizer: Tokenizer, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for everything in (False, True):
        made = stage(tokenizer, lambda answer: float(len(answer) % 4 == 0), group_size=3)
        if everything:
            monkeypatch.setattr(made, "_kept", lambda episodes, *_: list(range(len(episodes))))
        told = made.collect(0, lambda: model)
        found.append((made.batch(0), step(made, model, made.batch(0))))
    assert 0 < told["zero_groups"] < 1
    assert found[0][0].num_labels < found[1][0].num_labels
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def test_groups_without_a_signal_are_drawn_anew_by_choice(
    tokenizer: Tokenizer, model: Transformer
) -> None:
    rare = {"group_size": 2, "prompts_per_step": 4}
    once = stage(tokenizer, lambda answer: float("o" in answer), **rare)
    told = once.collect(0, lambda: model)
    again = stage(tokenizer, lambda answer: float("o" in answer), resample=3, **rare)
    more = again.collect(0, lambda: model)
    assert told["resampled_groups"] == 0 < more["resampled_groups"]
    assert int((again.batch(0).advantages != 0).sum()) > int((once.batch(0).advantages != 0).sum())
    # Prompts that were used are not used again.
    assert again.cursor == 4 + more["resampled_groups"]


def test_a_rollout_serves_several_steps_and_is_whole_after_resuming(
    tokenizer: Tokenizer, model: Transformer
) -> None:
    made = stage(tokenizer, updates_per_rollout=2)
    assert made.collect(0, lambda: model)
    assert made.collect(1, lambda: model) == {}
    other = stage(tokenizer, updates_per_rollout=2)
    other.load_state(made.state())
    assert other.collect(1, lambda: model) == {}
    for name in GrpoBatch.BLANK:
        assert torch.equal(getattr(made.batch(1), name), getattr(other.batch(1), name))
    assert made.collect(2, lambda: model)["reward"] == other.collect(2, lambda: model)["reward"]


@pytest.mark.parametrize("updates", [1, 2])
def test_the_mismatch_of_one_precision_is_rounding_and_of_two_is_told(
    tokenizer: Tokenizer, model: Transformer, updates: int
) -> None:
    def told(name: str) -> float:
        made = stage(tokenizer, updates_per_rollout=updates)
        made.collect(0, lambda: model)
        _, metrics = made.loss(model, made.batch(0))
        return float(metrics[name]) / made.weight(made.batch(0))

    assert 0 < told("mismatch") < 1e-5 and told("mismatch_capped") == 0
    model.compute_dtype = torch.bfloat16
    assert 1e-4 < told("mismatch") < 0.1


def test_the_first_update_needs_no_pass_of_its_own(
    tokenizer: Tokenizer, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the loss computes is what the pass before the update would have given."""
    made = stage(tokenizer, updates_per_rollout=2)
    made.collect(0, lambda: model)
    scored = step(made, model, made.batch(0))
    monkeypatch.setattr(made, "config", dataclasses.replace(made.config, updates_per_rollout=1))
    monkeypatch.setattr(made, "_scored", None)
    found = step(made, model, made.batch(0))
    assert found.abs().max() > 0
    torch.testing.assert_close(found, scored, rtol=1e-4, atol=1e-7)
    made.collect(2, lambda: model)
    assert not made.batch(2).old.any()


def test_answers_that_cannot_be_judged_are_dropped_and_too_many_stop_the_run(
    tokenizer: Tokenizer, model: Transformer
) -> None:
    def moody(answer: str) -> float | None:
        return None if len(answer) % 3 == 0 else by_length(answer)

    made = stage(tokenizer, moody)
    told = made.collect(0, lambda: model)
    assert 0 < told["dropped_answers"] < 12
    resumed = stage(tokenizer, moody)
    resumed.load_state(made.state())
    assert resumed.num_failures == made.num_failures == told["dropped_answers"]
    strict = stage(tokenizer, moody, max_reward_failures=1)
    with pytest.raises(RunStopped, match=r"answers could not be judged, 1 are allowed"):
        strict.collect(0, lambda: model)
    with pytest.raises(RunStopped, match="not one answer"):
        stage(tokenizer, lambda _: None).collect(0, lambda: model)


@pytest.mark.parametrize("updates", [1, 2])
def test_a_person_is_warned_once(
    tokenizer: Tokenizer, model: Transformer, capsys: pytest.CaptureFixture[str], updates: int
) -> None:
    made = stage(tokenizer, lambda _: 0.5, updates_per_rollout=updates)
    for number in range(4 * updates):
        made.collect(number, lambda: model)
    assert "no answer earned more than another" not in capsys.readouterr().err
    made = stage(tokenizer, lambda _: 0.5, updates_per_rollout=updates)
    for number in range(7 * updates):
        made.collect(number, lambda: model)
        assert made.weight(made.batch(number)) > 0
        assert not made.batch(number).advantages.any()
    said = capsys.readouterr().err
    assert said.count("no answer earned more than another") == 1
    assert said.count("are cut off at 12 tokens") == 1


def test_a_collapse_of_entropy_is_told_and_its_checkpoint_kept(
    tokenizer: Tokenizer, model: Transformer, capsys: pytest.CaptureFixture[str]
) -> None:
    made = stage(tokenizer)
    made.collect(0, lambda: model)
    assert not made.must_keep
    with torch.no_grad():
        model.model.norm.weight *= 50  # nearly all on one token
    told = made.collect(1, lambda: model)
    assert told["entropy"] < 0.5 and made.must_keep
    assert (
        "grpo: warning at step 2: the entropy of the answers has collapsed"
        in capsys.readouterr().err
    )


def test_a_truncated_answer_can_teach_nothing(tokenizer: Tokenizer, model: Transformer) -> None:
    made = stage(tokenizer, mask_truncated=True, max_new_tokens=30, prompts_per_step=4)
    told = made.collect(0, lambda: model)
    batch = made.batch(0)
    assert 0 < told["truncated"] < 1
    for row in range(len(batch.tokens)):
        for document in range(int(batch.document_ids[row].max()) + 1):
            labels = batch.labels[row][batch.document_ids[row] == document]
            assert int(labels[-1]) in (tokenizer.im_end_id, tokenizer.eos_id)


def test_a_step_of_truncated_answers_alone_teaches_nothing(
    tokenizer: Tokenizer, model: Transformer
) -> None:
    nowhere = {"mask_truncated": True, "max_new_tokens": 1, "kl_coef": 1.0}
    made = stage(tokenizer, reference=model, **nowhere)
    assert made.collect(0, lambda: model)["truncated"] == 1
    assert not step(made, random_model(seed=1), made.batch(0)).any()


def test_long_answers_are_penalised_in_training_alone(
    tokenizer: Tokenizer, model: Transformer
) -> None:
    made = stage(tokenizer, lambda _: 0.0, overlong_buffer=12)
    told = made.collect(0, lambda: model)
    assert -1 <= told["reward"] < -0.5
    assert told["reward_penalty"] == pytest.approx(told["reward"])
    assert made.judge(lambda: model)["heldout_reward"] == 0


def test_the_length_that_is_penalised_is_that_of_the_last_answer(tokenizer: Tokenizer) -> None:
    made = stage(tokenizer, overlong_buffer=4)
    own = [False] * 3 + [True] * 10 + [False] * 2 + [True] * 7
    turns = Episode({}, [], None, [0] * len(own), 0, own, [-1.0] * 17)
    assert turns.num_last == 7 and made._overlong(turns) == 0
    turns.is_own += [True] * 3
    assert made._overlong(turns) == pytest.approx(-0.5)


def test_the_distance_of_a_step_is_the_divergence_from_the_model_that_drew(
    tokenizer: Tokenizer,
) -> None:
    drawing, model = random_model(), random_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(1)
            )
    made = stage(tokenizer, updates_per_rollout=2)
    made.collect(0, lambda: drawing)
    batch = made.batch(0)
    is_label = batch.labels != -100
    new = made._scored(model, batch)[is_label]
    told = made.loss(model, batch)[1]["step_kl"]
    assert float(told) == pytest.approx(float(k3_kl(batch.old[is_label], new).sum()), rel=1e-3)
    assert float(told) != pytest.approx(float(k3_kl(new, batch.old[is_label]).sum()), rel=1e-2)


def test_a_part_of_ones_own_is_told_without_its_folder() -> None:
    episode = Episode({}, [], None, [], 0)
    episode.rewards = {"/home/me/mine.py:letters": 1.0, "other/mine.py:letters": 2.0, "length": 3.0}
    assert reward_parts([episode]) == {
        "reward_mine.letters": 1.0, "reward_length": 3.0, "reward_mine.letters_2": 2.0,
    }  # fmt: skip


def test_a_stage_that_begins_again_remembers_nothing(
    tokenizer: Tokenizer, model: Transformer, capsys: pytest.CaptureFixture[str]
) -> None:
    made = stage(tokenizer, lambda answer: None if len(answer) % 3 == 0 else 0.5)
    for _ in range(2):
        first = made.collect(0, lambda: model)
        for number in range(1, 6):
            made.collect(number, lambda: model)
        failures = made.num_failures
        made.must_keep = True
        made.load_state({})
        assert not made.must_keep and made.num_failures == 0
        again = made.collect(0, lambda: model)
        assert again["reward"] == first["reward"] and again["entropy"] == first["entropy"]
        made.load_state({})
    assert failures > made.num_failures == 0
    assert capsys.readouterr().err.count("no answer earned more than another") == 2


class Moody:
    """An environment that fails in one of several ways, where the answer is of odd length."""

    def __init__(self, mood: str) -> None:
        self.mood = mood

    def reset(self, row: Any) -> Any:
        if self.mood == "reset" and row["prompt"] == "soup 1":
            raise KeyError("no such soup")
        if self.mood == "nothing" and row["prompt"] == "soup 1":
            return None
        return [{"role": "user", "content": row["prompt"]}], None

    def step(self, message: Any) -> Any:
        if self.mood == "raise" and len(message["content"]) % 2:
            raise ValueError("it broke")
        if self.mood == "leave" and len(message["content"]) % 2:
            raise SystemExit(0)
        if self.mood == "number" and len(message["content"]) % 2:
            return 5
        broken = {"nan": math.nan, "inf": math.inf, "large": 1e300, "text": "much"}
        worth = broken.get(self.mood, 0.5) if len(message["content"]) % 2 else 0.25
        said = [{"role": "nobody"}] if self.mood == "said" and len(message["content"]) % 2 else []
        return SimpleNamespace(messages=said, reward=worth, done=not said)


@pytest.mark.parametrize(
    ("mood", "said"),
    [
        ("reset", "KeyError: 'no such soup' .*soup 1"),
        ("raise", r"ValueError: it broke \(test_grpo.py, line \d+\); prompt: \"soup"),
        ("nan", "gave the reward nan"),
        ("inf", "gave the reward inf"),
        ("large", r"the rewards are 1e\+300 in all"),
        ("text", "Moody.step gave the reward 'much'; a number is wanted"),
        ("leave", "SystemExit: 0"),
        ("number", "Moody.step gave 5; a Step is wanted"),
        ("nothing", "Moody.reset gave None;"),
        ("said", "its messages cannot be read"),
    ],
)
def test_an_episode_whose_environment_fails_is_dropped_counted_and_told(
    tokenizer: Tokenizer, model: Transformer, mood: str, said: str
) -> None:
    def made(**more: Any) -> GrpoStage:
        settings = {"prompts_per_step": 4, "group_size": 4, "max_new_tokens": 12} | more
        return GrpoStage(
            tokenizer, ROWS[:4], ROWS[4:], None, GrpoConfig(**settings), 64, seed=0,
            environment=lambda: Moody(mood),
        )  # fmt: skip

    patient = made()
    told = patient.collect(0, lambda: model)
    assert 0 < told["dropped_answers"] == patient.num_failures < 16
    assert math.isfinite(told["reward"]) and torch.isfinite(patient.batch(0).advantages).all()
    with pytest.raises(RunStopped, match=f"0 are allowed .*{said}"):
        made(max_reward_failures=0).collect(0, lambda: model)


def test_held_out_prompts_are_judged_with_the_reward_and_shown(
    tokenizer: Tokenizer, model: Transformer
) -> None:
    made = stage(tokenizer)
    told = made.judge(lambda: model)
    assert told["heldout_reward"] == pytest.approx(told["heldout_reward_rule"])
    shown = made.samples(lambda *_: None)
    assert [row["prompt"] for row in shown] == ["soup 4", "soup 5"]
    assert all(row["reward_rule"] == by_length(row["answer"]) for row in shown)
    assert made.judge(lambda: model) == told


def test_the_split_of_prompts_hangs_on_each_alone() -> None:
    rows = [{"prompt": f"question {number}"} for number in range(2000)]
    held = [is_held_out(row, 0.1) for row in rows]
    assert 150 < sum(held) < 250
    assert not any(is_held_out(row, 0.0) for row in rows)
    assert all(is_held_out(row, 0.2) for row, out in zip(rows, held, strict=True) if out)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"group_size": 1}, "group_size is 1: it must be at least 2"),
        ({"kl_coef": -0.1}, "kl_coef is -0.1: it must be at least 0"),
        ({"kl_coef": math.nan}, "kl_coef is nan: it must be at least 0"),
        ({"clip_range": -0.5}, "clip_range is -0.5: it must be from 0 to 1"),
        ({"clip_range": 1.7}, "clip_range is 1.7: it must be from 0 to 1"),
        ({"clip_range_high": math.nan}, "clip_range_high is nan"),
        ({"clip_range_high": math.inf}, "clip_range_high is inf"),
        ({"temperature": 0.0}, "must be above zero"),
        ({"temperature": math.nan}, "temperature is nan: it must be above zero"),
        ({"importance_cap": math.nan}, "importance_cap is nan: it must be above zero"),
        ({"heldout_temperature": math.nan}, "heldout_temperature is nan"),
        ({"heldout_prompts": -3}, "heldout_prompts is -3: it must be at least 0"),
        ({"max_reward_failures": -1}, "max_reward_failures is -1: it must be at least 0"),
        ({"overlong_buffer": 129}, "overlong_buffer is 129: it must be from 0 to 128"),
        ({"heldout_share": 1.0}, r"must be in \[0, 1\)"),
    ],
)
def test_wrong_settings_are_refused_in_a_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        GrpoConfig(**settings)
