"""Every loss learns to prefer, and data that cannot be learnt from is told in one clear line."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from cygnet.config import TrainConfig
from cygnet.errors import UserError
from cygnet.export.huggingface import save_folder
from cygnet.files import JsonlWriter
from cygnet.stages.preference import rules as preference_rules
from cygnet.stages.preference.dpo import DpoConfig, dpo
from cygnet.stages.preference.pairs import read_pairs, take_pairs
from cygnet.text.tokenizer import Tokenizer
from tests.models import random_model

SEQ_LEN = 256
WORDS = "soup water salt 白日 黄河 make add boil".split()
Rows = list[dict[str, Any]]
REPORTED = {
    "preference_loss", "accuracy", "margin", "chosen_log_prob", "rejected_log_prob",
    "chosen_reward", "rejected_reward", "chosen_length", "rejected_length", "kl",
}  # fmt: skip


@pytest.fixture(scope="module")
def pairs() -> Rows:
    """Pairs whose rejected answers begin with a word that no chosen one has."""
    chooser = random.Random(1)

    def say(most: int) -> str:
        return " ".join(chooser.choices(WORDS, k=chooser.randint(1, most)))

    return [
        {
            "prompt": [{"role": "user", "content": f"{say(5)} {i}"}],
            "chosen": say(8), "rejected": f"How {say(8)}", "source": f"mine.jsonl:{i + 1}",
        }
        for i in range(24)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def start(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(random_model(), tokenizer, tmp_path_factory.mktemp("start") / "model")


def align(
    folder: Path, start: Path, train: Rows, heldout: Rows, preference: DpoConfig, **config: Any
) -> list[dict[str, float]]:
    """Train, and return the lines of metrics.jsonl."""
    (folder / "pairs").mkdir(parents=True)
    for name, rows in (("train.jsonl.zst", train), ("heldout.jsonl.zst", heldout)):
        with JsonlWriter(folder / "pairs" / name) as writer:
            for row in rows:
                writer.write(row)
    settings = {
        "steps": 16, "batch_tokens": 4 * SEQ_LEN, "max_seq_len": SEQ_LEN, "learning_rate": 5e-3,
        "dtype": "fp32", "compile": "off", "micro_batch": 2, "log_every": 1, **config,
    }  # fmt: skip
    dpo(
        folder / "pairs", start, folder / "cache", folder / "run", TrainConfig(**settings),
        preference,
    )  # fmt: skip
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


LOSSES = {
    "dpo": DpoConfig(sft_weight=0.1),
    "dpo-length": DpoConfig(length_normalize=True, beta=5.0),
    "dpo-free": DpoConfig(reference="none"),
    "cdpo": DpoConfig(loss="cdpo", sft_weight=0.1),
    "ipo": DpoConfig(loss="ipo"),
    "simpo": DpoConfig(loss="simpo"),
    "orpo": DpoConfig(loss="orpo", beta=1.0),
    "kto": DpoConfig(loss="kto", beta=0.5),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_learns_to_prefer(name: str, start: Path, pairs: Rows, tmp_path: Path) -> None:
    lines = align(tmp_path, start, pairs[8:], pairs[:8], LOSSES[name])
    expected = REPORTED - ({"kl"} if name == "dpo-free" else set())
    steps = [line for line in lines if "loss" in line]
    heldout = [line for line in lines if "heldout_loss" in line]
    assert all(expected <= line.keys() for line in steps)
    assert all({f"heldout_{x}" for x in expected} <= line.keys() for line in heldout)
    assert heldout[-1]["heldout_loss"] < heldout[0]["heldout_loss"]
    assert heldout[-1]["heldout_margin"] > heldout[0]["heldout_margin"]
    assert heldout[-1]["heldout_accuracy"] > 0.6
    assert steps[-1]["accuracy"] >= 0.9 > 0.8 > steps[0]["accuracy"]
    if name == "kto":
        assert all("kl_baseline" in line for line in steps)


def test_a_run_that_learns_nothing_is_told_so_once_with_the_step_and_the_reason(
    start: Path, pairs: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(preference_rules, "PATIENCE", 2)
    align(tmp_path, start, pairs, [], DpoConfig(), steps=5, learning_rate=1e-9)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("warning") == 1
    assert (
        "dpo: warning at step 3: the loss has stayed at 0.693 for 2 steps: the pairs carry no "
        "signal, because the model has hardly moved from the reference; raise --learning_rate"
    ) in said


def test_kto_learns_from_answers_that_are_no_pairs(
    start: Path, pairs: Rows, tmp_path: Path
) -> None:
    labelled = [
        {"prompt": row["prompt"], "answer": row[side], "label": side == "chosen"}
        for i, row in enumerate(pairs)
        for side in ("chosen" if i % 2 else "rejected",)
    ]
    lines = align(tmp_path, start, labelled[8:], labelled[:8], DpoConfig(loss="kto", beta=0.5))
    assert lines[-1]["heldout_margin"] > 0.3


def test_pairs_with_equal_sides_are_counted_named_and_left_out(
    start: Path, pairs: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    equal = [{**row, "rejected": f" {row['chosen']}\n"} for row in pairs[4:8]]
    align(tmp_path / "a", start, [*pairs[:4], *equal], pairs[20:], DpoConfig(), steps=1)
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "4 of 8 pairs of train.jsonl.zst have equal sides and are left out, first mine.jsonl:5"
        in said
    )
    with pytest.raises(UserError, match=r"train\.jsonl\.zst: in every pair chosen and rejected"):
        align(tmp_path / "b", start, equal, [], DpoConfig(), steps=1)


def test_prompts_that_leave_no_room_for_an_answer_are_counted(
    start: Path, pairs: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = [{"role": "user", "content": "soup " * 300}]
    long = [{**pairs[0], "prompt": prompt}, {**pairs[1], "rejected": "soup " * 300}]
    for loss, count in (("dpo", "2 of 6 pairs"), ("kto", "3 of 12 answers")):
        align(
            tmp_path / loss, start, [*long, *pairs[2:6]], [], DpoConfig(loss=loss), steps=1
        )  # fmt: skip
        said = " ".join(capsys.readouterr().err.split())
        full = 1 if loss == "dpo" else 2
        assert f"{count} of train.jsonl.zst are longer than max_seq_len and skipped" in said
        assert f"the prompts of {full} leave no room for any answer" in said


def test_labels_that_kto_cannot_learn_from_are_told(
    start: Path, pairs: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kto = DpoConfig(loss="kto")
    wanted = [{"prompt": r["prompt"], "answer": r["chosen"], "label": True} for r in pairs]
    with pytest.raises(UserError, match="every answer has the label true; kto learns from"):
        align(tmp_path / "a", start, wanted, [], kto, steps=1)
    unwanted = [{**wanted[i], "label": False} for i in range(4)]
    align(tmp_path / "b", start, wanted[4:] + unwanted, [], kto, steps=1)
    said = " ".join(capsys.readouterr().err.split())
    assert "20 answers are wanted and 4 not, which weigh 5.00 to 1" in said
    assert "--desirable_weight 0.20" in said
    align(tmp_path / "c", start, wanted[4:] + unwanted, [],
          DpoConfig(loss="kto", desirable_weight=0.2), steps=1)  # fmt: skip
    assert "weigh" not in capsys.readouterr().err
    alone = [{**row, "prompt": pairs[0]["prompt"]} for row in pairs[:4]]
    align(tmp_path / "d", start, alone, [], kto, steps=1)
    assert "no row holds answers to two prompts" in " ".join(capsys.readouterr().err.split())


PAIR = {"prompt": "soup?", "chosen": "yes", "rejected": "no"}
ANSWER = {"prompt": "soup?", "answer": "yes", "label": True}
NOT_LABELLED = [
    ({"prompt": "soup?", "answer": "yes"}, "p.jsonl:2: `label` is null; it must be true where"),
    ({**ANSWER, "label": "good"}, "p.jsonl:2: `label` is \"good\"; it must be true"),
    ({**ANSWER, "label": 1}, "p.jsonl:2: `label` is 1; it must be true"),
    ({"prompt": "soup?", "label": True}, "p.jsonl:2: `answer` is missing or empty"),
    ({**ANSWER, "answer": " \n"}, "p.jsonl:2: `answer` is missing or empty"),
    ({**ANSWER, "answer": 3}, "p.jsonl:2: `answer`: "),
    ({**PAIR, "chosen": "\n"}, "p.jsonl:2: `chosen` is missing or empty"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "message"), NOT_LABELLED)
def test_a_damaged_answer_is_named(tmp_path: Path, wrong: Any, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, (ANSWER, wrong))))
    with pytest.raises(UserError, match=message):
        take_pairs([str(path)], tmp_path / "out", labelled=True)
    assert not (tmp_path / "out").exists()


def test_answers_with_labels_and_pairs_are_taken_side_by_side_for_kto_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, (PAIR, {**ANSWER, "prompt": "rice?"}))))
    folder = take_pairs([str(path)], tmp_path / "out", labelled=True)
    rows = [
        row for name in ("train", "heldout")
        for row in read_pairs(folder / f"{name}.jsonl.zst", labelled=True)
    ]  # fmt: skip
    assert sorted(row["source"] for row in rows) == ["p.jsonl:1", "p.jsonl:2"]
    with pytest.raises(UserError, match=r"p\.jsonl:2: `chosen` is missing .* are for --loss kto"):
        take_pairs([str(path)], tmp_path / "out")


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": "ipo", "label_smoothing": 0.1},
        {"loss": "kto", "length_normalize": True},
        {"loss": "kto", "reference": "none"},
        {"desirable_weight": 0.0},
        {"loss": "simpo", "simpo_gamma": -1.0},
    ],
)
def test_settings_that_a_loss_does_not_have_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="preference"):
        DpoConfig(**wrong)


def test_what_is_left_open_becomes_what_is_usual_for_the_loss() -> None:
    found = DpoConfig(loss="cdpo", beta=0.3).resolved()
    assert (found.beta, found.label_smoothing, found.sft_weight) == (0.3, 0.1, 0.0)
    assert DpoConfig(loss="simpo").resolved().beta == 2.0
    assert DpoConfig().resolved() == DpoConfig(beta=0.1, label_smoothing=0.0, sft_weight=0.0)
    assert DpoConfig(loss="orpo").resolved().sft_weight == 1.0
