import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.corpus.document import Document
from cygnet.corpus.read import slices as slicing
from cygnet.corpus.read.find import InputFile, find_files
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import read_file
from cygnet.corpus.read.slices import KnownCuts, slices
from cygnet.errors import UserError

LINE = "<|endoftext|>"


def one(path: Path, content: bytes) -> InputFile:
    path.write_bytes(content)
    (file,) = find_files([str(path)], Problems())
    return file


def read(files: list[InputFile], max_chars: int = 50) -> tuple[list[Document], dict[str, Any]]:
    problems = Problems()
    documents = [d for file in files for d in read_file(file, problems, max_chars=max_chars)]
    # Flaws of bytes are named by the first place in a chunk, and slices are other chunks.
    named = {
        kind: (x.count, [] if kind in ("unreadable bytes", "NUL characters") else x.places)
        for kind, x in problems.kinds.items()
    }
    return documents, named


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slices")


ENDS = st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"])
ROWS = st.one_of(
    st.text(max_size=30).map(lambda text: json.dumps({"text": text}).encode()),
    st.text(st.characters(codec="utf-8"), max_size=9).map(str.encode),
    st.just(b"{broken"),
    st.just(b"\xff\xfe\0"),
)


@given(st.lists(st.tuples(ROWS, ENDS)), st.integers(1, 200), st.booleans())
def test_slices_of_json_lines_give_what_the_file_gives(
    folder: Path, rows: list[tuple[bytes, bytes]], slice_bytes: int, has_mark: bool
) -> None:
    mark = b"\xef\xbb\xbf" if has_mark else b""
    file = one(folder / "a.jsonl", mark + b"".join(row + end for row, end in rows))
    parts = slices(file, slice_bytes)
    try:
        whole = read([file])
    except UserError:  # no row at all has a text: of slices, only the first 1,000 rows tell
        return
    assert read(parts) == whole
    assert parts == slices(file, slice_bytes)
    assert len(parts) <= 1 + (folder / "a.jsonl").stat().st_size // slice_bytes
    assert sum(part.num_bytes() for part in parts) == file.num_bytes()


LINES = st.sampled_from(["word", "二字 ", "a. b", "", "\ufeff", LINE])
DOCUMENTS = st.lists(st.lists(LINES, max_size=4).map("\n".join))


@given(DOCUMENTS, st.sampled_from(["\n", "\r\n"]), st.integers(1, 200), st.integers(10, 60))
def test_slices_of_separated_text_give_what_the_file_gives(
    folder: Path, texts: list[str], end: str, slice_bytes: int, max_chars: int
) -> None:
    text = f"\n{LINE}\n".join(texts).replace("\n", end)
    file = one(folder / "a.txt", text.encode())
    with pytest.MonkeyPatch.context() as patch:
        # Nothing but separators may be cut at.
        for name in ("_BLANK_LINE", "_LINE_END"):
            patch.setattr(slicing, name, slicing.re.compile(b"(?!)"))
        parts = slices(file, slice_bytes)
    assert read(parts, max_chars) == read([file], max_chars)


@given(
    st.lists(st.sampled_from(["word ", "二字", "\n", "\n\n", "\r\n", "\r", f"\n{LINE}\n"])),
    st.integers(1, 80),
    st.integers(1, 99),
)
def test_slices_of_any_text_lose_and_double_nothing(
    folder: Path, parts: list[str], slice_bytes: int, search_bytes: int
) -> None:
    file = one(folder / "a.txt", "".join(parts).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slicing, "SEARCH_BYTES", search_bytes)
        cut = slices(file, slice_bytes)
    sliced, whole = read(cut)[0], read([file])[0]
    assert "".join("".join(d.text for d in sliced).split()) == "".join(
        "".join(d.text for d in whole).split()
    )
    assert len(sliced) <= len(whole) + len(cut) - 1
    content = (folder / "a.txt").read_bytes()
    for part in cut[1:]:
        before = content[: part.start]
        assert before.endswith(b"\n")
        text = before.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        assert part.first_line == 1 + text.count(b"\n")


@given(st.lists(st.sampled_from(["a", "\r", "\n", "\r\n"])), st.integers(1, 9), st.integers(1, 5))
def test_lines_are_counted_across_blocks(
    folder: Path, parts: list[str], slice_bytes: int, search_bytes: int
) -> None:
    content = "".join(["x", *parts]).encode()
    file = one(folder / "b.jsonl", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slicing, "SEARCH_BYTES", search_bytes)
        cut = slices(file, slice_bytes)
    for part in cut:
        before = content[: part.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        assert part.first_line == 1 + before.count(b"\n")


def test_a_later_slice_without_a_text_is_no_error(tmp_path: Path) -> None:
    rows = [b'{"text": "one"}\n'] + [b'{"label": 1}\n'] * 3_000
    first, *rest = slices(one(tmp_path / "a.jsonl", b"".join(rows)), 15_000)
    documents, problems = read([first, *rest])
    assert len(rest) == 2 and [d.text for d in documents] == ["one"]
    assert problems["no text"][0] == 3_000


def test_a_text_is_cut_at_a_separator_if_near_then_at_a_blank_line(tmp_path: Path) -> None:
    words = "some words\n" * 10
    text = f"{words}{words}\n{words}{LINE}\n{words}"
    parts = slices(one(tmp_path / "a.txt", text.encode()), 150)
    assert text.encode()[parts[1].start :].decode() == words and len(parts) == 2
    text = f"{words}{words}\n{words}{words}"
    parts = slices(one(tmp_path / "a.txt", text.encode()), 150)
    assert text[parts[1].start :] == words + words
    parts = slices(one(tmp_path / "a.txt", (words * 9).encode()), 150)
    assert [part.start for part in parts] == [154 * i for i in range(7)]


@pytest.mark.parametrize("num_groups", [1, 2, 7])
@pytest.mark.parametrize("slice_bytes", [1, 300, 10_000])
def test_slices_of_parquet_are_whole_row_groups(
    tmp_path: Path, num_groups: int, slice_bytes: int
) -> None:
    table = pyarrow.table({"text": [f"row {i}" for i in range(70)], "n": list(range(70))})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=70 // num_groups)
    (file,) = find_files([str(path)], Problems())
    parts = slices(file, slice_bytes)
    assert read(parts) == read([file])
    assert len(parts) == (num_groups if slice_bytes == 1 else len(parts))
    assert 0 < sum(part.num_bytes() for part in parts) <= path.stat().st_size


def test_what_cannot_be_cut_is_one_slice(tmp_path: Path) -> None:
    import gzip

    contents = {
        "a.txt.gz": gzip.compress(os.urandom(5000)),
        "a.txt": gzip.compress(os.urandom(5000)),
        "b.txt": ("für zwölf Köche\n" * 300).encode("cp1252"),
        "c.txt": ("wide\n" * 300).encode("utf-16"),
        "a.csv": b"text\n" + b"row\n" * 300,
        "a.json": b"[]" * 300,
        "d.txt": b"one line without an end " * 300,
        "a.parquet": b"PAR1" + random.Random(0).randbytes(500),
    }
    for name, content in contents.items():
        file = one(tmp_path / name, content)
        assert slices(file, 100) == [file]
    gone = one(tmp_path / "e.txt", b"x\n" * 300)
    gone.path.unlink()
    assert slices(gone, 100) == [gone]
    with pytest.raises(UserError, match="slice_bytes is 0"):
        slices(gone, 0)


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_what_is_known_by_its_content_is_not_counted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = one(tmp_path / f"a.{kind}", b'{"text": "one"}\n' * 300)
    small = one(tmp_path / f"b.{kind}", b"a line that never ends " * 300)
    known = KnownCuts(tmp_path / "cuts.json")
    first = slices(file, 1_000, known, "sha-a"), slices(small, 1_000, known, "sha-b")
    assert first == (slices(file, 1_000), slices(small, 1_000)) and len(first[0]) > 3
    known.save()
    with monkeypatch.context() as patch:
        patch.setattr(slicing, "_line_cuts", None)  # no line is counted
        known = KnownCuts(tmp_path / "cuts.json")
        again = slices(file, 1_000, known, "sha-a"), slices(small, 1_000, known, "sha-b")
    assert again == first
    assert slices(file, 2_000, known, "sha-a") == slices(file, 2_000)
    changed = one(file.path, b'{"text": "another"}\n' * 300)
    assert slices(changed, 1_000, known, "sha-c") == slices(changed, 1_000) != first[0]
    assert slices(changed, 1_000, known, "") == slices(changed, 1_000)
    known.save()
    slices(changed, 1_000, known := KnownCuts(tmp_path / "cuts.json"), "sha-c")
    known.save()
    assert len(json.loads((tmp_path / "cuts.json").read_text())) == 1  # what is gone is forgotten


def test_a_file_of_what_is_known_that_is_damaged_counts_for_nothing(tmp_path: Path) -> None:
    file = one(tmp_path / "a.jsonl", b'{"text": "one"}\n' * 300)
    (tmp_path / "cuts.json").write_text("{broken")
    assert slices(file, 1_000, KnownCuts(tmp_path / "cuts.json"), "x") == slices(file, 1_000)


@pytest.mark.parametrize(
    "damaged",
    [
        *(5, None, "text", {"a": 1}, [5], [[1, 2, 3]], [[1]], [["1", 2]], [[1.5, 2]], [None]),
        *([[True, 2]], [[0, 2]], [[-4, 2]], [[16, 1]], [[32, 3], [16, 2]]),
        [[16, 3], [32, 2]],
        [[16, 2], [16, 2]],
    ],
)
def test_cuts_that_are_none_are_found_anew(tmp_path: Path, damaged: Any) -> None:
    file = one(tmp_path / "a.jsonl", b'{"text": "one"}\n' * 300)
    path = tmp_path / "cuts.json"
    slices(file, 1_000, known := KnownCuts(path), "x")
    known.save()
    sound = path.read_text()
    path.write_text(json.dumps(dict.fromkeys(json.loads(sound), damaged)))
    known = KnownCuts(path)
    assert slices(file, 1_000, known, "x") == slices(file, 1_000)
    known.save()
    assert path.read_text() == sound


def test_what_cannot_be_read_now_is_not_known_as_one_slice(tmp_path: Path) -> None:
    content = b'{"text": "one"}\n' * 300
    file = one(tmp_path / "a.jsonl", content)
    known = KnownCuts(tmp_path / "cuts.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slicing, "_is_of_kind", lambda *_: _unreadable())
        assert slices(file, 1_000, known, "x") == [file]
    assert slices(file, 1_000, known, "x") == slices(file, 1_000) != [file]


def _unreadable() -> bool:
    raise OSError("not now")
