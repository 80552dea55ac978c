"""The loop is exact: micro-batches, repetition, resuming, stopping, guards."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cygnet.config import ModelConfig, TrainConfig, read_yaml
from cygnet.errors import InterruptedRun, UserError
from cygnet.model.transformer import Transformer
from cygnet.stages.next_token import NextTokenStage
from cygnet.text.loader import Batch
from cygnet.text.shards import ShardReader
from cygnet.text.tokenizer import Tokenizer
from cygnet.train import engine, hardware
from cygnet.train.engine import Engine
from cygnet.train.guards import DivergedError

CONFIG = TrainConfig(
    steps=6, batch_tokens=256, max_seq_len=32, micro_batch=8, learning_rate=0.01,
    dtype="fp32", device="cpu", compile="off", log_every=1, eval_every=3, checkpoint_every=2,
)  # fmt: skip


def weights(model: Transformer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def train(
    run: Path,
    shards: ShardReader,
    sizes: ModelConfig,
    config: TrainConfig = CONFIG,
    kind: type[NextTokenStage] = NextTokenStage,
    tokenizer: Tokenizer | None = None,
    **inputs: Any,
) -> dict[str, Tensor]:
    model = Transformer(sizes)
    model.initialize(torch.Generator().manual_seed(config.seed))
    stage = kind("pretrain", shards, shards, config, tokenizer)
    Engine(model, stage, config, run, {"stage": "pretrain", "inputs": inputs}).train()
    return weights(model)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def logged(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


PARTS = (1, 2, 3, 4)
"""Micro-batches of a batch of 8 rows; of three, the last has two."""


def test_micro_batches_sum_to_the_batch(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig
) -> None:
    whole = train(tmp_path / "whole", shards, tiny)
    for rows in PARTS:
        parts = train(tmp_path / str(rows), shards, tiny, replace(CONFIG, micro_batch=rows))
        for name in whole:
            torch.testing.assert_close(parts[name], whole[name], rtol=2e-4, atol=2e-5)
        for a, b in zip(logged(tmp_path / "whole"), logged(tmp_path / str(rows)), strict=True):
            assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=1e-5)


def test_micro_batches_sum_to_the_batch_in_bf16(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig
) -> None:
    """A value of bf16 has 8 bits, so a single weight may part; the losses and the whole may not."""
    config = replace(CONFIG, dtype="bf16")
    began = Transformer(tiny)
    began.initialize(torch.Generator().manual_seed(config.seed))
    whole = train(tmp_path / "whole", shards, tiny, config)

    def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
        return float(torch.stack([(a[name] - b[name]).norm() for name in a]).norm())

    way = distance(whole, began.state_dict())
    for rows in PARTS:
        parts = train(tmp_path / str(rows), shards, tiny, replace(config, micro_batch=rows))
        assert distance(parts, whole) < 0.05 * way
        for a, b in zip(logged(tmp_path / "whole"), logged(tmp_path / str(rows)), strict=True):
            assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=2e-3)


def test_the_same_inputs_give_the_same_weights(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig
) -> None:
    first, second = (train(tmp_path / name, shards, tiny) for name in "ab")
    assert equal(first, second)
    assert not equal(first, train(tmp_path / "c", shards, tiny, replace(CONFIG, seed=1)))


class StopsAt(NextTokenStage):
    """Asks its own process to stop while it computes the batch of a step."""

    step = 3
    signal_number = signal.SIGTERM

    def weight(self, batch: Batch) -> int:
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen == self.step:
            os.kill(os.getpid(), self.signal_number)
        return super().weight(batch)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_checkpoint_and_the_run_goes_on_bit_for_bit(
    tmp_path: Path,
    shards: ShardReader,
    tiny: ModelConfig,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = train(tmp_path / "whole", shards, tiny)
    monkeypatch.setattr(StopsAt, "signal_number", number)
    before = signal.getsignal(number)
    with pytest.raises(InterruptedRun, match="after step 3 of 6") as caught:
        train(tmp_path / "run", shards, tiny, kind=StopsAt)
    assert caught.value.signal_number == number
    assert signal.getsignal(number) is before
    assert (tmp_path / "run/checkpoints/step_00000003").exists()
    assert equal(whole, train(tmp_path / "run", shards, tiny))
    steps = [line["step"] for line in logged(tmp_path / "run")]
    assert steps == sorted(set(steps)) == list(range(7))


def test_samples_are_taken_at_each_evaluation_and_change_no_bit(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig, tokenizer: Tokenizer
) -> None:
    plain = train(tmp_path / "plain", shards, tiny)
    assert not (tmp_path / "plain/samples.jsonl").exists()
    assert equal(plain, train(tmp_path / "run", shards, tiny, tokenizer=tokenizer))
    rows = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [step for step in (0, 3, 6) for _ in range(4)]
    assert [row["prompt"] for row in rows[:4]] == [row["prompt"] for row in rows[4:8]]
    assert all(row["answer"] for row in rows[4:])


def test_memory_is_that_of_this_process_and_grows_with_what_it_holds() -> None:
    script = (
        "import sys, torch\n"
        "from cygnet.train.hardware import peak_memory_bytes\n"
        "before = peak_memory_bytes(torch.device('cpu'))\n"
        "torch.ones(50_000_000)\n"
        "print(before, peak_memory_bytes(torch.device('cpu')))"
    )
    held = torch.ones(300_000_000)  # in the process that starts the other
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    before, after = map(int, found.stdout.split())
    assert before < 4 * len(held)
    assert 190_000_000 < after - before < 300_000_000


def test_other_settings_are_refused_by_name_and_nothing_is_lost(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig
) -> None:
    train(tmp_path / "run", shards, tiny)
    changed = replace(CONFIG, learning_rate=0.02)
    with pytest.raises(UserError, match=r"learning_rate was 0\.01, now 0\.02"):
        train(tmp_path / "run", shards, tiny, changed)
    with pytest.raises(UserError, match="the data was not there before"):
        train(tmp_path / "run", shards, tiny, data="0" * 64)
    train(tmp_path / "run", shards, tiny, replace(changed, resume="never"))
    assert (tmp_path / "run.old-1/checkpoints/step_00000006").exists()
    assert read_yaml(tmp_path / "run/config.yaml")["train"]["learning_rate"] == 0.02


def test_resume_must_have_something_to_resume(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig
) -> None:
    with pytest.raises(UserError, match="--resume must"):
        train(tmp_path / "run", shards, tiny, replace(CONFIG, resume="must"))


class Poisoned(NextTokenStage):
    """Gives an infinite loss for one row of the batch of step 3."""

    def batch(self, number: int) -> Batch:
        batch = super().batch(number)
        if number == 3:
            batch.positions[5, 0] = 10_000
        return batch

    def loss(self, model: Transformer, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        total, metrics = super().loss(model, rows)
        return total / (rows.positions < 10_000).all(), metrics


def test_a_loss_that_is_not_finite_names_step_and_row_and_spares_the_checkpoint(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig
) -> None:
    with pytest.raises(DivergedError, match=r"step 3: the loss of row 5 .*documents \d+"):
        train(tmp_path / "run", shards, tiny, kind=Poisoned)
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert kept == ["step_00000002"]


class WrongId(NextTokenStage):
    """A batch with a token that the model does not have."""

    def batch(self, number: int) -> Batch:
        batch = super().batch(number)
        batch.tokens[2, 1] = 100_000
        return batch


class NoLabels(NextTokenStage):
    """A batch in which there is nothing to learn."""

    def batch(self, number: int) -> Batch:
        batch = super().batch(number)
        batch.labels.fill_(-100)
        return batch


@pytest.mark.parametrize(
    ("kind", "message"),
    [(WrongId, "step 0, row 2 .*outside the vocabulary"), (NoLabels, "step 0: no token .* label")],
)
def test_a_batch_that_cannot_be_trained_on_is_named(
    tmp_path: Path,
    shards: ShardReader,
    tiny: ModelConfig,
    kind: type[NextTokenStage],
    message: str,
) -> None:
    with pytest.raises(DivergedError, match=message):
        train(tmp_path / "run", shards, tiny, kind=kind)
    assert not (tmp_path / "run/checkpoints").exists()


def test_minutes_become_steps_that_repeat_the_run_exactly(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig
) -> None:
    timed = replace(CONFIG, steps=None, minutes=0.03)
    by_time = train(tmp_path / "time", shards, tiny, timed)
    steps = read_yaml(tmp_path / "time/config.yaml")["train"]["steps"]
    by_steps = train(tmp_path / "steps", shards, tiny, replace(CONFIG, steps=steps))
    assert equal(by_time, by_steps)


def test_a_run_killed_before_its_first_checkpoint_keeps_its_number_of_steps(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig
) -> None:
    timed = replace(CONFIG, steps=None, minutes=0.03)
    train(tmp_path / "run", shards, tiny, timed)
    steps = read_yaml(tmp_path / "run/config.yaml")["train"]["steps"]
    shutil.rmtree(tmp_path / "run/checkpoints")
    again = replace(timed, minutes=0.03)
    train(tmp_path / "run", shards, tiny, again)
    assert read_yaml(tmp_path / "run/config.yaml")["train"]["steps"] == steps


def test_training_lowers_the_heldout_loss_in_every_dtype(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig
) -> None:
    for dtype in ("fp32", "bf16", "fp16"):
        config = replace(CONFIG, steps=12, dtype=dtype)
        train(tmp_path / dtype, shards, tiny, config)
        losses = [m["heldout_loss"] for m in logged(tmp_path / dtype) if "heldout_loss" in m]
        assert losses[-1] < 0.8 * losses[0], dtype


def test_a_gradient_that_is_no_number_names_its_parameter(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig
) -> None:
    model = Transformer(tiny)
    model.initialize(torch.Generator().manual_seed(0))
    model.model.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
    before = weights(model)
    stage = NextTokenStage("pretrain", shards, shards, CONFIG)
    with pytest.raises(DivergedError, match=r"the gradient is not finite \(model.norm.weight\)"):
        Engine(model, stage, CONFIG, tmp_path / "run", {}).train()
    assert equal(before, weights(model))


def test_the_generator_of_a_gpu_goes_on_too(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout draws from it; there is none here, so torch's two functions are stood in for."""
    gpu, drawn = torch.device("cuda", 1), [torch.tensor([5, 6, 7], dtype=torch.uint8)]
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: drawn[device.index - 1])
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: drawn.append((state, device))
    )
    monkeypatch.setattr(engine, "generator_state", lambda _: hardware.generator_state(gpu))
    monkeypatch.setattr(
        engine, "set_generator_state", lambda _, state: hardware.set_generator_state(gpu, state)
    )
    train(tmp_path / "run", shards, tiny)
    newest = tmp_path / "run/checkpoints/step_00000006"
    assert json.loads((newest / "state.json").read_text())["device_generator"] == [5, 6, 7]
    (tmp_path / "run/metrics.jsonl").unlink()
    shutil.rmtree(newest)
    train(tmp_path / "run", shards, tiny)
    [(state, device)] = drawn[1:]
    assert torch.equal(state, drawn[0]) and device == gpu
    assert hardware.generator_state(torch.device("cpu")) is None
