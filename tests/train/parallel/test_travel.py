"""A checkpoint goes on under any other way and number of processes (invariant 4)."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.train.parallel.conftest import Train
from tests.train.parallel.test_equal import losses, weights, zero

pytestmark = pytest.mark.slow

ROUTES = [
    ("one", "ddp"), ("one", "fsdp"), ("one", "tensor"), ("one", "pipeline"),
    ("ddp", "one"), ("fsdp", "one"), ("tensor", "one"), ("pipeline", "one"), ("fsdp", "tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), ROUTES, ids=lambda way: way)
def test_a_checkpoint_travels(
    before: str, after: str, alone: Train, together: Train, tmp_path: Path
) -> None:
    def go(way: str, folder: Path) -> Path:
        if way == "one":
            return alone(folder, keep_checkpoints=5)
        return together(folder, parallel=way, keep_checkpoints=5)

    whole = alone(tmp_path / "whole", keep_checkpoints=5)
    run = go(before, tmp_path / "run")
    shutil.rmtree(run / "checkpoints/step_00000006")
    go(after, run)
    assert losses(run) == pytest.approx(losses(whole), rel=2e-5)
    found = weights(run)
    for name, value in weights(whole).items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_checkpoint_travels_to_zero_and_back(
    stage: int, alone: Train, together: Train, tmp_path: Path
) -> None:
    settings = {"optimizer": "adamw", "keep_checkpoints": 5}
    zero = {"parallel": "deepspeed", "deepspeed": f"configs/deepspeed/zero{stage}.json"}
    whole = alone(tmp_path / "whole", **settings)
    run = alone(tmp_path / "run", **settings)
    for step in (4, 6):
        shutil.rmtree(run / f"checkpoints/step_0000000{step}")
    together(run, **settings, **zero)
    shutil.rmtree(run / "checkpoints/step_00000006")
    alone(run, **settings)
    assert losses(run) == pytest.approx(losses(whole), rel=2e-5)
    found = weights(run)
    for name, value in weights(whole).items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-4, msg=name)


def test_the_optimizer_of_a_run_stays_whatever_spreads_it(together: Train, tmp_path: Path) -> None:
    """Where it is left to the way, which would now choose another."""
    automatic = {**zero(2), "optimizer": "auto", "keep_checkpoints": 5}
    whole, run = together(tmp_path / "whole", **automatic), together(tmp_path / "run", **automatic)
    shutil.rmtree(run / "checkpoints/step_00000006")
    together(run, parallel="ddp", keep_checkpoints=5)
    assert losses(run) == pytest.approx(losses(whole), rel=2e-5)
    found = weights(run)
    for name, value in weights(whole).items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-4, msg=name)


SAME_LAYOUT = {
    # Sums of three depend on their order, which must not change on the way.
    "ddp": {"parallel": "ddp", "processes": 3}, "fsdp": {"parallel": "fsdp", "processes": 3},
    "tensor": {"parallel": "tensor"}, "pipeline": {"parallel": "pipeline"},
    **{f"zero{stage}": zero(stage) for stage in range(4)},
}  # fmt: skip


@pytest.mark.parametrize("way", SAME_LAYOUT)
def test_on_the_same_layout_not_a_bit_changes(way: str, together: Train, tmp_path: Path) -> None:
    settings = {**SAME_LAYOUT[way], "keep_checkpoints": 5}
    whole, run = together(tmp_path / "whole", **settings), together(tmp_path / "run", **settings)
    for step in (4, 6):
        shutil.rmtree(run / f"checkpoints/step_0000000{step}")
    together(run, **settings)
    assert losses(run) == losses(whole)
    found = weights(run)
    assert all(torch.equal(value, found[name]) for name, value in weights(whole).items())
