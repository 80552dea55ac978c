"""Every block for curl and openai-python in docs/serving.md runs as it stands."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.running import Running, running

TEXT = (Path(__file__).parents[2] / "docs/serving.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```$", TEXT, re.S | re.M)


@pytest.fixture(scope="module")
def demo(folder: Path) -> Iterator[Running]:
    with running(f"demo={folder}") as begun:
        yield begun


def test_blocks_are_found() -> None:
    assert [kind for kind, _ in BLOCKS].count("bash") == 3
    assert [kind for kind, _ in BLOCKS].count("python") == 4
    assert all(ADDRESS in block for _, block in BLOCKS)


@pytest.mark.parametrize(("kind", "block"), BLOCKS)
def test_a_block_runs_as_it_stands(demo: Running, kind: str, block: str) -> None:
    needed = "curl" if kind == "bash" else re.findall(r"^(?:from|import) (\w+)", block, re.M)[0]
    if not (shutil.which(needed) if kind == "bash" else importlib.util.find_spec(needed)):
        pytest.skip(f"{needed} is not installed")
    program = ["bash", "-euc"] if kind == "bash" else [sys.executable, "-c"]
    done = subprocess.run(
        [*program, block.replace(ADDRESS, demo.url)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and '"error"' not in done.stdout
    if '"stream": true' in block:
        assert done.stdout.rstrip().endswith("data: [DONE]")


def test_the_limits_are_those_of_the_settings() -> None:
    from cygnet.serve.settings import ServeConfig

    settings = ServeConfig(models=("a",))
    table = TEXT[TEXT.index("| limit | flag |") :].partition("\n\n")[0]
    told = re.findall(r"`--(\w+)(?: ([\d.]+))?`", table)
    assert len(told) > 8
    for name, value in told:
        assert hasattr(settings, name), name
        assert not value or float(value) == getattr(settings, name), name


def test_the_metrics_are_those_that_are_told(demo: Running) -> None:
    demo.client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "hi"}], max_tokens=2
    )
    told = set(re.findall(r"`(cygnet_\w+)`", TEXT))
    found = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for name in re.findall(r"^(cygnet_\w+)", demo.http.get("/metrics").text, re.M)
    }
    assert told == found


def test_extra_fields_of_the_list_of_models_are_told(demo: Running) -> None:
    (model,) = demo.http.get("/v1/models").json()["data"]
    assert model.keys() - {"id", "object", "created", "owned_by"} == {"context_length", "stage"}
    assert json.dumps(model["id"]) == '"demo"'
