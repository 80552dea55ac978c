"""Killed at any moment and resumed = never interrupted, bit for bit (invariant 4)."""

import json
import os
import subprocess
import sys
from pathlib import Path

from cygnet.files import sha256_file
from cygnet.text.shards import ShardReader

KILLS = 22


def run_with_kills(shards: ShardReader, run: Path, kills: int) -> int:
    script = Path(__file__).with_name("kill_runner.py")
    tokenizer_hash = shards.manifest["tokenizer_hash"]
    command = [sys.executable, script, shards.folder, tokenizer_hash, run, str(kills), "7"]
    finished = subprocess.run(
        list(map(str, command)),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return int(finished.stdout.split()[-1])


def test_a_run_killed_many_times_ends_with_the_same_bits(
    shards: ShardReader, tmp_path: Path
) -> None:
    assert run_with_kills(shards, tmp_path / "whole", 0) == 0
    assert run_with_kills(shards, tmp_path / "killed", KILLS) >= 20
    last = "checkpoints/step_00000150"
    name = f"{last}/rank_00000.safetensors"
    assert sha256_file(tmp_path / "whole" / name) == sha256_file(tmp_path / "killed" / name)
    kept = {}
    for run in ("whole", "killed"):
        lines = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        kept[run] = [
            (m["step"], m.get("loss"), m.get("heldout_loss")) for m in map(json.loads, lines)
        ]
    assert kept["whole"] == kept["killed"]
