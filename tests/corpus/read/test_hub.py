import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cygnet.corpus.read.find import find_files
from cygnet.corpus.read.hub import HubName, parse_name
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import read_file
from cygnet.errors import UserError


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as the hub has them, on this machine."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "poems"
    folder.mkdir()
    for split in ("train", "test"):
        rows = [{"text": f"{split} {i}", "n": i} for i in range(3)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_names() -> None:
    assert parse_name("hf://datasets/a/b") == HubName("a/b", None, "train")
    assert parse_name("hf://datasets/a/b/en:test") == HubName("a/b", "en", "test")
    assert parse_name("hf://datasets/b:all") == HubName("b", None, "all")
    for wrong in ("hf://a/b", "hf://datasets/", "hf://datasets/a/b/c/d", "hf://datasets/a/b:"):
        with pytest.raises(UserError, match="write hf://datasets/OWNER/NAME"):
            parse_name(wrong)


def test_a_data_set_is_streamed_by_name_and_split(data_set: Path) -> None:
    problems = Problems()
    (file,) = find_files([f"hf://datasets/{data_set}"], problems)
    assert file.version and file.domain == "poems"
    documents = list(read_file(file, problems))
    assert [(d.text, d.fields, d.domain) for d in documents] == [
        (f"train {i}", {"n": i}, "poems") for i in range(3)
    ]
    assert documents[0].source == f"{str(data_set).strip('/')}:1"
    (file,) = find_files([f"hf://datasets/{data_set}:test"], problems)
    assert [d.text for d in read_file(file, problems)] == ["test 0", "test 1", "test 2"]
    assert not problems.kinds


def test_a_changed_data_set_has_another_version(data_set: Path) -> None:
    (before,) = find_files([f"hf://datasets/{data_set}"], Problems())
    (data_set / "train.jsonl").write_text('{"text": "other and longer", "n": 1}\n' * 9)
    (after,) = find_files([f"hf://datasets/{data_set}"], Problems())
    assert before.version != after.version


def test_a_wrong_split_or_config_is_a_clear_line(data_set: Path) -> None:
    with pytest.raises(UserError, match=r"no split 'tset' .did you mean 'test'.*train, test"):
        (file,) = find_files([f"hf://datasets/{data_set}:tset"], Problems())
        list(read_file(file, Problems()))


def test_a_wrong_split_is_told_before_anything_is_read(data_set: Path) -> None:
    with pytest.raises(UserError, match=r"no split 'tset'"):
        find_files([f"hf://datasets/{data_set}:tset"], Problems())


@pytest.mark.parametrize("split", ["train+test", "test + train", "all"])
def test_several_splits_are_streamed_one_behind_the_other(data_set: Path, split: str) -> None:
    problems = Problems()
    (file,) = find_files([f"hf://datasets/{data_set}:{split}"], problems)
    names = split.split("+") if "+" in split else ["train", "test"]
    texts = [f"{name.strip()} {i}" for name in names for i in range(3)]
    assert [d.text for d in read_file(file, problems)] == texts and not problems.kinds


def test_each_of_several_splits_must_be_there(data_set: Path) -> None:
    for wrong in ("train+tset", "tset+train"):
        with pytest.raises(UserError, match=r"no split 'tset' .did you mean 'test'"):
            find_files([f"hf://datasets/{data_set}:{wrong}"], Problems())
    with pytest.raises(UserError, match="no split ''"):
        find_files([f"hf://datasets/{data_set}:train+"], Problems())
    with pytest.raises(UserError, match="no split 'all'"):
        find_files([f"hf://datasets/{data_set}:train+all"], Problems())


@pytest.mark.parametrize("split", ["train[:3]", "train[10%:]", "train+test[:1]", "tset[:1]"])
def test_a_part_of_a_split_is_refused_before_anything_is_read(split: str) -> None:
    with pytest.raises(UserError, match=r"streamed whole.*write (train.*|tset) or"):
        find_files([f"hf://datasets/a/b:{split}"], Problems())


def test_a_data_set_that_changes_under_a_run_does_not_stop_it(data_set: Path) -> None:
    problems = Problems()
    (file,) = find_files([f"hf://datasets/{data_set}:test"], problems)
    (data_set / "test.jsonl").unlink()
    assert list(read_file(file, problems)) == []
    assert "no split 'test'" in problems.kinds["failed download"].places[0][1]


def test_without_the_library_the_extra_is_named_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.txt").write_text("x")
    problems = Problems()
    files = find_files(["hf://datasets/a/b", str(tmp_path / "a.txt")], problems)
    assert [file.path.name for file in files] == ["a.txt"]
    ((where, why),) = problems.kinds["failed download"].places
    assert where == "hf://datasets/a/b" and "pip install 'cygnet[hub]'" in why


OFFLINE = """
import huggingface_hub.utils._http as http
from cygnet.corpus.read.find import find_files
from cygnet.corpus.read.problems import Problems
http.time.sleep = lambda _: None
problems = Problems()
assert find_files(["hf://datasets/no/such"], problems) == []
print(problems.lines()[0])
"""


def test_a_hub_that_does_not_answer_is_one_line_and_the_library_says_nothing() -> None:
    pytest.importorskip("datasets")
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "no_proxy": "*"}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "failed download" in done.stdout and done.stdout.count("\n") == 1
    assert done.stderr == ""
