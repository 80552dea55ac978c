import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.corpus.read import table
from cygnet.corpus.read.decode import TextStream
from cygnet.corpus.read.find import find_files
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import read_file
from cygnet.corpus.read.table import Record, records
from cygnet.errors import UserError

FIELDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('\n",; '))
ROWS = st.lists(st.lists(FIELDS, min_size=2, max_size=3), min_size=1)


def table_of(content: str) -> list[Record]:
    stream = TextStream(io.BytesIO(b"\xef\xbb\xbf" + content.encode()), "a.csv", Problems())
    return list(records(stream, ","))


def written(rows: list[list[str]], quoting: int = csv.QUOTE_MINIMAL) -> str:
    file = io.StringIO()
    csv.writer(file, quoting=quoting, lineterminator="\n").writerows(rows)
    return file.getvalue()


@given(ROWS, st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_tables_come_back_as_they_were_written(rows: list[list[str]], quoting: int) -> None:
    found = table_of(written(rows, quoting))
    assert [record.fields for record in found] == rows
    assert not any(record.fault for record in found)
    assert [record.is_last for record in found] == [False] * (len(rows) - 1) + [True]


@given(
    st.lists(st.tuples(st.text("ab c", min_size=1), st.text("ab,c", min_size=1)), min_size=1),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.data(),
)
def test_a_quote_that_is_never_closed_costs_its_line_alone(
    pairs: list[tuple[str, str]], quoting: int, data: st.DataObject
) -> None:
    rows = [[first, second.lstrip(",") or "x"] for first, second in pairs]
    lines = written(rows, quoting).splitlines()
    at = data.draw(st.integers(0, len(lines)))
    lines.insert(at, 'z,"never closed')
    found = table_of("\n".join(lines) + "\n")
    assert [record.line for record in found if record.fault] == [at + 1]
    assert [record.fields for record in found if not record.fault] == rows


def read(path: Path, content: str | bytes, strict: bool = False) -> tuple[list[str], Problems]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    problems = Problems(strict=strict)
    (file,) = find_files([str(path)], problems)
    return [f"{d.source}={d.text}" for d in read_file(file, problems)], problems


def test_the_line_is_named_and_the_rows_behind_it_are_read(tmp_path: Path) -> None:
    rows = "".join(f'{i},"text {i}"\n' if i % 2 else f"{i},text {i}\n" for i in range(4, 2_000))
    content = f'title,text\n2,two\n3,"never closed\n{rows}'
    texts, problems = read(tmp_path / "a.csv", content)
    assert texts == ["a.csv:2=two", *(f"a.csv:{i}=text {i}" for i in range(4, 2_000))]
    assert {kind: x.places for kind, x in problems.kinds.items()} == {
        "broken row": [(f"{tmp_path}/a.csv:3", table.NEVER_CLOSED)]
    }
    with pytest.raises(UserError, match=r"a\.csv:3: broken row"):
        read(tmp_path / "a.csv", content, strict=True)


def test_without_another_quote_the_end_of_the_file_tells(tmp_path: Path) -> None:
    texts, problems = read(tmp_path / "a.csv", 'text\n"never closed\nthree\nfour\n')
    assert texts == ["a.csv:3=three", "a.csv:4=four"] and problems.count("broken row") == 1


def test_a_header_with_a_quote_that_is_never_closed_is_still_the_header(tmp_path: Path) -> None:
    texts, problems = read(tmp_path / "a.csv", 'title,"text\na,one\n"b","two"\n')
    assert texts == ["a.csv:2=one", "a.csv:3=two"]
    assert problems.kinds["broken row"].examples[0].startswith(f"{tmp_path}/a.csv:1: ")


def test_text_or_space_behind_a_closing_quote_is_no_fault(tmp_path: Path) -> None:
    content = 'title,text\n"a"b,one\n"c\nd" ,"two\nlines"\t,\n"e\nf" ,"three"  \n'
    texts, problems = read(tmp_path / "a.csv", content)
    assert texts == ["a.csv:2=one", "a.csv:6=three"]
    assert problems.kinds["broken row"].places == [
        (f"{tmp_path}/a.csv:3", "3 fields, the header has 2")
    ]


def test_a_record_without_an_end_is_given_up_at_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_LINE_CHARS", 1_000)
    found = table_of('a,"b\n' + "some,words\n" * 500 + '"c","d"\n')
    assert [record.line for record in found if record.fault] == [1]
    assert len(found) == 502 and found[-1].fields == ["c", "d"]


@pytest.mark.parametrize("line", ['x","z', 'x" ,"z', '"', 'a,"""', '"a" "b', '","'])
def test_quotes_that_never_fit_are_not_read_over_and_over(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_read = 0
    read_one = table._Lines.__next__

    def counted(lines: table._Lines) -> str:
        nonlocal num_read
        num_read += 1
        return read_one(lines)

    monkeypatch.setattr(table._Lines, "__next__", counted)
    found = table_of(f"{line}\n" * 3_000)
    assert num_read <= 10 * 3_000 and len(found) <= 3_000


def test_a_table_cut_inside_quotes_is_one_problem(tmp_path: Path) -> None:
    content = gzip.compress(b'title,text\na,one\nb,"two\nlines\n', 0)[:-12]
    texts, problems = read(tmp_path / "a.csv.gz", content)
    assert texts == ["a.csv.gz:2=one"]
    assert {kind: x.count for kind, x in problems.kinds.items()} == {"damaged file": 1}


@pytest.mark.parametrize("blank", ["\n", "\r\n", " \n\n", ",,\n", "\t\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_blank_lines_before_the_header_are_passed_over(
    tmp_path: Path, blank: str, delimiter: str
) -> None:
    content = f"{blank * 2}title,text\na,one\n\nb,two\n".replace(",", delimiter)
    before = 2 * blank.count("\n")
    for name in ("a.csv", "a.tsv")[: 1 + (delimiter == "\t")]:
        texts, problems = read(tmp_path / name, content)
        assert texts == [f"{name}:{before + 2}=one", f"{name}:{before + 4}=two"]
        assert not problems.kinds


def test_a_table_of_blank_lines_alone_has_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "\n \n\n")[0] == []
