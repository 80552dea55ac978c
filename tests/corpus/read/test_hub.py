import json
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


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'cygnet\[hub\]'"):
        find_files(["hf://datasets/a/b"], Problems())
