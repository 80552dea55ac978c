"""Several processes = one: the same losses and the same final weights (invariant 3)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.train.checkpoint import Checkpoint, newest_checkpoint
from tests.train.parallel.conftest import KINDS, Train


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = newest_checkpoint(run / "checkpoints")
    assert checkpoint
    with Checkpoint(checkpoint) as opened:
        return opened.whole("model")


def losses(run: Path, name: str = "loss") -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def zero(stage: int | str) -> dict[str, str]:
    return {
        "parallel": "deepspeed", "deepspeed": f"configs/deepspeed/zero{stage}.json",
        "optimizer": "adamw",
    }  # fmt: skip


def samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


WAYS = {
    "ddp": {"parallel": "ddp"},
    "ddp-adamw": {"parallel": "ddp", "optimizer": "adamw"},
    "ddp-clipped": {"parallel": "ddp", "grad_clip": 0.05},
    "fsdp": {"parallel": "fsdp"},
    "fsdp-adamw": {"parallel": "fsdp", "optimizer": "adamw"},
    "fsdp-clipped": {"parallel": "fsdp", "grad_clip": 0.05},
    "tensor": {"parallel": "tensor"},
    "tensor-clipped": {"parallel": "tensor", "grad_clip": 0.05},
    "pipeline": {"parallel": "pipeline"},
    "pipeline-clipped": {"parallel": "pipeline", "grad_clip": 0.05},
    "zero0": zero(0),
    "zero1": zero(1),
    "zero2": zero(2),
    "zero3": zero(3),
    "zero2-offload": zero("2-offload"),
    "zero3-in-parts": {**zero(3), "deepspeed": "tests/train/parallel/zero3-in-parts.json"},
    "pipeline-1x2": {"parallel": "pipeline", "model_processes": 1},
    "zero0-clipped": {**zero(0), "grad_clip": 0.05},
    "zero2-clipped": {**zero(2), "grad_clip": 0.05},
    "zero3-clipped": {**zero(3), "grad_clip": 0.05},
    "zero2-alone": {**zero(2), "processes": 1},
    "tensor-2x2": {"parallel": "tensor", "model_processes": 2, "processes": 4},
    "pipeline-2x2": {"parallel": "pipeline", "model_processes": 2, "processes": 4},
}
ELSEWHERE = ("parallel", "deepspeed", "model_processes", "processes")


@pytest.mark.parametrize("way", WAYS)
def test_several_processes_are_one(way: str, alone: Train, together: Train, tmp_path: Path) -> None:
    """Five rows a step, cut unevenly, in micro-batches, with other numbers of labels each."""
    config = WAYS[way]
    one = alone(tmp_path / "one", **{k: v for k, v in config.items() if k not in ELSEWHERE})
    several = together(tmp_path / "several", **config)
    assert losses(several) == pytest.approx(losses(one), rel=2e-5)
    norms = losses(one, "grad_norm")
    assert losses(several, "grad_norm") == pytest.approx(norms, rel=2e-4)
    assert min(norms) > config.get("grad_clip", 0)  # where it is to clip, it does in each step
    for name in ("heldout_loss", *(f"heldout_loss/{kind}" for kind in KINDS)):
        assert len(losses(one, name)) == 3
        assert losses(several, name) == pytest.approx(losses(one, name), rel=2e-5)
    # Answers too, computed by all of them: before training, while it goes on, and at its end.
    assert samples(several) == samples(one) and len(samples(one)) == 3 * 4
    expected, found = weights(one), weights(several)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-3, atol=2e-4, msg=lambda said, name=name: f"{name}: {said}"
        )


LOW = [
    *((way, "bf16") for way in ("ddp", "fsdp", "tensor", "pipeline")),
    *((f"zero{stage}", "bf16") for stage in range(4)),
    ("ddp", "fp16"), ("fsdp", "fp16"),
]  # fmt: skip


@pytest.mark.parametrize(("way", "dtype"), LOW)
def test_in_low_precision_several_processes_are_one_to_its_rounding(
    way: str, dtype: str, alone: Train, together: Train, tmp_path: Path
) -> None:
    """A number of bf16 is right to 2^-9, and which sums are rounded where differs."""
    config = WAYS[way]
    own = {k: v for k, v in config.items() if k not in ELSEWHERE}
    one = alone(tmp_path / "one", dtype=dtype, **own)
    several = together(tmp_path / "several", dtype=dtype, **config)
    assert losses(several) == pytest.approx(losses(one), rel=2**-9)
    assert losses(several, "heldout_loss") == pytest.approx(losses(one, "heldout_loss"), rel=2**-9)
