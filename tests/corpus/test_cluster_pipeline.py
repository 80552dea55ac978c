"""A data folder holds the same bytes wherever it was made, and if its maker was killed midway."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cygnet.corpus import pipeline
from cygnet.corpus.pipeline import parts_folder, prepare
from cygnet.corpus.scale import ScaleConfig
from cygnet.corpus.settings import DataConfig
from tests.corpus.dirty_corpus import sentences, write_corpus

ROOT = Path(__file__).parents[2]
ALONE = ScaleConfig(workers=1)
TWO = ScaleConfig(workers=2)
ON_RAY = ScaleConfig(executor="ray", memory_per_task_gb=0.1)
SETTINGS: dict[str, Any] = {
    "paths": ("raw",),
    "evaluation": ("evaluation.jsonl",),
    "heldout_share": 0.1,
    "part_mb": 0.1,
}
OUT = Path("made/data")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dirty text for about thirty parts, read by a path relative to it."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    rng = random.Random(3)
    rows = [json.dumps({"text": sentences(rng, 30)}) for _ in range(1000)]
    (folder / "raw" / "rows" / "long.jsonl").write_text("\n".join([*rows, *rows[:50]]) + "\n")
    return folder


@pytest.fixture(scope="module")
def expected(corpus: Path) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(corpus)
        return digest(prepare(DataConfig(**SETTINGS), Path("alone"), ALONE))


@pytest.fixture
def here(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder of this test, where relative paths lead to the corpus too."""
    for name in ("raw", "evaluation.jsonl"):
        (tmp_path / name).symlink_to(corpus / name)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def digest(out: Path) -> dict[str, str]:
    names = (*pipeline.OUTPUTS, "manifest.json")
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}


def parts_made(folder: Path) -> dict[str, int]:
    """Return when each part was finished."""
    return {path.name: path.stat().st_mtime_ns for path in parts_folder(folder).glob("*.arrow")}


def num_parts() -> int:
    return len(json.loads((parts_folder(OUT) / "plan.json").read_text())["tasks"])


def killed_midway(scale: ScaleConfig) -> dict[str, int]:
    """Start a run, kill it when some parts are there; return them."""
    script = Path("driver.py")
    script.write_text(
        "from pathlib import Path\n"
        "from cygnet.corpus.pipeline import prepare\n"
        "from cygnet.corpus.scale import ScaleConfig\n"
        "from cygnet.corpus.settings import DataConfig\n"
        "if __name__ == '__main__':\n"
        f"    config = DataConfig(**{SETTINGS!r})\n"
        f"    prepare(config, Path({str(OUT)!r}), ScaleConfig(**{vars(scale)!r}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, script], env=environment)
    while len(parts_made(OUT)) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    made = parts_made(OUT)
    assert 3 <= len(made) < num_parts()
    assert not OUT.exists()
    return made


def continued(made: dict[str, int], scale: ScaleConfig) -> dict[str, str]:
    """Run on; return the digest after a look at whether finished parts were left alone."""
    out = prepare(DataConfig(**SETTINGS), OUT, scale)
    after = parts_made(OUT)
    assert len(after) == num_parts()
    assert {name: after.get(name) for name in made} == made
    return digest(out)


def test_local_workers_after_a_kill_give_the_bytes_of_one(
    here: Path, expected: dict[str, str]
) -> None:
    assert continued(killed_midway(TWO), TWO) == expected


@pytest.mark.slow
def test_ray_gives_the_bytes_of_one_process(
    ray_cluster: Any, here: Path, expected: dict[str, str]
) -> None:
    out = prepare(DataConfig(**SETTINGS), OUT, ON_RAY)
    assert num_parts() > 20
    assert digest(out) == expected


@pytest.mark.slow
@pytest.mark.parametrize("then", [ON_RAY, TWO], ids=["ray", "local"])
def test_a_killed_run_on_ray_goes_on(
    ray_cluster: Any, here: Path, expected: dict[str, str], then: ScaleConfig
) -> None:
    assert continued(killed_midway(ON_RAY), then) == expected


@pytest.mark.slow
def test_slurm_gives_the_bytes_of_one_process(
    slurm: ScaleConfig, here: Path, expected: dict[str, str]
) -> None:
    assert digest(prepare(DataConfig(**SETTINGS), OUT, slurm)) == expected


@pytest.mark.slow
def test_a_killed_run_on_slurm_goes_on(
    slurm: ScaleConfig, here: Path, expected: dict[str, str]
) -> None:
    assert continued(killed_midway(slurm), slurm) == expected
