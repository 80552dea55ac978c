"""`cygnet reward` from a file to a reward model, its figures and its report."""

import json
import random
from pathlib import Path

import pytest

from cygnet import cli
from cygnet.evals.reward import RewardResult
from cygnet.export.huggingface import save_folder
from cygnet.generate.scorer import Scorer
from cygnet.text.tokenizer import train_tokenizer
from tests.models import random_model


@pytest.fixture
def start(tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(["Boil the water. Add salt. Never mind."] * 4, 300)
    return save_folder(random_model(), tokenizer, tmp_path / "start")


def typed(*line: object) -> None:
    cli.main([str(word) for word in line])


def test_ratings_to_a_reward_model_with_figures(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chooser = random.Random(0)
    path = tmp_path / "rated.jsonl"
    with path.open("w") as file:
        for n in range(80):
            rating = chooser.randint(1, 3)
            said = {1: "Never mind.", 2: "Water.", 3: "Boil the water."}[rating]
            row = {"prompt": f"How {n}?", "answer": said, "rating": rating}
            file.write(json.dumps(row) + "\n")
    out = tmp_path / "run"
    words = (
        "reward", "--from", start, "--data", path, "--out", out, "--steps", 25, "--max_seq_len", 64,
        "--batch_tokens", 512, "--learning_rate", 3e-3, "--heldout_share", 0.4, "--device", "cpu",
    )  # fmt: skip
    typed(*words)
    found = RewardResult.load(out / "reward.json")
    assert found.accuracy.value == 1
    said = "".join(capsys.readouterr())
    assert "held-out pairs: 100.0 %" in said
    assert "length: " in said
    for name in ("report.html", "report.md", "plots/calibration.png", "plots/loss.png"):
        assert (out / name).stat().st_size > 1000
    scorer = Scorer.load(out)
    assert scorer.max_tokens == 64
    notes = json.loads((out / "model/config.json").read_text())["cygnet"]["reward"]
    assert notes["learnt_from"] == "ratings"
    assert notes["edges"] == [1, 2]
    assert len(notes["thresholds"]) == 2
    before = (out / "reward.json").stat().st_mtime_ns
    typed(*words)
    assert "reward figures: up to date" in capsys.readouterr().err
    assert (out / "reward.json").stat().st_mtime_ns == before


def test_a_reward_model_cannot_answer_and_a_start_is_needed(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        typed("reward", "--out", tmp_path / "run")
    assert "cygnet reward needs a model to start from" in capsys.readouterr().err
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"q {n}", "chosen": "Boil", "rejected": "Never"} for n in range(8)]
    path.write_text("\n".join(map(json.dumps, rows)))
    typed(
        "reward", "--from", start, "--data", path, "--out", tmp_path / "run", "--steps", 1,
        "--max_seq_len", 128, "--batch_tokens", 256, "--device", "cpu",
    )  # fmt: skip
    capsys.readouterr()
    with pytest.raises(SystemExit):
        typed("chat", tmp_path / "run", "--prompt", "hello")
    assert "is a reward model, which scores conversations and cannot" in capsys.readouterr().err
