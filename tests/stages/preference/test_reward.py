"""The reward stage: packed conversations are each alone, and what a run learns, keeps and says."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from cygnet.config import TrainConfig
from cygnet.errors import UserError
from cygnet.evals.reward import judge_reward
from cygnet.export.huggingface import save_folder
from cygnet.generate.scorer import Scorer
from cygnet.stages.preference.reward import (
    PackedPreferences,
    RewardConfig,
    RewardStage,
    compare_heldout,
    document_scores,
    reward,
    scale_of,
    scorer_around,
)
from cygnet.stages.preference.reward_data import conversations, take_preferences
from cygnet.stages.preference.reward_losses import bradley_terry_loss, ordinal_loss
from cygnet.text.tokenizer import Tokenizer
from tests.models import SMALL, random_model

SEQ_LEN = 256
TRAIN = TrainConfig(
    batch_tokens=4 * SEQ_LEN, max_seq_len=SEQ_LEN, steps=30, learning_rate=3e-3, compile="off",
    dtype="fp32", device="cpu", checkpoint_every=15, eval_every=15,
)  # fmt: skip
WORDS = "soup water salt 白日 黄河 make add boil".split()
Rows = list[dict[str, Any]]


def say(chooser: random.Random, most: int) -> str:
    return " ".join(chooser.choices(WORDS, k=chooser.randint(1, most)))


def pairs(count: int = 24) -> Rows:
    """Pairs whose rejected answers begin with a word that no chosen one has."""
    chooser = random.Random(1)
    return [
        {
            "prompt": [{"role": "user", "content": f"{say(chooser, 5)} {n}"}],
            "chosen": say(chooser, 8),
            "rejected": f"How {say(chooser, 8)}",
            "margin": n % 3 / 2,
            "source": f"mine.jsonl:{n + 1}",
        }
        for n in range(count)
    ]


def ratings(count: int = 40) -> Rows:
    """Conversations of one to three exchanges: the fewer questions "How", the better."""
    chooser = random.Random(2)
    rows = []
    for n in range(count):
        messages, rating = [], 4.0
        for _ in range(chooser.randint(1, 3)):
            is_bad = chooser.random() < 0.4
            rating -= is_bad
            answer = f"{'How' if is_bad else 'Boil'} {say(chooser, 3)}"
            messages += [
                {"role": "user", "content": f"{say(chooser, 3)} {n}"},
                {"role": "assistant", "content": answer},
            ]
        rows.append({"messages": messages, "rating": rating, "source": f"mine.jsonl:{n + 1}"})
    return rows


def random_scorer() -> Any:
    model = scorer_around(random_model())
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(1))
    return model


def make_stage(rows: Rows, tokenizer: Tokenizer, config: RewardConfig | None = None) -> RewardStage:
    scale, thresholds = scale_of(rows)
    packed = PackedPreferences(rows, tokenizer, SEQ_LEN, scale)
    return RewardStage(
        packed.batch, packed.batch, TRAIN, config or RewardConfig(), thresholds, packed.sources
    )


def gradients(model: torch.nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("rows", [pairs(), ratings()], ids=["pairs", "ratings"])
def test_packed_is_each_conversation_alone(rows: Rows, tokenizer: Tokenizer) -> None:
    """Loss and gradients, against each conversation read alone at its last token."""
    model, stage = random_scorer(), make_stage(rows, tokenizer, RewardConfig(center_coef=0.1))
    assert len(stage.train.tokens) < len(rows) / 1.5
    total, _ = stage.loss(model, stage.train)
    total.backward()
    packed = gradients(model)
    model.zero_grad()
    scorer, alone = Scorer(model, tokenizer), 0.0
    scale, thresholds = scale_of(rows)
    for row in rows:
        scores = [_read(scorer, chat) for chat in conversations(row)]
        if scale and thresholds is not None:
            levels = torch.tensor(scale.levels([row["rating"]]))
            loss = ordinal_loss(scores[0][None], levels, thresholds.float()).sum()
        else:
            margin = torch.tensor(row["margin"])
            loss = bradley_terry_loss(scores[0], scores[1], margin, 0.1)
        loss.backward()
        alone += float(loss.detach())
    assert float(total.detach()) == pytest.approx(alone, rel=1e-5)
    for found, expected in zip(packed, gradients(model), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def _read(scorer: Scorer, chat: Rows) -> Tensor:
    from cygnet.text.chat import encode_chat

    ids = torch.tensor([encode_chat(scorer.tokenizer, chat).ids])
    return scorer.model.scores(scorer.model(ids))[0, -1]


@pytest.mark.parametrize("rows", [pairs(), ratings()], ids=["pairs", "ratings"])
def test_parts_of_a_batch_sum_to_the_batch(rows: Rows, tokenizer: Tokenizer) -> None:
    model, stage = random_scorer(), make_stage(rows, tokenizer)
    batch = stage.batch(0)
    whole, metrics = stage.loss(model, batch)
    padded = batch.padded(len(batch.tokens) + 2)  # as where processes share unequally
    parts = [stage.loss(model, padded.rows(i, i + 1)) for i in range(len(padded.tokens))]
    torch.testing.assert_close(sum(part[0] for part in parts), whole, rtol=1e-4, atol=1e-4)
    for name, value in metrics.items():
        torch.testing.assert_close(sum(p[1][name] for p in parts), value, rtol=1e-4, atol=1e-4)


def test_an_untrained_score_knows_nothing(tokenizer: Tokenizer) -> None:
    found = make_stage([{**row, "margin": 0} for row in pairs()], tokenizer).heldout(
        scorer_around(random_model())
    )
    assert found["heldout_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert found["heldout_accuracy"] == 0.5


def test_what_a_row_holds_is_named_by_where_it_was_read(tokenizer: Tokenizer) -> None:
    stage = make_stage(pairs(), tokenizer)
    batch = stage.batch(2)
    for row in range(len(batch.tokens)):
        number = len(re.findall(r"mine\.jsonl:\d+", stage.describe(2, row)))
        assert 2 * number == batch.rows(row, row + 1).num_labels


def test_long_rated_conversations_lose_turns_and_long_pairs_are_left_out(
    tokenizer: Tokenizer,
) -> None:
    rows = ratings(5)
    long = {**rows[0], "messages": [*rows[1]["messages"] * 9, *rows[0]["messages"]]}
    scale, _ = scale_of(rows)
    packed = PackedPreferences([*rows, long], tokenizer, 128, scale)
    assert packed.num_kept == 6
    one = PackedPreferences([pairs(1)[0] | {"chosen": "soup " * 200}], tokenizer, 128, None)
    assert (one.num_kept, one.skipped) == (0, [0])


@pytest.fixture(scope="module")
def start(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import dataclasses

    folder = tmp_path_factory.mktemp("start") / "model"
    # An output matrix of its own, which a reward model has no use for.
    return save_folder(
        random_model(dataclasses.replace(SMALL, tie_embeddings=False)), tokenizer, folder
    )


@pytest.fixture(params=["pairs", "ratings"])
def preferences(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    rows = pairs(60) if request.param == "pairs" else ratings(90)
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    yield take_preferences([str(tmp_path / "mine.jsonl")], tmp_path / "data", 0.25)


def test_a_run_learns_and_transformers_gives_the_same_scores(
    preferences: Path, start: Path, tmp_path: Path
) -> None:
    model = reward(preferences, start, tmp_path / "run", TRAIN, RewardConfig())
    scorer = Scorer.load(tmp_path / "run")
    found = compare_heldout(scorer, preferences)
    result = judge_reward(found.scores, found.tokens, found.pairs, found.shares, found.alike)
    assert result.accuracy.value > 0.9
    assert result.accuracy.low > 0.5
    assert result.brier.value < 0.15
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(model)
    words = transformers.AutoTokenizer.from_pretrained(model)
    chats = [conversations(row)[0] for row in pairs(4)]
    ids = [words.apply_chat_template(chat, return_dict=False) for chat in chats]
    with torch.no_grad():
        scores = [float(theirs(torch.tensor([one])).logits) for one in ids]
    assert scores == pytest.approx(scorer.scores(chats), abs=1e-4)
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert log[-1]["heldout_loss"] < log[0]["heldout_loss"]
    assert log[-1]["heldout_accuracy"] > 0.8


def test_the_same_run_again_does_nothing_and_other_pairs_are_refused(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import dataclasses

    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, pairs(9))))
    data = take_preferences([str(tmp_path / "mine.jsonl")], tmp_path / "data", 0.25)
    short = dataclasses.replace(TRAIN, steps=1)
    reward(data, start, tmp_path / "run", short, RewardConfig())
    capsys.readouterr()
    reward(data, start, tmp_path / "run", short, RewardConfig())
    assert "up to date" in "".join(capsys.readouterr())
    with pytest.raises(UserError, match="center_coef"):
        reward(data, start, tmp_path / "run", short, RewardConfig(center_coef=0.5))


def test_what_cannot_be_trained_on_is_refused(start: Path, tmp_path: Path) -> None:
    long = [row | {"chosen": "soup " * 300} for row in pairs(4)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, long)))
    data = take_preferences([str(tmp_path / "mine.jsonl")], tmp_path / "data", 0.25)
    with pytest.raises(UserError, match="nothing fits max_seq_len 256; the shortest needs"):
        reward(data, start, tmp_path / "run", TRAIN, RewardConfig())
    for wrong in ({"center_coef": -1.0}, {"heldout_share": 1.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            RewardConfig(**wrong)


def test_a_score_is_read_in_float32(tokenizer: Tokenizer) -> None:
    """In bf16 close scores would be ties."""
    model, stage = random_scorer(), make_stage(pairs(), tokenizer)
    model.compute_dtype = torch.bfloat16
    scores = document_scores(model, stage.train)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


@pytest.mark.parametrize(("make", "share"), [(pairs, 0.5), (ratings, 0.1)])
def test_what_is_too_long_to_be_read_is_not_judged(
    make: Any,
    share: float,
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, make(60))))
    data = take_preferences([str(tmp_path / "mine.jsonl")], tmp_path / "data", 0.5)
    scorer = Scorer(scorer_around(random_model()), tokenizer)
    whole = compare_heldout(scorer, data)
    assert "not judged" not in capsys.readouterr().err
    most = sorted(whole.tokens)[int(share * len(whole.tokens))]
    short = Scorer(scorer_around(random_model()), tokenizer, most)
    found = compare_heldout(short, data)
    assert "and not judged" in capsys.readouterr().err
    assert 0 < len(found.tokens) == len(found.scores) < len(whole.tokens)
    assert min(found.tokens) > 0
    assert all(0 <= place < len(found.scores) for pair in found.pairs for place in pair)
