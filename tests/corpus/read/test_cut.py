"""A stream that is cut off is one problem, whatever is inside it and wherever it is cut."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest

from cygnet.corpus.read.find import find_files
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import read_file

DRAW = random.Random(1)
WORDS = ["".join(DRAW.choice("abcdefghé二ñ😀") for _ in range(7)) for _ in range(500)]
ROWS = [{"title": f"t{i}", "text": " ".join(DRAW.sample(WORDS, 30))} for i in range(60)]
TEXT = "\n".join(row["text"] for row in ROWS)
LATEX = f"\\documentclass{{article}}\n\\begin{{document}}\n{TEXT}\n\\end{{document}}"
TABLE = io.StringIO()
csv.writer(TABLE).writerows([["title", "text"], *([row["title"], row["text"]] for row in ROWS)])
CELLS = [{"cell_type": "markdown", "source": [row["text"]]} for row in ROWS]
PAGES = "".join(
    f"<page><title>{row['title']}</title><ns>0</ns><id>1</id>"
    f"<revision><text>{row['text']}</text></revision></page>"
    for row in ROWS
)
CONTENTS = {
    "a.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "a.json": json.dumps(ROWS, ensure_ascii=False),
    "a.csv": TABLE.getvalue(),
    "a.html": f"<html><body><p>{TEXT}</p></body></html>",
    "a.xml": f"<mediawiki>{PAGES}</mediawiki>",
    "a.ipynb": json.dumps({"cells": CELLS, "nbformat": 4, "metadata": {}}, ensure_ascii=False),
    "a.txt": TEXT,
    "a.py": TEXT,
    "a.tex": LATEX,
}
PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True),
}


def cuts(num_bytes: int) -> Iterator[int]:
    yield from range(20, num_bytes - 1, num_bytes // 25)
    yield num_bytes - 1


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        *((name, "utf-8") for name in CONTENTS),
        # The others say their encoding themselves.
        *((name, "utf-16") for name in CONTENTS if name not in ("a.xml", "a.html")),
    ],
)
@pytest.mark.parametrize("suffix", PACK)
def test_a_packed_file_that_is_cut_off_is_one_problem(
    tmp_path: Path, name: str, suffix: str, encoding: str
) -> None:
    packed = PACK[suffix](CONTENTS[name].encode(encoding))
    path = tmp_path / f"{name}{suffix}"
    for end in cuts(len(packed)):
        path.write_bytes(packed[:end])
        problems = Problems()
        (file,) = find_files([str(path)], problems)
        texts = [document.text for document in read_file(file, problems)]
        assert not any("\ufffd" in text for text in texts)
        # What is not UTF-8 is told besides; that is no fault of the cut.
        told = {kind: x.count for kind, x in problems.kinds.items() if kind != "other encoding"}
        assert told == {"damaged file": 1}
        assert problems.kinds["damaged file"].places[0][0] == str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_the_whole_rows_before_a_cut_are_used(tmp_path: Path, name: str) -> None:
    packed = gzip.compress(CONTENTS[name].encode())
    path = tmp_path / f"{name}.gz"
    for end in cuts(len(packed)):
        path.write_bytes(packed[:end])
        problems = Problems()
        texts = [
            document.text
            for file in find_files([str(path)], problems)
            for document in read_file(file, problems)
        ]
        wanted = [row["text"] for row in ROWS]
        assert texts[:-1] == wanted[: max(len(texts) - 1, 0)]
        assert not texts or wanted[len(texts) - 1].startswith(texts[-1])
    assert texts == wanted  # only the check sum is missing


def test_rows_of_a_list_before_what_is_broken_in_it_are_used(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "one"}, "two", 3, {"text": oops}, {"text": "five"}]')
    problems = Problems()
    (file,) = find_files([str(path)], problems)
    assert [document.text for document in read_file(file, problems)] == ["one", "two"]
    assert problems.count("broken row") == 1
