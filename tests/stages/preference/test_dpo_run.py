"""DPO from a folder of pairs to a model: gradients, the kept reference, what a run learns."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cygnet.config import TrainConfig
from cygnet.errors import UserError
from cygnet.export.huggingface import load_folder, save_folder
from cygnet.files import JsonlWriter
from cygnet.model import loss as loss_module
from cygnet.model.transformer import Transformer
from cygnet.stages.preference.answer_rows import (
    AnswerBatch,
    PairRows,
    answer_log_probs,
    encode_pair,
    reference_log_probs,
    with_reference,
)
from cygnet.stages.preference.dpo import DpoConfig, DpoStage, dpo
from cygnet.text.tokenizer import Tokenizer
from tests.models import random_model

SEQ_LEN = 256
WORDS = "soup water salt 白日 黄河 make add boil".split()
Pairs = list[dict[str, Any]]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Pairs whose rejected answers begin with a word that no chosen one has."""
    chooser = random.Random(1)

    def say(most: int) -> str:
        return " ".join(chooser.choices(WORDS, k=chooser.randint(1, most)))

    return [
        {
            "prompt": [{"role": "user", "content": f"{say(5)} {i}"}],
            "chosen": say(8),
            "rejected": f"How {say(8)}",
        }
        for i in range(23)
    ]


def answer_scores(model: Transformer, tokenizer: Tokenizer, pair: dict[str, Any]) -> list[Tensor]:
    """Return the log-probability of each token of both answers, each answer alone in the model."""
    scores = []
    for ids, is_label in encode_pair(tokenizer, pair):
        logits = model.logits(model(torch.tensor([ids])))[0].log_softmax(-1)
        of_tokens = logits[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        scores.append(of_tokens[torch.tensor(is_label[1:])])
    return scores


def make_stage(
    model: Transformer, tokenizer: Tokenizer, pairs: Pairs, config: DpoConfig | None = None
) -> DpoStage:
    packed = PairRows(pairs, tokenizer, SEQ_LEN)
    batch = with_reference(packed.rows, answer_log_probs(model, packed.rows)[0].detach())
    train = TrainConfig(batch_tokens=3 * SEQ_LEN, max_seq_len=SEQ_LEN)
    sources = [[f"mine.jsonl:{pair + 1}" for pair in row] for row in packed.numbers]
    return DpoStage(batch, batch, train, config or DpoConfig(), sources)


def gradients(model: Transformer) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_the_gradient_of_packed_pairs_is_that_of_each_pair_alone(
    tokenizer: Tokenizer, pairs: Pairs
) -> None:
    reference, model = random_model(), random_model(seed=3)
    stage = make_stage(reference, tokenizer, pairs, DpoConfig(beta=0.3, sft_weight=0.2))
    assert len(stage.train.tokens) < len(pairs) / 1.5
    total, _ = stage.loss(model, stage.train)
    total.backward()
    packed = gradients(model)
    model.zero_grad()
    one_by_one = 0.0
    for pair in pairs:
        chosen, rejected = answer_scores(model, tokenizer, pair)
        with torch.no_grad():
            kept_chosen, kept_rejected = answer_scores(reference, tokenizer, pair)
        ratio = (chosen.sum() - kept_chosen.sum()) - (rejected.sum() - kept_rejected.sum())
        loss = torch.log1p(torch.exp(-0.3 * ratio)) - 0.2 * chosen.mean()
        loss.backward()
        one_by_one += float(loss.detach())
    assert float(total.detach()) == pytest.approx(one_by_one, rel=1e-5)
    for found, expected in zip(packed, gradients(model), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_small_chunks_of_logits_change_nothing(
    tokenizer: Tokenizer, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = random_model(), PairRows(pairs, tokenizer, SEQ_LEN).rows
    results = []
    for size in (10_000, 7):
        monkeypatch.setattr(loss_module, "CHUNK_POSITIONS", size)
        model.zero_grad()
        sums, _ = answer_log_probs(model, rows)
        sums.mean().backward()
        results.append([sums.detach(), *gradients(model)])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-4)


def test_a_batch_keeps_its_reference_through_slices_and_moves(
    tokenizer: Tokenizer, pairs: Pairs
) -> None:
    model = random_model()
    part = make_stage(model, tokenizer, pairs).batch(0).rows(1, 3).to("cpu")
    assert isinstance(part, AnswerBatch)
    sums, _ = answer_log_probs(model, part)
    torch.testing.assert_close(part.reference[~part.reference.isnan()], sums.detach())


def test_a_row_is_described_by_the_lines_of_its_pairs(tokenizer: Tokenizer, pairs: Pairs) -> None:
    stage = make_stage(random_model(), tokenizer, pairs)
    lines = [int(line) for line in re.findall(r"mine\.jsonl:(\d+)", stage.describe(4, 1))]
    row = tokenizer.decode(stage.batch(4).tokens[1].tolist())
    assert lines
    assert all(pairs[line - 1]["prompt"][0]["content"] in row for line in lines)


def test_the_reference_is_made_again_if_its_file_is_damaged(
    tokenizer: Tokenizer, pairs: Pairs, tmp_path: Path
) -> None:
    rows, cache = PairRows(pairs, tokenizer, SEQ_LEN).rows, tmp_path / "reference.npy"
    first = reference_log_probs(random_model(), rows, cache)
    whole = cache.read_bytes()
    np.save(tmp_path / "short.npy", first.numpy()[:-1])
    for damaged in (
        whole[:50],
        whole[:-9],
        b"",
        b"no array",
        (tmp_path / "short.npy").read_bytes(),
    ):
        cache.write_bytes(damaged)
        assert torch.equal(reference_log_probs(random_model(), rows, cache), first)
        assert cache.read_bytes() == whole


def write_pairs(folder: Path, train: Pairs, heldout: Pairs) -> Path:
    folder.mkdir()
    for name, rows in (("train.jsonl.zst", train), ("heldout.jsonl.zst", heldout)):
        with JsonlWriter(folder / name) as writer:
            for row in rows:
                writer.write(row)
    return folder


@pytest.mark.parametrize("num_heldout", [8, 0])
def test_a_run_learns_to_prefer_and_a_second_one_has_nothing_to_do(
    tokenizer: Tokenizer, pairs: Pairs, tmp_path: Path, num_heldout: int
) -> None:
    model = random_model()
    start = save_folder(model, tokenizer, tmp_path / "start")
    folder = write_pairs(tmp_path / "pairs", pairs[num_heldout:], pairs[:num_heldout])
    config = TrainConfig(
        steps=20, batch_tokens=4 * SEQ_LEN, max_seq_len=SEQ_LEN, learning_rate=5e-3, dtype="fp32",
        compile="off", micro_batch=2, log_every=1,
    )  # fmt: skip
    arguments = (
        folder,
        start,
        tmp_path / "cache",
        tmp_path / "run",
        config,
        DpoConfig(sft_weight=0.2),
    )
    aligned = dpo(*arguments)
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    if num_heldout:
        assert lines[0]["heldout_margin"] == pytest.approx(0, abs=1e-4)
        assert lines[-1]["heldout_accuracy"] > 0.8
        assert lines[-1]["heldout_margin"] > 0.1
    steps = [line for line in lines if "loss" in line]
    assert steps[-1]["preference_loss"] < 0.6 < steps[0]["preference_loss"]
    before = {p.name: p.read_bytes() for p in aligned.iterdir()}
    assert dpo(*arguments) == aligned
    assert {p.name: p.read_bytes() for p in aligned.iterdir()} == before
    trained, _ = load_folder(aligned)
    gaps = []
    for each in (model, trained):
        chosen, rejected = answer_scores(each, tokenizer, pairs[-1])
        gaps.append(float((chosen.sum() - rejected.sum()).detach()))
    assert gaps[1] > gaps[0]


def test_pairs_that_do_not_fit_are_told_what_would_hold_them(
    tokenizer: Tokenizer, pairs: Pairs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = save_folder(random_model(), tokenizer, tmp_path / "start")
    long = [{**pairs[i], "chosen": "soup " * 60, "source": f"mine.jsonl:{i + 1}"} for i in (2, 5)]

    def run(rows: Pairs, max_seq_len: int) -> None:
        folder = write_pairs(tmp_path / f"pairs_{len(rows)}_{max_seq_len}", rows, [])
        config = TrainConfig(
            steps=1, batch_tokens=512, max_seq_len=max_seq_len, compile="off", micro_batch=1
        )
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        dpo(folder, start, tmp_path / "cache", tmp_path / "run", config, DpoConfig())

    with pytest.raises(UserError, match=r"no pair fits max_seq_len 100, .* raise it") as caught:
        run(long, 100)
    shortest, longest = map(int, re.findall(r"--max_seq_len (\d+)", str(caught.value)))
    with pytest.raises(UserError, match="no pair fits"):
        run(long, shortest - 1)
    capsys.readouterr()
    run(long, longest)
    assert "skipped" not in capsys.readouterr().err
    run([*long, *pairs[10:13]], shortest - 1)
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of 5 pairs of train.jsonl.zst are longer than max_seq_len and skipped" in said
    assert f"first mine.jsonl:3 (the longest needs {longest})" in said
    with pytest.raises(UserError, match="the model's max_position is 512; give shorter pairs"):
        run([{**long[0], "rejected": "soup " * 300}], 512)
