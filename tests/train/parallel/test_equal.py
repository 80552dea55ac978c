"""Two processes = one: the same losses and the same final weights (invariant 3)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.train.checkpoint import Checkpoint, newest_checkpoint
from tests.train.parallel.conftest import Train


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint
    with Checkpoint(checkpoint) as opened:
        return opened.whole("model")


def losses(run: Path, name: str = "loss") -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


WAYS = [
    ("ddp", {}),
    ("ddp", {"optimizer": "adamw"}),
    ("fsdp", {}),
    ("fsdp", {"optimizer": "adamw"}),
    ("tensor", {}),
    ("pipeline", {}),
    *(
        ("deepspeed", {"deepspeed": f"configs/deepspeed/zero{n}.json", "optimizer": "adamw"})
        for n in range(4)
    ),
]


@pytest.mark.parametrize(("way", "config"), WAYS, ids=lambda value: "-".join([str(value)]))
def test_two_processes_are_one(
    way: str, config: dict, alone: Train, together: Train, tmp_path: Path
) -> None:
    """Five rows a step, cut unevenly, in micro-batches, with other numbers of labels each."""
    one = alone(tmp_path / "one", **{k: v for k, v in config.items() if k != "deepspeed"})
    two = together(tmp_path / "two", parallel=way, **config)
    assert losses(two) == pytest.approx(losses(one), rel=2e-5)
    assert losses(two, "grad_norm") == pytest.approx(losses(one, "grad_norm"), rel=2e-4)
    assert losses(two, "heldout_loss") == pytest.approx(losses(one, "heldout_loss"), rel=2e-5)
    # Answers too, computed by all of them: before training, while it goes on, and at its end.
    assert samples(two) == samples(one) and len(samples(one)) == 3 * 4
    expected, found = weights(one), weights(two)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-3, atol=2e-4, msg=lambda said, name=name: f"{name}: {said}"
        )
