import csv
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.corpus.document import Document
from cygnet.corpus.read.find import find_files
from cygnet.corpus.read.kinds import KINDS
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import read_file
from cygnet.errors import UserError

ROWS = [{"title": f"t{i}", "text": f'text, of "row" {i}\nline 二'} for i in range(7)]


def jsonl(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def csv_bytes(delimiter: str) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, ["title", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue().encode("utf-8-sig")


def parquet_bytes() -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


FILES = {
    "a.jsonl": jsonl(ROWS),
    "a.json": json.dumps(ROWS).encode(),
    "rows.json": json.dumps({"version": 1, "rows": ROWS}).encode(),
    "lines.json": jsonl(ROWS),
    "a.csv": csv_bytes(","),
    "semicolon.csv": csv_bytes(";"),
    "a.tsv": csv_bytes("\t"),
    "a.parquet": parquet_bytes(),
}


def read(
    path: Path, content: bytes | None = None, **options: Any
) -> tuple[list[Document], Problems]:
    if content is not None:
        path.write_bytes(content)
    problems = Problems()
    files = find_files([str(path)], problems)
    return [d for file in files for d in read_file(file, problems, **options)], problems


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_every_kind_gives_the_same_documents(tmp_path: Path, name: str, suffix: str) -> None:
    content = FILES[name]
    if suffix == ".gz":
        content = gzip.compress(content)
    elif suffix == ".zst":
        content = pyarrow.compress(content, "zstd", asbytes=True)
    documents, problems = read(tmp_path / (name + suffix), content)
    assert [d.text for d in documents] == [row["text"] for row in ROWS]
    assert [d.fields for d in documents] == [{"title": row["title"]} for row in ROWS]
    assert {d.domain for d in documents} == {name.split(".")[0]}
    assert not problems.kinds


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz"])
def test_plain_text(tmp_path: Path, name: str) -> None:
    content = "# Title\n\nText 二.\n".encode()
    documents, _ = read(tmp_path / name, gzip.compress(content) if "gz" in name else content)
    assert [(d.text, d.source, d.domain) for d in documents] == [
        ("# Title\n\nText 二.\n", name, "a")
    ]


def test_joined_gzip_members_are_read_to_the_end(tmp_path: Path) -> None:
    content = gzip.compress(b"one\n") + gzip.compress(b"two\n")
    documents, _ = read(tmp_path / "a.txt.gz", content)
    assert [d.text for d in documents] == ["one\ntwo\n"]


def test_long_texts_are_cut_with_their_lines_named(tmp_path: Path) -> None:
    text = "".join(f"Paragraph {i} has some words in it.\n\n" for i in range(100))
    documents, _ = read(tmp_path / "a.txt", text.encode(), max_chars=500)
    assert "".join(d.text for d in documents) == text
    assert documents[0].source == "a.txt"
    assert documents[1].source == f"a.txt:{1 + documents[0].text.count(chr(10))}"
    documents, _ = read(tmp_path / "a.jsonl", jsonl([{"text": text}]), max_chars=500)
    assert "".join(d.text for d in documents) == text
    assert {d.source for d in documents} == {"a.jsonl:1"}


def test_a_broken_line_is_named_and_the_rest_is_used(tmp_path: Path) -> None:
    lines = jsonl(ROWS).split(b"\n")
    lines[2] = lines[2][:-5]
    lines[4] = b"[1, 2]"
    documents, problems = read(tmp_path / "a.jsonl", b"\n".join(lines))
    assert [d.source for d in documents] == [f"a.jsonl:{i}" for i in (1, 2, 4, 6, 7)]
    assert problems.count("broken row") == 2
    first, second = problems.kinds["broken row"].examples
    assert first.startswith(f"{tmp_path}/a.jsonl:3: ")
    assert second.startswith(f"{tmp_path}/a.jsonl:5: an object is needed")


def test_deeply_nested_json_is_a_broken_line(tmp_path: Path) -> None:
    content = b"[" * 200_000 + b"\n" + jsonl(ROWS)
    documents, problems = read(tmp_path / "a.jsonl", content)
    assert len(documents) == len(ROWS) and problems.count("broken row") == 1


def test_rows_without_text_are_counted(tmp_path: Path) -> None:
    rows = [*ROWS, {"title": "x"}, {"text": None}, {"text": "  "}, {"text": 3}, "a bare string"]
    documents, problems = read(tmp_path / "a.jsonl", jsonl(rows))
    assert len(documents) == len(ROWS) + 1
    assert problems.count("no text") == 4


@pytest.mark.parametrize("num_rows", [1, 5000])
def test_no_row_with_a_text_names_the_fields(tmp_path: Path, num_rows: int) -> None:
    rows = [{"texts": "a", "label": 1}] * num_rows
    with pytest.raises(
        UserError, match=r"a\.jsonl: in every row no field .*mean 'texts'.*texts, label"
    ):
        read(tmp_path / "a.jsonl", jsonl(rows))
    documents, _ = read(tmp_path / "a.jsonl", text_field="texts")
    assert len(documents) == num_rows
    documents, problems = read(tmp_path)  # found in a folder, it does not stop the others
    assert documents == [] and problems.count("no text") == num_rows


def test_csv_rows_of_another_width_are_named(tmp_path: Path) -> None:
    content = b'title,text\na,one\nb,two,three\n\n"c\nd",four\ne\n'
    documents, problems = read(tmp_path / "a.csv", content)
    assert [(d.text, d.source) for d in documents] == [("one", "a.csv:2"), ("four", "a.csv:5")]
    assert problems.kinds["broken row"].examples == [
        f"{tmp_path}/a.csv:3: 3 fields, the header has 2",
        f"{tmp_path}/a.csv:7: 1 fields, the header has 2",
    ]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_damaged_file_is_named_and_does_not_stop_the_rest(tmp_path: Path, name: str) -> None:
    rows = [{"text": f"{i} {hash(str(i) * 9)}"} for i in range(50_000)]
    content = {
        "a.jsonl.gz": gzip.compress(jsonl(rows), 1),
        "a.jsonl.zst": pyarrow.compress(jsonl(rows), "zstd", asbytes=True),
        "a.parquet": parquet_bytes(),
    }[name]
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    (tmp_path / "b.txt").write_text("good")
    documents, problems = read(tmp_path)
    assert documents[-1].text == "good"
    assert problems.count("damaged file") == 1
    assert name in problems.kinds["damaged file"].examples[0]
    assert name != "a.jsonl.gz" or len(documents) > 10_000


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json", "a.txt.gz", "a.txt.zst"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    documents, problems = read(tmp_path / name, b"")
    assert documents == [] and problems.count("empty file") == 1


GOOD = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
BAD = {
    "unknown role": [{"role": "wizard", "content": "x"}, *GOOD],
    "two assistants in a row": [*GOOD, {"role": "assistant", "content": "Again."}],
    "empty answer": [GOOD[0], {"role": "assistant", "content": ""}],
    "no assistant": GOOD[:1],
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_conversation_is_named_and_the_rest_is_used(tmp_path: Path, case: str) -> None:
    rows = [{"messages": GOOD}, {"messages": BAD[case]}, {"messages": GOOD}]
    documents, problems = read(tmp_path / "a.jsonl", jsonl(rows))
    assert [d.source for d in documents] == ["a.jsonl:1", "a.jsonl:3"]
    assert problems.count("bad conversation") == 1
    assert problems.kinds["bad conversation"].examples[0].startswith(f"{tmp_path}/a.jsonl:2: ")


def test_a_file_of_bad_conversations_alone_is_not_said_to_lack_a_text(tmp_path: Path) -> None:
    rows = [{"messages": GOOD[:1]}] * 3 + [{"topic": "x"}]
    documents, problems = read(tmp_path / "a.jsonl", jsonl(rows))
    assert documents == [] and problems.count("bad conversation") == 3


@pytest.mark.parametrize(
    "row",
    [
        {"messages": GOOD, "topic": "x"},
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello."},
            ],
            "topic": "x",
        },
        {"instruction": "Hi", "input": "", "output": "Hello.", "topic": "x"},
    ],
)
def test_conversations_of_each_form_keep_messages_and_a_transcript(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    (document,), _ = read(tmp_path / "a.jsonl", jsonl([row]))
    assert document.messages == GOOD
    assert document.text == "User: Hi\n\nAssistant: Hello."
    assert document.fields == {"topic": "x"}


def test_messages_that_are_no_list_are_named_as_such(tmp_path: Path) -> None:
    rows = [{"messages": "User: hi"}, {"messages": [1]}, {"messages": "hi", "text": "a text"}]
    (document,), problems = read(tmp_path / "a.jsonl", jsonl(rows))
    assert document.text == "a text"
    assert problems.count("bad conversation") == 2 and not problems.count("no text")
    assert "messages: str given, a list such as" in problems.lines()[0]


MEASURE = """
import resource, sys
from cygnet.corpus.read.find import find_files
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import read_file
problems = Problems()
small, large = find_files(sys.argv[1:], problems)
list(read_file(small, problems))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
chars = sum(len(d.text) for d in read_file(large, problems))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(chars, problems.count("line too long"), (peak - before) // 1024)
"""


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_one_line_of_200_mb_keeps_memory_flat(tmp_path: Path, kind: str) -> None:
    small, large = tmp_path / f"small.{kind}", tmp_path / f"large.{kind}"
    row = b'{"text": "short"}\n'
    small.write_bytes(row)
    with open(large, "wb") as file:
        file.write(row)
        file.write(b'{"text": "')
        for _ in range(200):
            file.write(b"word " * 200_000)
        file.write(b'"}\n' + row)
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, small, large], check=True, capture_output=True, text=True
    ).stdout
    chars, too_long, grown_mib = map(int, output.split())
    if kind == "txt":
        assert (chars, too_long) == (large.stat().st_size, 0)
    else:
        assert (chars, too_long) == (2 * len("short"), 1)
    assert grown_mib < 100


SUFFIXES = sorted({kind: suffix for suffix, kind in reversed(KINDS.items())}.values())
MARKS = (
    b"",
    b"%PDF-1.7\n",
    b"PK\x03\x04",
    b"PAR1",
    b"WARC/1.0\r\n",
    b"<mediawiki>",
    b"<html>",
    b"{",
)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(
    mark=st.sampled_from(MARKS),
    content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda x: x.encode())),
    packed=st.sampled_from(["", ".gz", ".bz2", ".xz", ".zst"]),
)
def test_any_bytes_in_a_file_of_any_kind_raise_nothing(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, mark: bytes, content: bytes, packed: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    path = folder / f"a{suffix}{packed}"
    path.write_bytes(mark + content)
    try:
        documents, problems = read(folder)
    finally:
        path.unlink()
    assert all(document.text.strip() for document in documents)
    if not mark + content:
        assert problems.count("empty file") == 1 and not documents


def test_a_text_by_another_name_is_read_as_what_it_is(tmp_path: Path) -> None:
    page = (
        b"<!DOCTYPE html><html><body><p>" + b"A paragraph of a page. " * 9 + b"</p></body></html>"
    )
    (document,), problems = read(tmp_path / "a.txt", page)
    assert "A paragraph" in document.text and "<p>" not in document.text
    assert "HTML" in problems.kinds["other kind"].places[0][1]


def test_rows_of_changing_fields_are_each_seen_anew(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"messages": GOOD}, {"Content": "two", "n": 1}, {"n": 1}, *ROWS[:1]]
    documents, problems = read(tmp_path / "a.jsonl", jsonl(rows))
    texts = ["one", "User: Hi\n\nAssistant: Hello.", "two", ROWS[0]["text"]]
    assert [d.text for d in documents] == texts
    assert [d.fields for d in documents] == [{}, {}, {"n": 1}, {"title": "t0"}]
    assert problems.count("no text") == 1


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_fields_come_as_they_were(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "fields.jsonl"
    (document,), _ = read(path, json.dumps({"text": "x", "value": value}).encode())
    assert document.fields == {"value": value}


def test_half_characters_in_fields_are_replaced(tmp_path: Path) -> None:
    content = b'{"text": "x", "a\\ud800": ["\\udc00b", {"c": "\\ud83d\\ude00"}]}\n'
    (document,), _ = read(tmp_path / "a.jsonl", content)
    assert document.fields == {"a\ufffd": ["\ufffdb", {"c": "\U0001f600"}]}


def test_blank_lines_and_space_around_rows_are_no_fault(tmp_path: Path) -> None:
    content = b' {"text": "one"} \n\n  \t\n{"text": "two"}\r\n'
    documents, problems = read(tmp_path / "a.jsonl", content)
    assert [(d.text, d.source) for d in documents] == [("one", "a.jsonl:1"), ("two", "a.jsonl:4")]
    assert not problems.kinds


def test_separators_at_the_ends_and_in_a_row_are_no_text(tmp_path: Path) -> None:
    mark = "<|endoftext|>\n"
    content = f"{mark}{mark}one\n{mark}{mark}{mark}two\n{mark.strip()}".encode()
    documents, _ = read(tmp_path / "a.txt", content)
    assert [d.text for d in documents] == ["one", "two"]


def test_large_rows_of_parquet_come_in_small_batches(tmp_path: Path) -> None:
    texts = [f"{i} " + "word " * 100_000 for i in range(60)]
    table = pyarrow.table({"text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=40)
    documents, _ = read(tmp_path / "a.parquet", max_chars=10_000_000)
    assert [d.text for d in documents] == texts
    assert [d.source for d in documents] == [f"a.parquet:{i}" for i in range(1, 61)]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (pyarrow.array([2**62, 0], pyarrow.timestamp("us")), "4611686018427387904"),
        (pyarrow.array([2**31 - 1, 0], pyarrow.date32()), "2147483647"),
        (pyarrow.array([1, 0], pyarrow.timestamp("ns")), "1970-01-01 00:00:00.000000001"),
        (pyarrow.array([2**62, 0], pyarrow.duration("s")), "4611686018427387904"),
        (pyarrow.array([0, 0], pyarrow.timestamp("us", "Mars/Phobos")), "1970-01-01 00:00:00"),
    ],
)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_time_that_python_has_no_date_for_becomes_text(
    tmp_path: Path, values: pyarrow.Array, shown: str, depth: int
) -> None:
    if depth > 0:
        values = pyarrow.ListArray.from_arrays([0, 1, 2], values)
    if depth > 1:
        values = pyarrow.StructArray.from_arrays([values], ["inner"])
    table = pyarrow.table({"text": ["one", "two"], "t": values})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    documents, problems = read(tmp_path / "a.parquet")
    assert [document.text for document in documents] == ["one", "two"]
    assert shown in str(documents[0].fields["t"])
    assert "1970" in str(documents[1].fields["t"]) or "0" in str(documents[1].fields["t"])
    assert not problems.kinds


def test_a_row_that_cannot_be_converted_costs_itself(tmp_path: Path) -> None:
    broken = pyarrow.array([b"one", b"\xff\xfe", b"three"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), tmp_path / "a.parquet")
    documents, problems = read(tmp_path / "a.parquet")
    assert [document.text for document in documents] == ["one", "three"]
    assert problems.kinds.keys() == {"broken row"}
    assert problems.kinds["broken row"].places[0][0].endswith("a.parquet:2")
