"""`cygnet data train-filter` from files to a filter, its report and its refusals."""

import gzip
import importlib
import json
import random
import shlex
from pathlib import Path

import pytest

from cygnet import cli
from cygnet.corpus.clean.quality import FILE, QualityModel
from cygnet.corpus.clean.words import TextBatch
from cygnet.corpus.pipeline import prepare
from cygnet.corpus.scale import ScaleConfig
from cygnet.corpus.settings import DataConfig
from cygnet.files import read_jsonl
from cygnet.flags import parse
from tests.corpus.dirty_corpus import write_rows

COMMON = "the a of to in on lake swan water reed wind boat shore bird north south".split()


def texts(telling: str, count: int, seed: int) -> list[str]:
    chooser = random.Random(seed)
    words = COMMON + telling.split()
    return [" ".join(chooser.choices(words, k=chooser.randint(40, 90))) for _ in range(count)]


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of good files of two kinds, and a file of bad rows."""
    good, bad = tmp_path / "books", tmp_path / "spam.jsonl.gz"
    (good / "inner").mkdir(parents=True)
    for i, text in enumerate(texts("because therefore nest", 60, 1)):
        (good / f"{i}.txt").write_text(text)
    rows = [json.dumps({"text": text}) for text in texts("because nest feather", 60, 2)]
    (good / "inner" / "more.jsonl").write_text("\n".join([*rows, "broken {"]) + "\n")
    with gzip.open(bad, "wt") as file:
        for text in texts("casino bonus click", 120, 3):
            file.write(json.dumps({"body": text}) + "\n")
    return good, bad


def typed(*line: object) -> None:
    cli.main(["data", "train-filter", *(str(word) for word in line)])


def test_files_to_a_filter_with_a_report(
    sides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = sides
    out = tmp_path / "filters" / "mine"
    typed("--good", good / "*.txt", good / "inner", "--bad", bad, "--out", out)
    shown = capsys.readouterr()
    assert "accuracy" in shown.out and "AUC" in shown.out and "casino" in shown.out
    assert "broken row" in shown.err
    assert (out / "report.md").read_text() in shown.out
    report = json.loads((out / "report.json").read_text())
    assert report["num_used"] == [120, 120] and report["auc"] > 0.95
    model = QualityModel.load(out)
    assert model.sha256 == report["sha256"]
    likely, unlikely = model.scores(TextBatch(["a nest because", "casino bonus click"])).tolist()
    assert likely > 0.5 > unlikely
    first = (out / FILE).read_bytes()
    typed("--good", good, "--bad", bad, "--out", out)  # over the old one, in another order
    assert (out / FILE).read_bytes() == first


def test_it_learns_from_the_text_that_it_will_judge(tmp_path: Path) -> None:
    """What is learnt is what a run without the filter keeps: cleaned in the same way."""
    addresses = [f"jane{i}@mail{i}.example" for i in range(80)]
    sides = {
        "good": [f"{a} {t}" for a, t in zip(addresses, texts("nest", 80, 1), strict=True)],
        "bad": texts("nest", 80, 2),
    }
    for name, side in sides.items():
        write_rows(tmp_path / f"{name}.jsonl", side)
    cleaned: dict[str, Path] = {}
    for name in sides:
        config = DataConfig(paths=(str(tmp_path / f"{name}.jsonl"),), rules="none")
        folder = prepare(config, tmp_path / name, ScaleConfig(workers=1))
        rows = [*read_jsonl(folder / "train.jsonl.zst"), *read_jsonl(folder / "heldout.jsonl.zst")]
        assert len(rows) == 80 and (name == "bad") == ("[EMAIL]" not in rows[0]["text"])
        cleaned[name] = tmp_path / f"{name}-cleaned.jsonl"
        write_rows(cleaned[name], [row["text"] for row in rows])
    raw = [tmp_path / f"{name}.jsonl" for name in sides]
    for out, (good, bad) in (("raw", raw), ("cleaned", cleaned.values())):
        typed("--good", good, "--bad", bad, "--out", tmp_path / out)
    assert (tmp_path / "raw" / FILE).read_bytes() == (tmp_path / "cleaned" / FILE).read_bytes()
    model = QualityModel.load(tmp_path / "raw")
    masked, plain = model.scores(TextBatch(["[EMAIL] a nest", "a nest"])).tolist()
    assert masked > 0.9 and masked > plain


def test_sources_say_where_the_text_of_a_row_is_and_which_rules_clean_it(tmp_path: Path) -> None:
    for name in ("good", "bad"):
        rows = texts("nest" if name == "good" else "casino", 60, len(name))
        mark = "[1]" if name == "good" else ""
        lines = [json.dumps({"text": "no", "says": f"{text}{mark}"}) for text in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        (tmp_path / f"{name}.yaml").write_text(
            f"- path: {name}.jsonl\n  text_field: says\n  rules: web\n"
        )
    typed("--good", tmp_path / "good.yaml", "--bad", tmp_path / "bad.yaml", "--out", tmp_path / "f")
    report = json.loads((tmp_path / "f" / "report.json").read_text())
    assert report["num_used"] == [60, 60]
    told = [word for name in ("good", "bad") for word, _ in report[f"telling_{name}"]]
    assert any("nest" in word for word in told) and not any("1" in word for word in told)


def test_what_is_wrong_is_said_in_a_line(
    sides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = sides
    few = tmp_path / "few.txt"
    few.write_text("One text, and no more.")
    out = tmp_path / "out"
    for line, message in [
        (("--good", good), "--bad: give files, folders or globs"),
        (("--bad", bad), "--good: give files, folders or globs"),
        (("--good", good, "--bad", few), "--bad: 1 different texts are too few"),
        (("--good", good, "--bad", tmp_path / "spam.jsonl"), "no such file or folder"),
        (("--good", good, "--bad", good), "120 texts are given as good and as bad"),
        (("--good", good, "--bad", bad, "--text-field", "txt"), "no field 'txt'"),
        (("--good", good, "--bad", bad, "--sede", 1), "no flag --sede (did you mean --seed?)"),
    ]:
        with pytest.raises(SystemExit) as stop:
            typed(*line, "--out", out)
        shown = capsys.readouterr().err
        assert stop.value.code == 2 and message in shown.replace("\n", " "), shown
        assert not out.exists()


def test_why_a_side_has_no_text_is_told(
    sides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"question": "Which lake?", "choices": [], "answer": 1}) + "\n")
    with pytest.raises(SystemExit):
        typed("--good", sides[0], "--bad", exam, "--out", tmp_path / "out")
    told = capsys.readouterr().err.splitlines()
    assert any("exam.jsonl:1: answer: int given" in line for line in told[:-1])
    assert told[-1].startswith("cygnet: --bad: not one text in it")


def test_a_folder_of_something_else_is_never_replaced(
    sides: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = sides
    with pytest.raises(SystemExit) as stop:
        typed("--good", good, "--bad", bad, "--out", good)
    assert stop.value.code == 2 and "is no quality filter" in capsys.readouterr().err
    assert len(list(good.glob("*.txt"))) == 60


def test_help_has_examples_that_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        typed("--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: cygnet data train-filter" in shown and "--good" in shown
    verb = cli.SUBVERBS["data", "train-filter"]
    command = getattr(importlib.import_module(verb.module), verb.settings)
    for line in verb.examples:
        assert line[:40] in shown
        words = shlex.split(line)[3:]
        assert isinstance(parse(command, words, "data", verb.help, verb.examples), command)


def test_data_itself_stays_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["data", "--about"])
    assert "licence" in capsys.readouterr().out.lower()
