import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from cygnet.corpus import pipeline
from cygnet.corpus.dedup import comparable
from cygnet.corpus.document import Document, document_id
from cygnet.corpus.near import Compared, jaccard
from cygnet.corpus.pipeline import prepare
from cygnet.corpus.read import problems
from cygnet.corpus.settings import DataConfig
from cygnet.errors import UserError
from cygnet.files import read_jsonl

LEXICON = [f"word{i}" for i in range(500)]


def sentence(rng: random.Random, num_words: int = 40) -> str:
    return " ".join(rng.choices(LEXICON, k=num_words)) + "."


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Two hundred titled texts, with planted duplicates and texts that each rule drops."""
    rng = random.Random(7)
    good = [{"title": f"Title {i}", "text": sentence(rng)} for i in range(200)]
    near = [
        {"title": f"Copy {i}", "text": " ".join([*row["text"].split()[:-1], "changed"])}
        for i, row in enumerate(good[:60])
    ]
    exact = [
        {"title": f"Again {i}", "text": row["text"].upper()} for i, row in enumerate(good[60:90])
    ]
    bad = [{"text": "short"}, {"text": "x" * 300}, {"text": "spam and more spam " * 40}]
    return good + near + exact + bad


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(out: Path) -> tuple[list[Document], list[Document], dict[str, Any]]:
    train, heldout = (
        [Document.from_json(row) for row in read_jsonl(out / name)]
        for name in (pipeline.TRAIN, pipeline.HELDOUT)
    )
    return train, heldout, json.loads((out / "report.json").read_text())


def digest(folder: Path) -> dict[str, str]:
    """The hash of each file but `cost.json`, which holds times."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name not in (pipeline.COST, "report.html")
    }


def config(*paths: Path, **changes: Any) -> DataConfig:
    return DataConfig(paths=tuple(map(str, paths)), **{"heldout_share": 0.2, **changes})


def test_the_waterfall_adds_up(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    out = prepare(config(write(tmp_path / "a.jsonl", rows)), tmp_path / "out")
    train, heldout, report = load(out)
    for waterfall in (report["waterfall"], *report["domains"].values()):
        for unit in ("documents", "characters", "bytes"):
            counts = {name: count[unit] for name, count in waterfall.items()}
            assert counts.pop("read") == sum(counts.values())
    counts = {name: count["documents"] for name, count in report["waterfall"].items()}
    assert counts["read"] == len(rows)
    assert (counts["train"], counts["heldout"]) == (len(train), len(heldout))
    for rule in ("too_short", "character_runs", "repeated_phrases"):
        assert counts[rule] == 1 and report["examples"][rule][0]["source"].startswith("a.jsonl:")
    duplicates = ("exact_duplicate", "near_duplicate", "heldout_duplicate")
    assert sum(counts[name] for name in duplicates) == 90
    assert all(counts[name] > 0 for name in duplicates)
    markdown = (out / "report.md").read_text()
    assert f"| dropped: near_duplicate | {counts['near_duplicate']} |" in markdown


def test_every_problem_is_named_in_a_file_and_five_in_the_report(
    tmp_path: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.jsonl", rows)
    with open(source, "a") as file:
        file.write("{broken\n" * 12)
    for named in (20_000, 9):
        monkeypatch.setattr(problems, "NAMED", named)
        out = prepare(config(source, seed=named), tmp_path / "out")
        found = [row["where"] for row in read_jsonl(out / problems.FILE)]
        first = len(rows) + 1
        assert found == [f"{source}:{line}" for line in range(first, first + min(named, 12))]
        _, _, report = load(out)
        of_kind = report["problems"]["broken row"]
        assert (of_kind["count"], of_kind["named"], len(of_kind["examples"])) == (12, len(found), 5)
        shown = (out / "report.md").read_text()
        assert shown.count(f"{source}:") == 5
        assert f"… and {len(found) - 5} more, see problems.jsonl" in shown


def test_no_training_document_is_like_a_held_out_one(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    out = prepare(config(write(tmp_path / "a.jsonl", rows)), tmp_path / "out")
    train, heldout, _ = load(out)
    assert len(heldout) > 20
    held = [Compared.of(comparable(d)).pairs for d in heldout]
    for document in train:
        pairs = Compared.of(comparable(document)).pairs
        assert all(jaccard(pairs, other) < 0.75 for other in held)
    assert not {d.title for d in train} & {d.title for d in heldout}


def test_the_same_input_gives_the_same_bytes_wherever_it_lies(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        source = write(tmp_path / name / "a.jsonl", rows)
        digests.append(digest(prepare(config(source), tmp_path / name / "out")))
    assert digests[0] == digests[1]
    assert set(digests[0]) == {*pipeline.OUTPUTS, "manifest.json"}


def test_order_of_the_input_changes_neither_side(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    shuffled = random.Random(1).sample(rows, len(rows))
    sides = []
    for name, order in (("a", rows), ("b", shuffled)):
        out = prepare(config(write(tmp_path / f"{name}.jsonl", order)), tmp_path / name)
        train, heldout, _ = load(out)
        sides.append(({d.id for d in train}, {d.id for d in heldout}))
    assert sides[0] == sides[1]


def test_documents_carry_normalised_text_and_its_id(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [{"text": f"\ufeffcafÃ© {sentence(rng)}  \r\nend\0", "n": i} for i in range(5)]
    train, heldout, _ = load(prepare(config(write(tmp_path / "a.jsonl", rows)), tmp_path / "out"))
    for document in train + heldout:
        assert document.text.startswith("café word") and document.text.endswith(".\nend")
        assert document.id == document_id(document.text)


def test_a_second_run_does_nothing_and_says_so(
    tmp_path: Path, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(tmp_path / "a.jsonl", rows), tmp_path / "out"
    prepare(config(source), out)
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    capsys.readouterr()
    prepare(config(source), out)
    assert capsys.readouterr().err == f"data: up to date, nothing to do ({out})\n"
    assert before == {p: p.stat().st_mtime_ns for p in out.iterdir()}


def test_what_changed_is_said_and_made_again(
    tmp_path: Path, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(tmp_path / "a.jsonl", rows), tmp_path / "out"

    def said(*paths: Path, **changes: Any) -> str:
        capsys.readouterr()
        prepare(config(*paths, **changes), out)
        return capsys.readouterr().err

    assert "made again" not in said(source)
    assert "made again, for min_chars was 20, is 30" in said(source, min_chars=30)
    write(source, rows[:150])
    assert "made again, for a.jsonl changed" in said(source, min_chars=30)
    other = write(tmp_path / "b.jsonl", rows[150:])
    assert "made again, for b.jsonl is new" in said(source, other, min_chars=30)
    assert "made again, for a.jsonl is gone" in said(other, min_chars=30)
    (out / "report.md").write_text("spoilt")
    assert "report.md is missing or was changed" in said(other, min_chars=30)
    assert "up to date" in said(other, min_chars=30)


def test_a_folder_of_another_kind_is_never_replaced(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    source, out = write(tmp_path / "a.jsonl", rows), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not made by cygnet data; choose another --out"):
        prepare(config(source), out)
    assert (out / "thesis.txt").read_text() == "years of work"


def test_a_failed_run_leaves_the_folder_as_it_was(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    source, out = write(tmp_path / "a.jsonl", rows), tmp_path / "out"
    before = digest(prepare(config(source), out))
    with pytest.raises(UserError):
        prepare(config(source, text_field="nothing"), out)
    assert digest(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.parts", "a.jsonl", "out"]
    with pytest.raises(UserError):
        prepare(config(source, text_field="nothing"), tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.parts", "a.jsonl", "out"]


def test_output_inside_the_input_folder_is_not_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    rng = random.Random(0)
    for i in range(5):
        (folder / f"{i}.txt").write_text(sentence(rng))
    out = folder / "data"
    first = digest(prepare(config(folder), out))
    (out / "report.md").unlink()
    assert digest(prepare(config(folder), out)) == first


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xef\xbb\xbf"])
def test_nothing_to_read_is_a_clear_line(tmp_path: Path, content: bytes | None) -> None:
    source = tmp_path / "notes"
    source.mkdir()
    if content is not None:
        (source / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"no file to read there|no text found") as raised:
        prepare(config(source), tmp_path / "out")
    assert str(source) in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_all_dropped_is_a_clear_line(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("tiny")
    with pytest.raises(UserError, match=r"all 1 documents were dropped \(too_short 1\)"):
        prepare(config(source), tmp_path / "out")


def test_one_document_leaves_nothing_to_hold_out(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text(sentence(random.Random(0)))
    with pytest.raises(UserError, match="all the text is one document, and one more is needed"):
        prepare(config(source, heldout_share=1e-6), tmp_path / "out")


def test_copies_of_one_text_leave_nothing_to_train_on(tmp_path: Path) -> None:
    text = sentence(random.Random(0), 80)
    rows = [{"text": text + ending} for ending in (" one", " two", " three")]
    source = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match="no training text left"):
        prepare(config(source), tmp_path / "out")


def test_a_small_corpus_has_held_out_text_at_any_share(tmp_path: Path) -> None:
    rng = random.Random(0)
    source = tmp_path / "book.txt"
    source.write_text("\n\n".join(sentence(rng) for _ in range(30)))
    out = prepare(config(source, heldout_share=1e-6, max_chars=1000), tmp_path / "out")
    train, heldout, _ = load(out)
    assert len(heldout) == 1 and len(train) > 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heldout_share": 0.0}, "heldout_share is 0.0; give a value from"),
        ({"near_duplicate_threshold": 1.5}, "near_duplicate_threshold is 1.5"),
        ({"min_chars": 5000, "max_chars": 500}, r"min_chars \(5000\) is over max_chars \(500\)"),
    ],
)
def test_a_wrong_setting_is_a_clear_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataConfig(**changes)


def test_a_name_that_is_no_utf8_harms_nothing(tmp_path: Path) -> None:
    rng = random.Random(0)
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in (b"a.txt", b"x\xff.txt", b"b.txt"):
        with open(os.fsencode(folder) + b"/" + name, "w") as file:
            file.write(sentence(rng))
    train, heldout, _ = load(prepare(config(folder), tmp_path / "out"))
    assert {d.source for d in train + heldout} == {
        "notes/a.txt",
        "notes/b.txt",
        "notes/x\ufffd.txt",
    }


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    values = ["NaN", "1e999", "-Infinity", "[NaN, 1.5]", '{"a": Infinity}']
    lines = [
        f'{{"text": "number {i} of a few {"word " * i}", "value": {value}}}\n'
        for i, value in enumerate(values * 4)
    ]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    out = prepare(config(tmp_path / "a.jsonl", rules="none"), tmp_path / "out")
    rows = [row for name in ("train", "heldout") for row in read_jsonl(out / f"{name}.jsonl.zst")]
    found = {json.dumps(row["fields"]["value"], allow_nan=False) for row in rows}
    assert found == {"null", "[null, 1.5]", '{"a": null}'}


def test_the_highest_threshold_for_near_duplicates_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i, word in enumerate("red green blue swan reed lake moor bank shore cloud".split()):
        for count in (40, 60):  # the same word pairs, not the same words
            (tmp_path / "in" / f"{i}-{count}.txt").write_text(f"{word} green grass " * count)
    strictest = config(
        tmp_path / "in", rules="none", near_duplicate_threshold=1.0, near_duplicate_edits=0.0
    )
    out = prepare(strictest, tmp_path / "out")
    assert "near_duplicate" in (out / "report.md").read_text()
    assert (out / "report.html").exists()
