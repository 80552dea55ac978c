"""Other stages than pretraining: several processes = one, and stopped = never stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.parallel.conftest import Train
from tests.train.parallel.stages import DRAWING, MAKERS
from tests.train.parallel.test_equal import ELSEWHERE, WAYS, losses, weights

QUICK = ("ddp", "fsdp")
SLOW = ("tensor", "pipeline", "zero1", "zero3")
SAME = [maker for maker in MAKERS if maker not in DRAWING]
CASES = [
    *((maker, way) for maker in SAME for way in QUICK),
    *(
        pytest.param(maker, way, marks=pytest.mark.slow)
        for maker in SAME
        for way in SLOW
        if (maker, way) != ("qlora", "tensor")
    ),
]


def own(way: str) -> dict[str, Any]:
    return {name: value for name, value in WAYS[way].items() if name not in ELSEWHERE}


@pytest.mark.parametrize(("maker", "way"), CASES)
def test_several_processes_are_one(
    maker: str, way: str, alone: Train, together: Train, tmp_path: Path
) -> None:
    one = alone(tmp_path / "one", maker=maker, **own(way))
    several = together(tmp_path / "several", maker=maker, **WAYS[way])
    # The loss of answers against each other may be nearly zero.
    assert losses(several) == pytest.approx(losses(one), rel=1e-4, abs=1e-6)
    assert losses(several, "grad_norm") == pytest.approx(losses(one, "grad_norm"), rel=1e-3)
    for name in ("heldout_size", "heldout_loss", "heldout_own_divergence"):
        assert losses(several, name) == pytest.approx(losses(one, name), rel=1e-4)
    expected, found = weights(one), weights(several)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=5e-4)


@pytest.mark.parametrize("maker", MAKERS)
def test_resumed_is_uninterrupted(maker: str, alone: Train, tmp_path: Path) -> None:
    """From a checkpoint after an odd step: in the middle of what an online stage has collected."""
    check_resumed(alone, maker, tmp_path)


@pytest.mark.parametrize("maker", DRAWING)
def test_several_that_draw_numbers_go_on_with_them(
    maker: str, together: Train, tmp_path: Path
) -> None:
    check_resumed(together, maker, tmp_path, **WAYS["ddp"])


def check_resumed(train: Train, maker: str, folder: Path, **config: Any) -> None:
    whole = train(folder / "whole", maker=maker, checkpoint_every=3, **config)
    cut = train(folder / "cut", maker=maker, checkpoint_every=3, **config)
    last = max((cut / "checkpoints").iterdir())
    for file in last.iterdir():
        file.unlink()
    (cut / "metrics.jsonl").write_text("")
    again = train(cut, maker=maker, checkpoint_every=3, **config)
    assert len(losses(again)) == 3  # it went on, and from the middle
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again).items())
