"""Weights of data sets: read off the paths, carried into rows, refused where they mean nothing."""

import json
from pathlib import Path

import pytest

from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.corpus.instructions import InstructionConfig, build_instructions
from cygnet.corpus.mixture import parse_mixture
from cygnet.corpus.pipeline import prepare
from cygnet.corpus.settings import DataConfig
from cygnet.errors import UserError
from cygnet.files import read_jsonl

NOTES = {"a.jsonl": 12, "b.jsonl": 9, "c.jsonl": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in NOTES.items():
        asked = [
            {
                "messages": [
                    {"role": "user", "content": f"What is number {i} of {name} made of?"},
                    {"role": "assistant", "content": f"Of {i} times {name[0] * (i + 3)}."},
                ]
            }
            for i in range(count)
        ]
        (tmp_path / name).write_text("\n".join(map(json.dumps, asked)))
    return tmp_path


def test_paths_are_parted_from_their_weights(folder: Path) -> None:
    given = (f"{folder}/a.jsonl=2", f"{folder}/b.jsonl=0.5", f"{folder}/c.jsonl")
    paths, weights = parse_mixture(given)
    assert paths == tuple(f"{folder}/{name}" for name in NOTES)
    assert weights == {"a.jsonl": 2, "b.jsonl": 0.5}
    assert parse_mixture(()) == ((), {})
    assert parse_mixture([f"{folder}/*.jsonl=1"]) == ((f"{folder}/*.jsonl",), {})
    named = folder / "x=3"
    (folder / "a.jsonl").rename(named.with_suffix(".jsonl"))
    assert parse_mixture([f"{named}.jsonl"]) == ((f"{named}.jsonl",), {})
    assert parse_mixture([f"{named}.jsonl=4"])[1] == {"x=3.jsonl": 4}


def test_training_rows_carry_their_files_weight(folder: Path) -> None:
    paths, weights = parse_mixture([f"{folder}/a.jsonl=2", f"{folder}/b.jsonl=0.5", f"{folder}/c*"])
    data = prepare(DataConfig(paths=paths, heldout_share=0.2), folder / "data")
    out = build_instructions(data, folder / "out", InstructionConfig(), weights)
    rows = [row for row in read_jsonl(out / TRAIN) if row["kind"] == "chat"]
    groups = {row["group"] for row in rows}
    assert {"a", "b"} < groups and len(groups) == 3
    for row in rows:
        assert row.get("weight") == weights.get(row["source"].partition(":")[0])
    assert not any("weight" in row for row in read_jsonl(out / HELDOUT))


@pytest.mark.parametrize("weight", ["", "x", "0", "-1", "nan", "inf", "1e9"])
def test_what_is_no_weight_is_refused(folder: Path, weight: str) -> None:
    with pytest.raises(UserError, match=r"is no weight; give a number above zero"):
        parse_mixture([f"{folder}/a.jsonl={weight}"])


def test_weights_that_cannot_be_told_apart_are_refused(folder: Path) -> None:
    other = folder / "more" / "a.jsonl"
    other.parent.mkdir()
    other.write_text((folder / "b.jsonl").read_text())
    for second in (str(other), f"{other}=3"):
        for given in ([f"{folder}/a.jsonl=2", second], [second, f"{folder}/a.jsonl=2"]):
            with pytest.raises(UserError, match=r"a\.jsonl has the name of one with another"):
                parse_mixture(given)
    assert parse_mixture([f"{folder}/a.jsonl=2", f"{other}=2"])[1] == {"a.jsonl": 2}
    data = prepare(DataConfig(paths=(f"{folder}/a.jsonl",)), folder / "data")
    with pytest.raises(UserError, match="a folder of cygnet data has no weight"):
        parse_mixture([f"{data}=2"])
