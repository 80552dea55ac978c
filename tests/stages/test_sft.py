"""Instruction tuning: which tokens are learnt, and what is measured of each kind of data."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.config import TrainConfig
from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.errors import UserError
from cygnet.export.huggingface import save_folder
from cygnet.files import JsonlWriter, read_json, write_json
from cygnet.stages.next_token import NextTokenStage, metric_name, open_shards
from cygnet.stages.sft import SftConfig, make_shards, sft
from cygnet.text.chat import encode_chat
from cygnet.text.tokenizer import Tokenizer
from tests.models import random_model

SEQ_LEN = 128
CONFIG = TrainConfig(
    steps=2, batch_tokens=2 * SEQ_LEN, max_seq_len=SEQ_LEN, micro_batch=2, log_every=1,
    eval_every=1, dtype="fp32", device="cpu", compile="off",
)  # fmt: skip
Rows = list[dict[str, Any]]


def conversation(number: int, kind: str) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": f"How do I make soup {number}?"},
        {"role": "assistant", "content": "Boil the water. " * (number % 3 + 1)},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": f"{kind}: add salt, {number} times."},
    ]
    return {"messages": turns[: 2 + number % 2 * 2], "kind": kind}


ROWS = [conversation(number, ("soup", "白日 / 诗")[number % 5 // 3]) for number in range(30)]


def write(folder: Path, train: Rows, heldout: Rows) -> Path:
    folder.mkdir()
    for name, rows in ((TRAIN, train), (HELDOUT, heldout)):
        with JsonlWriter(folder / name) as writer:
            for row in rows:
                writer.write(row)
    write_json(folder / "manifest.json", {})
    return folder


def alone(tokenizer: Tokenizer, rows: Rows) -> tuple[float, int]:
    """Return the summed loss of the answers, each conversation alone in the model, and labels."""
    total, count = 0.0, 0
    model = random_model()
    for row in rows:
        chat = encode_chat(tokenizer, row["messages"])
        with torch.no_grad():
            log_probs = model.logits(model(torch.tensor([chat.ids])))[0].log_softmax(-1)
        for at in range(1, len(chat.ids)):
            if chat.is_label[at]:
                total -= float(log_probs[at - 1, chat.ids[at]])
                count += 1
    return total, count


def test_the_heldout_loss_of_a_kind_is_that_of_its_conversations(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = write(tmp_path / "instructions", ROWS, ROWS)
    make_shards(folder, tokenizer, tmp_path / "shards", SEQ_LEN, SftConfig())
    stage = NextTokenStage("sft", *open_shards(tmp_path / "shards", tokenizer.hash), CONFIG)
    with torch.no_grad():
        found = stage.heldout(random_model())
    sums = {kind: alone(tokenizer, [r for r in ROWS if r["kind"] == kind]) for kind in kinds()}
    expected = {f"heldout_loss/{metric_name(kind)}": a / b for kind, (a, b) in sums.items()}
    totals = [sum(column) for column in zip(*sums.values(), strict=True)]
    assert found == pytest.approx({"heldout_loss": totals[0] / totals[1], **expected}, rel=1e-5)
    assert set(expected) == {"heldout_loss/soup", "heldout_loss/白日_诗"}


def kinds() -> set[str]:
    return {row["kind"] for row in ROWS}


def run(tokenizer: Tokenizer, tmp_path: Path, heldout: Rows, name: str = "run", **own: Any) -> Path:
    start, folder = tmp_path / "start", tmp_path / "instructions"
    if not start.exists():
        save_folder(random_model(), tokenizer, start)
        write(folder, ROWS, heldout)
    out = tmp_path / name
    sft(folder, start, tmp_path / f"{name} shards", out, CONFIG, tuning=SftConfig(**own))
    return out


def test_every_kind_is_logged_before_training_and_after_each_evaluation(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(tokenizer, tmp_path, ROWS)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert {"heldout_loss/soup", "heldout_loss/白日_诗"} < line.keys()
    assert "tokens to learn: soup " in capsys.readouterr().err


@pytest.mark.parametrize(
    "heldout",
    [[], [{"messages": [{"role": "user", "content": "soup " * 900}, *ROWS[0]["messages"][1:]]}]],
)
def test_without_a_heldout_conversation_that_fits_training_goes_on(
    tokenizer: Tokenizer, tmp_path: Path, heldout: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(tokenizer, tmp_path, heldout)
    said = " ".join(capsys.readouterr().err.split())
    assert "sft: nothing is measured on held-out conversations: " in said
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert not any("heldout" in key for line in lines for key in line)


def test_what_the_loss_is_on_decides_the_run_and_is_kept_with_the_tokens(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    counts = {}
    for choice in ("assistant", "last", "all"):
        run(tokenizer, tmp_path, ROWS, choice, loss_on=choice)
        source = read_json(tmp_path / f"{choice} shards/train/manifest.json")["source"]
        assert source["loss_on"] == choice
        counts[choice] = source["summary"]["num_labels"]
    assert 0 < counts["last"] < counts["assistant"] < counts["all"]
    with pytest.raises(UserError, match=r"loss_on"):
        run(tokenizer, tmp_path, ROWS, "last", loss_on="all")
    with pytest.raises(UserError, match=r"'assistent': use one of assistant, all, last \(did you"):
        SftConfig(loss_on="assistent")  # type: ignore[arg-type]
