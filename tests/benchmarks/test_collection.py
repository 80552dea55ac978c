"""What the benchmarks of corpus preparation are made of: the collection and the planted set."""

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.collection.copy_edits import Editor
from benchmarks.collection.gather import choose, edited, pages, repeat
from benchmarks.collection.packages import domain_of
from benchmarks.collection.plant_near_duplicates import changed_share
from benchmarks.near_duplicates import FILE, Score, joined, load
from cygnet.corpus.clean.words import words
from cygnet.corpus.document import document_id

WORDS = st.lists(st.sampled_from("abcde"), max_size=12)


@pytest.mark.parametrize(
    ("path", "domain"),
    [
        ("usr/share/man/de/man1/ls.1", "man"),
        ("usr/share/man/man3/printf.3posix", "man"),
        ("usr/share/dictd/wn.dict.dz", "dictionaries"),
        ("usr/share/dictd/wn.index", None),
        ("usr/share/games/fortunes/tang300", "books"),
        ("usr/share/games/fortunes/tang300.dat", None),
        ("usr/share/doc/x/html/index.html", "html"),
        ("usr/share/doc/x/html/search.js", None),
        ("usr/share/doc/x/html/_sources/a.rst.txt", "readmes"),
        ("x-1.dist-info/METADATA", "readmes"),
        ("package/index.js", "code"),
        ("usr/bin/x", None),
    ],
)
def test_files_of_packages_are_told_apart(path: str, domain: str | None) -> None:
    assert domain_of(Path(path)) == domain


def test_a_dictionary_is_cut_into_pages_of_whole_entries(tmp_path: Path) -> None:
    entries = [f"word{i}\n  meaning {i} " + "x" * 60 for i in range(100)]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

    def digits(n: int) -> str:
        return (digits(n // 64) if n >= 64 else "") + letters[n % 64]

    start, index = 0, ["00databaseinfo\tA\tB"]
    for i, entry in enumerate(entries):
        index.append(f"word{i}\t{digits(start)}\t{digits(len(entry))}")
        start += len(entry)
    (tmp_path / "d.dict.dz").write_bytes(gzip.compress("".join(entries).encode()))
    (tmp_path / "d.index").write_text("\n".join(index))
    found = list(pages(tmp_path / "d.dict.dz", max_bytes=10**9))
    assert "".join(page["text"] for page in found) == "".join(e + "\n" for e in entries)
    assert len(found) == 2 and found[0]["title"] == "word0"


def test_two_versions_of_a_package_give_the_same_files(tmp_path: Path) -> None:
    for version in ("a-1", "a-2"):
        for i in range(40):
            file = tmp_path / version / "code" / f"{i}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("x" * 100)
    chosen = list(choose([tmp_path / "a-1", tmp_path / "a-2"], 20_000))  # code: 1,800 of them
    names = {folder.name: {p.name for _, f, p in chosen if f == folder} for _, folder, _ in chosen}
    assert names["a-1"] == names["a-2"] and len(names["a-1"]) == 9


@given(st.text(), st.integers(0, 9))
def test_a_repeated_text_keeps_its_number_of_words_and_most_of_them(text: str, seed: int) -> None:
    before, after = text.split(" "), edited(text, random.Random(seed)).split(" ")
    assert len(before) == len(after)
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 0.2 * len(before)


def test_repetition_is_the_same_twice(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    rows = [{"text": f"{i} " + "a b c d " * 50} for i in range(20)]
    (tmp_path / "plain/x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    repeat(tmp_path, 3, seed=1)
    first = (tmp_path / "repeated/000.jsonl").read_bytes()
    repeat(tmp_path, 3, seed=1)
    assert (tmp_path / "repeated/000.jsonl").read_bytes() == first
    texts = [json.loads(line)["text"] for line in first.splitlines()]
    assert len(texts) == 60 and len(set(texts)) > 50 and texts[:20] == [r["text"] for r in rows]


def levenshtein(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


@given(WORDS, WORDS)
def test_changed_share_is_levenshteins_distance(a: list[str], b: list[str]) -> None:
    expected = levenshtein(a, b) / max(len(a), len(b), 1)
    assert changed_share(a, b) == pytest.approx(expected)


@given(st.integers(0, 10_000), st.floats(0.01, 0.2), st.sampled_from(["en", "zh"]))
def test_a_copy_differs_by_no_more_than_it_says(seed: int, share: float, language: str) -> None:
    draw = random.Random(seed)
    text = " ".join(draw.choices(["alpha.", "beta", "gamma;", "delta"], k=60))
    if language == "zh":
        text = "".join(draw.choices("天地玄黄宇宙洪荒，。", k=120))
    copy, touched, kind = Editor(language, [["foreign", "other"]], draw).copy(text, share)
    changed = levenshtein(words(text), words(copy))
    # Insertions, deletions and replacements cost one each, a moved word two, a dash is a word.
    most = touched * len(words(text)) * (2 if kind == "move" else 1)
    assert changed <= most + 1e-6 or kind.startswith(("layout", "mixed"))
    assert touched <= 0.2 + 1 / 60


def test_shipped_set_is_what_its_readme_says() -> None:
    rows = load(FILE)
    originals = {row["id"]: row for row in rows if row["of"] is None}
    copies = [row for row in rows if row["of"] is not None]
    assert len(originals) > 2500 and len(copies) > 1700 and FILE.stat().st_size < 3e6
    assert {row["language"] for row in rows} == {"de", "en", "es", "fr", "zh"}
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["id"] == document_id(row["text"]) for row in rows)
    assert all(100 <= len(row["text"]) <= 10_000 for row in originals.values())
    for row in copies:
        assert 0 < row["edit"] <= 0.2
        assert row["text"] != originals[row["of"]]["text"]
        assert row["language"] == originals[row["of"]]["language"]


def test_recall_follows_chains_and_wrong_pairs_count_against_precision() -> None:
    rows = [
        {"id": "a", "of": None}, {"id": "b", "of": "a"}, {"id": "c", "of": "a"},
        {"id": "d", "of": None}, {"id": "e", "of": "d"},
    ]  # fmt: skip
    score = Score(rows, [(2, 1), (1, 0), (3, 0)])
    assert score.recall().startswith("0.6667") and score.recall().endswith("of 3")
    assert score.precision().startswith("0.6667") and score.wrong == [(3, 0)]
    assert joined(4, [(3, 2), (2, 1)]) == [0, 1, 1, 1]
