"""What each of two processes really holds: state is cut, and the planner's bytes are those."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cygnet.text.shards import ShardReader
from tests.train.parallel.conftest import environment, request, torchrun

pytestmark = pytest.mark.slow

SCRIPT = str(Path("benchmarks/parallel_memory.py").resolve())
SIZES = {
    "vocab_size": 300, "hidden_size": 64, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2,
    "intermediate_size": 96, "max_position": 64,
}  # fmt: skip


def held(shards: ShardReader, run: Path, processes: int, **config: Any) -> dict[str, Any]:
    """Return what each process held and was planned to, the most of any, by kind and name."""
    words = json.dumps({**request(shards, run, steps=2, **config), "sizes": SIZES})
    command = [SCRIPT, "--words", words]
    command = (
        torchrun("--standalone", "--nproc_per_node=2", *command)
        if processes > 1
        else [sys.executable, *command]
    )
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text()) for path in run.glob("held_*.json")]
    assert len(found) == processes
    return {
        kind: {name: max(one[kind][name] for one in found) for name in found[0][kind]}
        for kind in ("held", "planned")
    }


def zero(stage: int) -> dict[str, str]:
    return {"deepspeed": f"configs/deepspeed/zero{stage}.json", "optimizer": "adamw"}


@pytest.mark.parametrize(
    "config",
    [
        {"parallel": "fsdp", "optimizer": "muon"},
        {"parallel": "fsdp", "optimizer": "adamw"},
        zero(1),
    ],
    ids=["fsdp, Muon", "fsdp, AdamW", "ZeRO 1"],
)
def test_each_of_two_processes_holds_half_of_the_optimizer_state(
    config: dict[str, str], labelled: ShardReader, tmp_path: Path
) -> None:
    one = held(labelled, tmp_path / "one", 1, optimizer=config["optimizer"])
    two = held(labelled, tmp_path / "two", 2, **config)
    assert two["held"]["optimizer"] == pytest.approx(one["held"]["optimizer"] / 2, rel=0.1)


WAYS = {
    **{way: {"parallel": way} for way in ("ddp", "fsdp", "tensor", "pipeline")},
    **{f"zero{stage}": zero(stage) for stage in range(4)},
}


@pytest.mark.parametrize(
    ("way", "dtype"),
    [*((way, "bf16") for way in WAYS), ("fsdp", "fp32"), ("zero1", "fp32"), ("zero3", "fp32")],
)
def test_tensors_are_as_large_as_planned(
    way: str, dtype: str, labelled: ShardReader, tmp_path: Path
) -> None:
    """With accumulation, which is when gradients are most."""
    found = held(labelled, tmp_path / "run", 2, dtype=dtype, **WAYS[way])
    for name in ("weights", "gradients", "optimizer"):
        planned = found["planned"][name]
        assert found["held"][name] == pytest.approx(planned, rel=0.05), name
