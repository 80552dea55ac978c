"""PPO's rollouts and steps: what each token is told, what the loss follows, what a run raises."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from trl.trainer.utils import selective_log_softmax_and_entropy

from cygnet.config import TrainConfig
from cygnet.errors import UserError
from cygnet.model.scoring import ScoringTransformer
from cygnet.model.transformer import Transformer
from cygnet.stages.reinforcement.episode_rows import SCORED_ROWS, EpisodeRows
from cygnet.stages.reinforcement.ppo import PpoConfig, PpoStage
from cygnet.stages.reinforcement.ppo_rollout import Answer, Answerer, own_tokens
from cygnet.stages.reinforcement.rollout import Roller, RolloutConfig
from cygnet.stages.reinforcement.rules import ppo_rules
from cygnet.stages.watch import Watch
from cygnet.text.loader import IGNORE
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.guards import RunStopped
from tests.models import random_model
from tests.stages.reinforcement.test_grpo import adapted

SEQ_LEN = 96
PROMPTS = [{"prompt": f"{word} {at}"} for at, word in enumerate("soup water salt 白日".split() * 4)]
TRAIN = TrainConfig(max_seq_len=SEQ_LEN)
CONFIG = PpoConfig(answers_per_rollout=12, minibatches=3, heldout_prompts=4, max_new_tokens=12)


def share_of_vowels(conversations: Sequence[Any]) -> list[float]:
    answers = [messages[-1]["content"] for messages in conversations]
    return [sum(text.count(letter) for letter in "aeiou") / 12 for text in answers]


def policy_of(seed: int = 0) -> ScoringTransformer:
    model = ScoringTransformer.around(random_model(seed=seed))
    with torch.no_grad():
        model.score.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    return model


def make_stage(tokenizer: Tokenizer, config: PpoConfig = CONFIG, **given: Any) -> PpoStage:
    roller = Roller(
        tokenizer,
        RolloutConfig(temperature=config.temperature, max_new_tokens=config.max_new_tokens),
    )
    reference = given.get("reference") or random_model(seed=1)
    answerer = Answerer(
        roller, reference, given.get("reward", share_of_vowels), given.get("judge"), SEQ_LEN
    )
    return PpoStage(
        PROMPTS, PROMPTS[:5], answerer, replace(TRAIN, **given.get("train", {})), config
    )


def collected(
    stage: PpoStage, model: Transformer, number: int = 0
) -> tuple[list[Answer], dict[str, float]]:
    """Return the answers of the rollout that a step begins with, and its figures."""
    kept: list[Answer] = []
    draw = stage.answerer.answers

    def spy(policy: Any, rows: Any, seeds: Any) -> list[Answer]:
        kept[:] = draw(policy, rows, seeds)
        return kept

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(stage.answerer, "answers", spy)
        figures = stage.collect(number, lambda: model)
    return kept, figures


def alone(model: Transformer, answer: Answer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and values of an answer's own tokens, with no other beside it."""
    ids = torch.tensor([answer.episode.ids])
    hidden = model(ids)
    log_probs = model.logits(hidden)[0, :-1].log_softmax(-1)
    of_tokens = log_probs.gather(1, ids[0, 1:, None])[:, 0]
    is_own = torch.tensor(answer.episode.is_own)[1:]
    scores = model.scores(hidden)[0, :-1] if isinstance(model, ScoringTransformer) else of_tokens
    return of_tokens[is_own], scores[is_own]


def expected_advantages(
    stage: PpoStage, answers: Sequence[Answer], policy: ScoringTransformer
) -> tuple[list[list[float]], list[list[float]]]:
    """Return advantages and returns by the papers' formulas, answer by answer."""
    config, advantages, returns = stage.config, [], []
    rewards = share_of_vowels([answer.episode.messages for answer in answers])
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    for answer, reward in zip(answers, rewards, strict=True):
        log_probs, values = (column.tolist() for column in alone(policy, answer))
        reference = alone(stage.answerer.reference, answer)[0].tolist()
        earned = [-config.kl_coef * (a - b) for a, b in zip(log_probs, reference, strict=True)]
        earned[-1] += (reward - mean) / std
        earned[-1] -= config.missing_eos_penalty * answer.episode.truncated
        ahead = [*values[1:], 0.0]
        surprise = [
            r + config.gamma * after - v for r, after, v in zip(earned, ahead, values, strict=True)
        ]
        decay = config.gamma * config.gae_lambda
        advantages.append(
            [
                sum(decay**later * delta for later, delta in enumerate(surprise[t:]))
                for t in range(len(surprise))
            ]
        )
        returns.append([a + v for a, v in zip(advantages[-1], values, strict=True)])
    return advantages, returns


def test_every_token_is_told_its_own_numbers(tokenizer: Tokenizer) -> None:
    policy = policy_of()
    config = replace(CONFIG, gamma=0.97, whiten_advantages=False, max_new_tokens=30)
    stage = make_stage(tokenizer, config)
    answers, _ = collected(stage, policy)
    assert {answer.episode.truncated for answer in answers} == {True, False}
    advantages, returns = expected_advantages(stage, answers, policy)
    batch = stage.rows
    assert batch is not None and len(batch.tokens) < len(answers)
    packed = EpisodeRows([answer.episode for answer in answers], SEQ_LEN)
    assert torch.equal(packed.rows.labels, batch.labels)
    for found, expected in (
        (batch.old_log_probs, [alone(policy, answer)[0].tolist() for answer in answers]),
        (batch.old_values, [alone(policy, answer)[1].tolist() for answer in answers]),
        (batch.advantages, advantages),
        (batch.returns, returns),
    ):
        torch.testing.assert_close(found, packed.lay(expected), rtol=1e-4, atol=1e-4)


def test_an_adapted_policy_is_compared_with_what_trains(tokenizer: Tokenizer) -> None:
    """In bf16 the merged model, which answers, gives other log-probabilities and values."""
    policy = policy_of()
    policy.compute_dtype = torch.bfloat16
    stage = make_stage(tokenizer)
    with torch.no_grad():
        told = stage.collect(0, adapted(policy, {}).whole)
    assert stage.rows is not None and len(stage.rows.tokens) <= SCORED_ROWS
    log_probs, _, values = own_tokens(policy, stage.rows, tokenizer.vocab_size, 1.0)
    old_log_probs, old_values, *_ = stage.rows.at_labels()
    assert torch.equal(log_probs, old_log_probs) and torch.equal(values, old_values)
    assert told["sampling_mismatch"] > 0


def test_the_first_step_of_a_rollout_follows_the_policy_gradient(tokenizer: Tokenizer) -> None:
    """The ratio is 1 then, so that nothing is clipped; packed as if each answer were alone."""
    policy = policy_of()
    stage = make_stage(tokenizer, replace(CONFIG, minibatches=1, entropy_coef=0.01))
    answers, _ = collected(stage, policy)
    batch = stage.batch(0)
    loss, metrics = stage.loss(policy, batch)
    loss.backward()
    packed = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    policy.zero_grad()
    raw, returns = expected_advantages(stage, answers, policy)
    flat = torch.tensor([value for row in raw for value in row])
    mean, std = flat.mean(), flat.std(correction=0)
    for answer, advantage, target in zip(answers, raw, returns, strict=True):
        log_probs, values = alone(policy, answer)
        white = (torch.tensor(advantage) - mean) / std
        ids = torch.tensor([answer.episode.ids])
        every = policy.logits(policy(ids))[0, :-1].log_softmax(-1)
        entropy = -(every.exp() * every).sum(-1)[torch.tensor(answer.episode.is_own)[1:]]
        value_loss = 0.5 * (values - torch.tensor(target)).square()
        (-(white * log_probs) + 0.1 * value_loss - 0.01 * entropy).sum().backward()
    for found, parameter in zip(packed, policy.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-3)
    assert float(metrics["clip_share"]) == 0
    assert float(metrics["step_kl"]) == pytest.approx(0, abs=1e-4)


def train(
    stage: PpoStage, model: ScoringTransformer, steps: int, rate: float = 3e-3
) -> list[dict[str, float]]:
    """Take plain Adam steps; return the figures of the rollouts, and of the held-out at the end."""
    optimizer, figures = torch.optim.Adam(model.parameters(), lr=rate), []
    for number in range(steps):
        with torch.no_grad():
            figures.append(stage.collect(number, lambda: model))
        batch = stage.batch(number)
        loss, _ = stage.loss(model, batch)
        (loss / stage.weight(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return [*filter(None, figures), stage.judge(lambda: model)]


def test_the_reward_rises_and_a_dear_kl_holds_the_policy(tokenizer: Tokenizer) -> None:
    config = replace(CONFIG, answers_per_rollout=24, epochs_per_rollout=2)
    last = {}
    for kl_coef in (0.0, 2.0):
        policy = policy_of()
        stage = make_stage(
            tokenizer, replace(config, kl_coef=kl_coef), reference=random_model(),
            judge=share_of_vowels,
        )  # fmt: skip
        figures = train(stage, policy, steps=48)
        assert figures[0]["kl"] == pytest.approx(0, abs=1e-3)
        assert figures[0]["sampling_mismatch"] == pytest.approx(0, abs=1e-5)
        assert figures[-1]["heldout_judge_reward"] == figures[-1]["heldout_reward"]
        last[kl_coef] = figures[-1]["heldout_reward"], figures[-1]["heldout_kl"]
        if not kl_coef:
            assert last[0.0][0] > 2 * figures[0]["reward"]
            assert figures[-2]["explained_variance"] > figures[0]["explained_variance"]
    assert last[2.0][0] < last[0.0][0]
    assert last[2.0][1] < last[0.0][1] / 2


def test_an_epoch_of_minibatches_holds_every_answer_once_in_another_order(
    tokenizer: Tokenizer,
) -> None:
    stage = make_stage(tokenizer)
    with torch.no_grad():
        stage.collect(0, policy_of)
    assert stage.rows is not None
    epochs = [
        torch.cat([stage.batch(number).tokens for number in range(first, first + 3)])
        for first in (0, 3)
    ]
    rows = sorted(stage.rows.tokens.tolist())
    assert [sorted(tokens.tolist()) for tokens in epochs] == [rows, rows]
    assert not torch.equal(*epochs)
    assert stage.collect(5, policy_of) == {}
    assert stage.collect(6, policy_of)["answer_tokens"] > 0


def test_a_rollout_asks_the_next_prompts_and_draws_other_answers(tokenizer: Tokenizer) -> None:
    stage, asked, seeds = make_stage(tokenizer), [], set()
    for number in range(0, 24, 6):
        answers, _ = collected(stage, policy_of(), number)
        asked += [answer.episode.row["prompt"] for answer in answers]
        seeds |= {answer.episode.seed for answer in answers}
    for first in (0, 16, 32):
        assert sorted(asked[first : first + 16]) == sorted(row["prompt"] for row in PROMPTS)
    assert asked[:16] != asked[16:32]
    assert len(seeds) == len(asked)


def test_scores_are_normalised_by_the_first_rollout_clipped_and_fined(
    tokenizer: Tokenizer,
) -> None:
    stage = make_stage(tokenizer, replace(CONFIG, reward_clip=1.5, missing_eos_penalty=0.25))
    answers, figures = collected(stage, policy_of())
    mean, std = figures["reward"], figures["reward_std"]
    for answer in answers:
        fine = 0.25 if answer.episode.truncated else 0.0
        within = min(max((answer.reward - mean) / std, -1.5), 1.5)
        assert stage.score(answer) == pytest.approx(within - fine)
    collected(stage, policy_of(seed=4), 6)
    assert stage.progress.reward_mean == mean
    raw = make_stage(tokenizer, replace(CONFIG, normalize_rewards=False, missing_eos_penalty=0.0))
    for answer in collected(raw, policy_of())[0]:
        assert raw.score(answer) == answer.reward


def test_the_kl_is_steered_to_its_target(tokenizer: Tokenizer) -> None:
    near, far = (make_stage(tokenizer, replace(CONFIG, target_kl=kl)) for kl in (1e6, 1e-6))
    for stage, factor in ((near, 0.98), (far, 1.02)):
        collected(stage, policy_of())
        _, figures = collected(stage, policy_of(), 6)
        assert figures["kl_coef"] == pytest.approx(0.05 * factor)


def test_a_policy_that_has_moved_too_far_draws_anew(tokenizer: Tokenizer) -> None:
    stage = make_stage(tokenizer, replace(CONFIG, stop_kl=0.01))
    with torch.no_grad():
        stage.collect(0, policy_of)
        assert stage.collect(1, policy_of) == {}
        assert stage.collect(2, lambda: policy_of(seed=7))
    assert stage.progress.first_step == 2
    with torch.no_grad():
        patient = make_stage(tokenizer)
        patient.collect(0, policy_of)
        assert patient.collect(2, lambda: policy_of(seed=7)) == {}


def test_what_a_checkpoint_holds_goes_on_as_if_nothing_had_been(tokenizer: Tokenizer) -> None:
    config = replace(CONFIG, target_kl=1.0)
    whole, cut = make_stage(tokenizer, config), make_stage(tokenizer, config)
    model = policy_of()
    for stage in (whole, cut):
        train(stage, copy.deepcopy(model), steps=3)
    resumed = make_stage(tokenizer, config)
    resumed.load_state({name: tensor.clone() for name, tensor in cut.state().items()})
    assert resumed.watching.first == whole.watching.first != {}
    for number in (4, 5, 6, 7):
        figures = []
        for stage in (whole, resumed):
            with torch.no_grad():
                figures.append(stage.collect(number, policy_of))
        assert figures[0] == figures[1]
        for name, tensor in whole.state().items():
            torch.testing.assert_close(
                resumed.state()[name], tensor, rtol=0, atol=0, equal_nan=True
            )
        assert torch.equal(whole.batch(number).tokens, resumed.batch(number).tokens)
    whole.load_state({})
    assert whole.state().keys() == {"progress", "watch"}


FIGURES = {
    "reward": 1.0, "judge_reward": 1.0, "answer_tokens": 40.0, "repetition": 0.1,
    "answer_entropy": 2.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"answer_tokens": 61.0}, "much longer (40 tokens at the start, 61 now)"),
        ({"answer_tokens": 26.0}, "much shorter"),
        ({"repetition": 0.25}, "repeat themselves more"),
        ({"reward": 1.5, "judge_reward": 0.5}, "the judge's has fallen to 0.50"),
        ({"reward": 1.5, "judge_reward": 1.1}, ""),
        ({"reward": 0.9, "judge_reward": 0.5}, ""),
        ({"answer_entropy": 0.21}, ""),
        ({"answer_entropy": 0.19}, "the entropy of the answers has collapsed to 0.190"),
    ],
)
def test_a_trick_is_named_once_with_its_step(
    changes: dict[str, float], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = Watch("ppo", ppo_rules())
    assert not watch(1, FIGURES)
    assert watch(9, FIGURES | changes) == ("entropy" in said)
    again = Watch("ppo", ppo_rules())
    again.load_tensor(watch.tensor())
    assert not again(17, FIGURES | changes)
    found = " ".join(capsys.readouterr().err.split())
    assert found.count("ppo: warning at step 9:") == found.count("warning") == bool(said)
    assert said in found


def test_a_collapse_keeps_the_checkpoint(tokenizer: Tokenizer) -> None:
    stage = make_stage(tokenizer)
    collected(stage, policy_of())
    assert not stage.must_keep
    certain = policy_of()
    with torch.no_grad():
        certain.model.norm.weight.mul_(50)
    collected(stage, certain, 6)
    assert stage.must_keep


def test_a_reward_that_is_no_number_stops_the_run(tokenizer: Tokenizer) -> None:
    def broken(conversations: Sequence[Any]) -> list[float]:
        return [math.nan, *share_of_vowels(conversations)[1:]]

    stage = make_stage(tokenizer, reward=broken)
    with torch.no_grad(), pytest.raises(RunStopped, match=r"step 0: .* 1 of 12 answers .*nan"):
        stage.collect(0, policy_of)


def test_log_probabilities_and_entropy_are_those_of_trl(tokenizer: Tokenizer) -> None:
    """The other parts of PPO are in TRL no longer."""
    policy, stage = policy_of(), make_stage(tokenizer, replace(CONFIG, temperature=0.7))
    with torch.no_grad():
        stage.collect(0, lambda: policy)
        assert stage.rows is not None
        rows, counted = stage.rows, stage.rows.labels != IGNORE
        log_probs, entropy, _ = own_tokens(policy, rows, tokenizer.vocab_size, 0.7)
        hidden = policy(rows.tokens, rows.positions, rows.document_ids)[counted]
        logits = policy.logits(hidden)[:, : tokenizer.vocab_size]
        theirs = selective_log_softmax_and_entropy(logits, rows.labels[counted], temperature=0.7)
    torch.testing.assert_close((log_probs, entropy), theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows.old_log_probs[counted], theirs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("answers_per_rollout", 0), ("gamma", 1.5), ("clip_range", 0.0), ("target_kl", -1.0)],
)
def test_a_setting_out_of_its_range_is_named(name: str, value: float) -> None:
    with pytest.raises(UserError, match=name):
        PpoConfig(**{name: value})  # type: ignore[arg-type]


def test_rows_that_fill_a_batch_up_change_nothing(tokenizer: Tokenizer) -> None:
    policy, stage = policy_of(), make_stage(tokenizer)
    with torch.no_grad():
        stage.collect(0, lambda: policy)
        batch = stage.batch(0)
        loss, _ = stage.loss(policy, batch)
        filled = batch.padded(len(batch.tokens) + 2)
        assert (filled.labels[-2:] == IGNORE).all()
        assert float(stage.loss(policy, filled)[0]) == pytest.approx(float(loss), rel=1e-5)
        assert float(stage.loss(policy, filled.rows(len(batch.tokens), 99))[0]) == 0


def test_an_answer_that_is_too_long_to_be_read_counts_as_the_worst(tokenizer: Tokenizer) -> None:
    def reads_all_but_one(conversations: Sequence[Any]) -> list[float | None]:
        return [None, *(2.0 + at for at in range(1, len(conversations)))]

    answers, figures = collected(make_stage(tokenizer, reward=reads_all_but_one), policy_of())
    assert [answer.is_read for answer in answers] == [False] + [True] * 11
    assert answers[0].reward == 3.0
    assert figures["unread"] == pytest.approx(1 / 12)

    def reads_none(conversations: Sequence[Any]) -> list[float | None]:
        return [None] * len(conversations)

    stage = make_stage(tokenizer, reward=reads_none)
    with torch.no_grad(), pytest.raises(RunStopped, match="too long for the reward model"):
        stage.collect(0, policy_of)


def test_values_are_computed_in_float32() -> None:
    policy = policy_of()
    hidden = torch.randn(50, policy.config.hidden_size).bfloat16()
    exact = hidden.float() @ policy.score.weight[0]
    torch.testing.assert_close(policy.scores(hidden), exact, rtol=1e-5, atol=1e-5)
