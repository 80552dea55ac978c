import json
import random
import re
from pathlib import Path

import pytest

from cygnet.corpus.pipeline import REMOVED, prepare
from cygnet.corpus.scale import ScaleConfig
from cygnet.corpus.settings import DataConfig
from cygnet.errors import UserError
from cygnet.files import read_jsonl

LEXICON = [f"word{i}" for i in range(3000)]
ALONE = ScaleConfig(workers=1)


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(LEXICON, k=count))


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_documents_with_passages_of_an_evaluation_set_go_and_are_named(tmp_path: Path) -> None:
    rng = random.Random(0)
    long = [{"text": words(rng, 40), "answer": words(rng, 15)} for _ in range(4)]
    short = [{"text": words(rng, 9)} for _ in range(3)]
    evaluation = write(tmp_path / "exam.jsonl", [*long, *short, {"text": "Too short to tell."}])
    clean = [words(rng, 80) for _ in range(40)]
    spoilt = {
        0: " ".join(long[0]["text"].upper().split()[5:18]),
        1: long[1]["answer"].replace(" ", ",  "),
        2: short[2]["text"],
    }
    near_miss = " ".join(long[2]["text"].split()[:12])
    rows = [
        {"text": f"{text} {spoilt.get(i, near_miss)} {text[:30]}"} for i, text in enumerate(clean)
    ]
    source = write(tmp_path / "a.jsonl", rows)
    config = DataConfig(paths=(str(source),), heldout_share=0.1, evaluation=(str(evaluation),))
    out = prepare(config, tmp_path / "out", ALONE)
    removed = [row for row in read_jsonl(out / REMOVED) if row["reason"] == "contaminated"]
    assert [(row["source"], row["of"]) for row in removed] == [
        ("a.jsonl:1", "exam.jsonl:1"),
        ("a.jsonl:2", "exam.jsonl:2"),
        ("a.jsonl:3", "exam.jsonl:7"),
    ]
    for row, text, length in zip(removed, spoilt.values(), (13, 13, 8), strict=True):
        assert row["passage"] in text and len(re.findall(r"\w+", row["passage"])) == length


def test_the_passage_itself_is_told_where_a_set_is_one_long_text(tmp_path: Path) -> None:
    rng = random.Random(6)
    exam = tmp_path / "exam.txt"
    exam.write_text("\n".join(words(rng, 30) for _ in range(40)))
    passage = " ".join(exam.read_text().split("\n")[23].split()[4:24])
    rows = [{"text": words(rng, 60)} for _ in range(30)]
    rows[7]["text"] += f" ({passage.title()})"
    source = write(tmp_path / "a.jsonl", rows)
    config = DataConfig(paths=(str(source),), heldout_share=0.1, evaluation=(str(exam),))
    (row,) = read_jsonl(prepare(config, tmp_path / "out", ALONE) / REMOVED)
    assert row["source"] == "a.jsonl:8" and row["of"] == "exam.txt"
    assert row["passage"] == " ".join(passage.title().split()[:13])


def test_a_changed_evaluation_set_is_seen(tmp_path: Path) -> None:
    rng = random.Random(1)
    texts = [words(rng, 60) for _ in range(30)]
    source = write(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    evaluation = tmp_path / "exam.jsonl"
    config = DataConfig(paths=(str(source),), heldout_share=0.1, evaluation=(str(evaluation),))
    for number in (3, 8):
        write(evaluation, [{"text": texts[number]}])
        out = prepare(config, tmp_path / "out", ALONE)
        assert [row["source"] for row in read_jsonl(out / REMOVED)] == [f"a.jsonl:{number + 1}"]


def test_a_set_of_short_items_alone_is_a_clear_line(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": words(random.Random(2), 60)}] * 3)
    evaluation = write(tmp_path / "exam.jsonl", [{"text": "2 + 2 ="}])
    config = DataConfig(paths=(str(source),), evaluation=(str(evaluation),))
    with pytest.raises(UserError, match=r"exam\.jsonl: no item of 8 words or more"):
        prepare(config, tmp_path / "out", ALONE)


def test_training_text_with_passages_of_held_out_text_goes(tmp_path: Path) -> None:
    rng = random.Random(3)
    passages = [words(rng, 120) for _ in range(60)]
    # Each passage stands in two otherwise different documents; together they are no duplicates.
    rows = [{"text": f"{words(rng, 200)} {p} {words(rng, 200)}"} for p in passages for _ in (0, 1)]
    source = write(tmp_path / "a.jsonl", rows)
    config = DataConfig(paths=(str(source),), heldout_share=0.3)
    out = prepare(config, tmp_path / "out", ALONE)
    heldout = " ".join(row["text"] for row in read_jsonl(out / "heldout.jsonl.zst"))
    train = [row["text"] for row in read_jsonl(out / "train.jsonl.zst")]
    leaking = [p for p in passages if p in heldout]
    assert len(leaking) > 10
    assert not any(passage in text for passage in leaking for text in train)
    for row in read_jsonl(out / REMOVED):
        line, of = (int(row[name].removeprefix("a.jsonl:")) for name in ("source", "of"))
        assert of - 1 == (line - 1) ^ 1  # the other one with its passage
    common = words(rng, 120)
    rows = [{"text": f"{words(rng, 200)} {common} {words(rng, 200)}"} for _ in range(60)]
    config = DataConfig(paths=(str(write(tmp_path / "b.jsonl", rows)),), heldout_share=0.3)
    out = prepare(config, tmp_path / "common", ALONE)
    assert not list(read_jsonl(out / REMOVED))  # what so many share is nobody's


def test_items_are_cleaned_as_documents_are(tmp_path: Path) -> None:
    item = "東山腳下的湖邊住著許多天鵝，它們每年春天從南方飛回來，在蘆葦叢裡築巢。"
    rng = random.Random(4)
    rows = [{"text": words(rng, 60)} for _ in range(20)] + [{"text": f"{item}{words(rng, 20)}"}]
    source = write(tmp_path / "a.jsonl", rows)
    evaluation = write(tmp_path / "exam.jsonl", [{"question": item}])
    for chinese in ("as_is", "simplified"):
        config = DataConfig(
            paths=(str(source),),
            heldout_share=0.1,
            evaluation=(str(evaluation),),
            chinese=chinese,
            rules="none",
        )
        out = prepare(config, tmp_path / chinese, ALONE)
        removed = [row["source"] for row in read_jsonl(out / REMOVED)]
        assert removed == ["a.jsonl:21"]


def test_sets_of_one_name_are_told_apart(tmp_path: Path) -> None:
    rng = random.Random(5)
    texts = [words(rng, 60) for _ in range(30)]
    source = write(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    both = [tmp_path / folder / "exam.jsonl" for folder in ("one", "two")]
    config = DataConfig(paths=(str(source),), heldout_share=0.1, evaluation=tuple(map(str, both)))
    for number in (3, 8):
        write(both[0], [{"text": texts[number]}])
        write(both[1], [{"text": texts[20]}])
        out = prepare(config, tmp_path / "out", ALONE)
        removed = [row["source"] for row in read_jsonl(out / REMOVED)]
        assert removed == [f"a.jsonl:{number + 1}", "a.jsonl:21"]


def test_a_row_that_is_no_chat_is_not_told_as_lost_where_its_question_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(7)
    texts = [words(rng, 60) for _ in range(30)]
    source = write(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    exam = tmp_path / "exam.jsonl"
    choice = {"question": texts[4], "choices": ["a", "b"], "answer": 1}
    exam.write_text(json.dumps(choice) + "\n")
    config = DataConfig(paths=(str(source),), heldout_share=0.1, evaluation=(str(exam),))
    (row,) = read_jsonl(prepare(config, tmp_path / "out", ALONE) / REMOVED)
    assert row["source"] == "a.jsonl:5" and "conversation" not in capsys.readouterr().err
    exam.write_text(json.dumps(choice) + "\n" + json.dumps({"messages": [{"role": 1}]}) + "\n")
    prepare(config, tmp_path / "out", ALONE)
    told = capsys.readouterr().err
    assert "bad conversation" in told and "exam.jsonl:2" in told and "exam.jsonl:1" not in told


def test_rows_of_an_evaluation_set_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    rng = random.Random(5)
    source = write(tmp_path / "a.jsonl", [{"text": words(rng, 60)} for _ in range(20)])
    choices = [words(rng, 20) for _ in range(3)]
    rows = [
        {"question": words(rng, 30), "choices": choices},
        {"question": {"text": words(rng, 30)}},
        {"stem": words(rng, 30)},
    ]
    exam = tmp_path / "exam.jsonl"
    exam.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    settings = {"heldout_share": 0.1, "evaluation": (str(exam),), "rules": "none"}
    taught = write(tmp_path / "b.jsonl", [{"text": f"{words(rng, 40)} {choices[1]}"}])
    config = DataConfig(paths=(str(source), str(taught)), **settings)
    out = prepare(config, tmp_path / "out", ALONE)
    found = {(row["kind"], row["where"]) for row in read_jsonl(out / "problems.jsonl")}
    assert found == {
        ("no text", f"{exam}:2"), ("no text", f"{exam}:3"), ("broken row", f"{exam}:4"),
    }  # fmt: skip
    assert [row["of"] for row in read_jsonl(out / REMOVED)] == ["exam.jsonl:1"]
    with pytest.raises(UserError, match=r"exam\.jsonl:[24]: (no text|broken row)"):
        prepare(DataConfig(paths=(str(source),), strict=True, **settings), tmp_path / "o", ALONE)
