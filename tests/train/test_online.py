"""Stages that learn from the model's own answers: what the engine does for them."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cygnet.config import ModelConfig, TrainConfig
from cygnet.model.scoring import ScoringTransformer
from cygnet.model.transformer import Transformer
from cygnet.text.shards import ShardReader
from cygnet.train import engine
from cygnet.train.checkpoint import Checkpoint
from cygnet.train.engine import Engine
from cygnet.train.guards import RunStopped
from cygnet.train.stage import OnlineStage, Policy
from tests.train.parallel.stages import EchoStage
from tests.train.test_engine import CONFIG

OFTEN = replace(CONFIG, checkpoint_every=1, keep_checkpoints=1)


class Moody(EchoStage):
    """Wants the checkpoint of one step kept, and stops before another."""

    keeps, stops = 2, 99

    def collect(self, number: int, policy: Policy) -> dict[str, float]:
        if number == self.stops:
            raise RunStopped("enough")
        self.must_keep = number == self.keeps
        return super().collect(number, policy)


def train(
    run: Path, shards: ShardReader, sizes: ModelConfig, stops: int = 99,
    config: TrainConfig = OFTEN,
) -> Transformer:  # fmt: skip
    model = Transformer(sizes)
    model.initialize(torch.Generator().manual_seed(0))
    stage = Moody("pretrain", shards, shards, config)
    stage.stops = stops
    assert isinstance(stage, OnlineStage)
    Engine(model, stage, config, run, {"stage": "pretrain"}).train()
    return model


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_checkpoint_that_a_stage_marks_outlives_those_after_it(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig
) -> None:
    train(tmp_path, shards, tiny)
    assert checkpoints(tmp_path) == ["step_00000003", "step_00000006"]


def test_a_stage_that_stops_leaves_a_checkpoint_to_go_on_from(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig
) -> None:
    config = replace(CONFIG, checkpoint_every=100)
    with pytest.raises(RunStopped, match="enough"):
        train(tmp_path / "cut", shards, tiny, stops=4, config=config)
    assert "step_00000004" in checkpoints(tmp_path / "cut")
    again = train(tmp_path / "cut", shards, tiny, config=config).state_dict()
    whole = train(tmp_path / "whole", shards, tiny, config=config).state_dict()
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_what_is_told_of_some_steps_is_averaged_over_those(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig
) -> None:
    train(tmp_path, shards, tiny, config=replace(CONFIG, log_every=3, checkpoint_every=100))
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    told = [line["collected_labels"] for line in lines if "collected_labels" in line]
    whole = EchoStage("pretrain", shards, shards, CONFIG).loader
    labels = [whole.batch(number).num_labels for number in (0, 2, 4)]
    assert told == [pytest.approx((labels[0] + labels[1]) / 2), labels[2]]


def test_a_frozen_weight_stays_and_is_in_no_checkpoint(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig
) -> None:
    def started() -> ScoringTransformer:
        model = Transformer(tiny)
        model.initialize(torch.Generator().manual_seed(0))
        model.requires_grad_(False)
        scoring = ScoringTransformer.around(model)
        scoring.requires_grad_(False)
        scoring.model.layers[1].requires_grad_(True)
        return scoring

    model = started()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stage = EchoStage("pretrain", shards, shards, CONFIG)
    Engine(model, stage, CONFIG, tmp_path, {"stage": "pretrain"}).train()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (".layers.1." not in name), name
    newest = tmp_path / "checkpoints" / "step_00000006"
    with Checkpoint(newest) as opened:
        kept = set(opened.whole("model"))
    assert kept == {name for name in before if ".layers.1." in name}


def test_a_score_is_zero_at_first_and_can_be_taken_off(tiny: ModelConfig) -> None:
    model = Transformer(tiny)
    model.initialize(torch.Generator().manual_seed(0))
    scoring = ScoringTransformer.around(model)
    hidden = scoring(torch.arange(8)[None])
    assert torch.equal(scoring.scores(hidden), torch.zeros(1, 8))
    plain = scoring.without_score()
    assert type(plain) is Transformer
    assert torch.equal(plain(torch.arange(8)[None]), hidden)


class Slow(EchoStage):
    """Answers before every fifth step, and notes what it is asked."""

    every = 5
    calls: list[int]

    def collect(self, number: int, policy: Policy) -> dict[str, float]:
        self.calls.append(number)
        return super().collect(number, policy)

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.calls = [*getattr(self, "calls", []), -1]


def test_minutes_are_timed_over_a_whole_cycle_of_answers_and_then_forgotten(
    tmp_path: Path, shards: ShardReader, tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def passed(seconds: float, result: Any) -> Any:
        clock[0] += seconds
        return result

    # The engine's clock alone: servers of other tests run on in their threads.
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    model = Transformer(tiny)
    model.initialize(torch.Generator().manual_seed(0))
    config = replace(CONFIG, steps=None, minutes=10, checkpoint_every=100, eval_every=100)
    stage = Slow("pretrain", shards, shards, config)
    made = Engine(model, stage, config, tmp_path, {"stage": "pretrain"})
    collect, update = made._collect, made._update
    monkeypatch.setattr(
        made, "_collect",
        lambda number: passed(20.0 * (number % 5 == 0), collect(number)),
    )  # fmt: skip
    monkeypatch.setattr(made, "_update", lambda *given, **more: passed(2.0, update(*given, **more)))
    made._begin()
    assert stage.calls == [-1, *range(6), -1]
    # 20 s of answers and five steps of 2 s, again and again; the first step is not counted.
    assert made.config.steps == (600 - 52) // 6
