import gzip
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.corpus.read import warc
from cygnet.corpus.read.piece import Piece
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.warc import warc_pieces
from cygnet.errors import UserError

WORDS = st.text(st.characters(categories=["Lu", "Ll", "Lo"]), min_size=1, max_size=8)
CHINESE = "春眠不觉晓，处处闻啼鸟。"


def answer(body: bytes, kind: str = "text/html", status: str = "200 OK", **headers: str) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n"
    head += "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return head.encode() + b"\r\n" + body


def record(block: bytes, kind: str = "response", version: str = "1.0", url: str = "a.org") -> bytes:
    content = "application/http; msgtype=response" if kind == "response" else "text/plain"
    return (
        f"WARC/{version}\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:1>\r\n"
        f"WARC-Target-URI: https://{url}/\r\nWARC-Date: 2020-01-02T03:04:05Z\r\n"
        f"Content-Type: {content}\r\nContent-Length: {len(block)}\r\n\r\n"
    ).encode() + block + b"\r\n\r\n"  # fmt: skip


class Unseekable(io.RawIOBase):
    """Gives bytes once, in small blocks, as a socket does."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1) -> Any:
        assert size >= 0, "all at once"
        return self._data.read(min(size, 1000))


def read(data: bytes) -> tuple[list[Piece], Problems]:
    problems = Problems()
    return list(warc_pieces(Unseekable(data), "a.warc", problems)), problems


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("packed", [False, True])
def test_pages_come_with_address_date_and_the_place_where_they_begin(
    version: str, packed: bool
) -> None:
    records = [
        record(b"software: test", "warcinfo", version),
        record(answer(b"<title>T</title><p>one"), version=version),
        record(b"GET / HTTP/1.1\r\n\r\n", "request", version),
        record(answer(b"two", "text/plain"), version=version, url="b.org"),
    ]
    if packed:
        records = [gzip.compress(r) for r in records]
    pieces, problems = read(b"".join(records))
    assert [(p.where, p.text) for p in pieces] == [
        (f"byte {len(records[0])}", "one\n"),
        (f"byte {sum(map(len, records[:3]))}", "two\n"),
    ]
    date = "2020-01-02T03:04:05Z"
    assert pieces[0].fields == {"title": "T", "url": "https://a.org/", "date": date}
    assert pieces[1].fields == {"url": "https://b.org/", "date": date}
    assert not problems.kinds


def test_the_header_s_charset_decides() -> None:
    body = f"<meta charset=utf-8><p>{CHINESE}".encode("gb18030")
    (piece,), _ = read(record(answer(body, "text/html; charset=GBK")))
    assert piece.text == f"{CHINESE}\n"
    (piece,), _ = read(record(answer("Мороз".encode("koi8-r"), "text/plain; charset=koi8-r")))
    assert piece.text == "Мороз\n"


def test_packed_and_chunked_answers_are_unpacked() -> None:
    packed = answer(gzip.compress(b"<p>packed"), Content_Encoding="gzip")
    chunked = answer(b"5\r\n<p>ch\r\n5\r\nunked\r\n0\r\n\r\n", Transfer_Encoding="chunked")
    pieces, _ = read(record(packed) + record(chunked))
    assert [p.text for p in pieces] == ["packed\n", "chunked\n"]


def test_text_archives_are_read_and_other_types_and_errors_passed_over() -> None:
    pieces, problems = read(
        record(CHINESE.encode(), "conversion")
        + record(answer(b"\x89PNG", "image/png"))
        + record(answer(b"<p>not there", status="404 Not Found"))
        + record(answer(b"<p>last"))
    )
    assert [p.text for p in pieces] == [f"{CHINESE}\n", "last\n"]
    assert set(problems.kinds) == {"passed over"}


def test_what_is_passed_over_is_counted_all_in_one_and_is_no_fault() -> None:
    records = [
        *[record(answer(b"\x89PNG", "image/png"))] * 3,
        record(answer(b"{}", "application/json")),
        record(answer(b"<p>not there", status="404 Not Found")),
        record(answer(b"", status="304 Not Modified"), "revisit"),
        record(b"a text", "resource"),
        record(b"?", "wibble"),
        record(b"about", "warcinfo"),
        record(b"GET /", "request"),
        record(b"about", "metadata"),
        record(answer(b"<p>good")),
    ]
    problems = Problems(strict=True)
    pieces = list(warc_pieces(Unseekable(b"".join(records)), "a.warc", problems))
    assert [p.text for p in pieces] == ["good\n"]
    said = (
        "3 image/png, 1 answered 404, 1 application/json, 1 resource records, "
        "1 revisit records, 1 wibble records"
    )
    assert problems.kinds["passed over"].places == [("a.warc", said)]
    assert problems.count("passed over") == 8


def without(name: bytes, whole: bytes) -> bytes:
    head, blank, block = whole.partition(b"\r\n\r\n")
    kept = [line for line in head.split(b"\r\n") if not line.startswith(name)]
    return b"\r\n".join(kept) + blank + block


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("broken", "why", "goes_on"),
    [
        (without(b"WARC-Type", record(answer(b"<p>two"))), "without a WARC-Type", True),
        (without(b"Content-Length", record(answer(b"<p>two"))), "without a Content-Len", False),
        (record(b"no answer of a server"), "without an HTTP answer", True),
        (record(b""), "without an HTTP answer", True),
        (record(answer(b"<p>two")).replace(b"WARC/1.0", b"WURC/1.0"), "Invalid WARC", False),
    ],
)
def test_a_broken_record_is_counted_by_its_place(
    packed: bool, broken: bytes, why: str, goes_on: bool
) -> None:
    pack = gzip.compress if packed else bytes
    first, last = pack(record(answer(b"<p>one"))), pack(record(answer(b"<p>three")))
    data = first + pack(broken) + last
    pieces, problems = read(data)
    assert [p.text for p in pieces] == ["one\n", "three\n"][: 1 + goes_on]
    where, told = problems.kinds["damaged file"].places[0]
    assert why in told and set(problems.kinds) == {"damaged file"}
    assert where == "a.warc" if "Invalid" in why else where == f"a.warc: byte {len(first)}"
    with pytest.raises(UserError, match=why):
        list(warc_pieces(Unseekable(data), "a.warc", Problems(strict=True)))


def test_a_page_that_unpacks_to_too_much_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warc, "MAX_PAGE_BYTES", 10_000)
    bomb = answer(gzip.compress(b"<p>" + b"ha " * 1_000_000), Content_Encoding="gzip")
    pieces, _ = read(record(bomb) + record(answer(b"<p>next")))
    assert len(pieces[0].text) < 10_001 and pieces[1].text == "next\n"
    pieces, problems = read(record(answer(b"<p>" + b"ha " * 9_000)) + record(answer(b"<p>next")))
    assert len(pieces[0].text) < 10_001 and pieces[1].text == "next\n"
    assert problems.count("damaged file") == 1


@pytest.mark.parametrize("packed", [False, True])
def test_what_comes_before_a_cut_is_used(packed: bool) -> None:
    pack = gzip.compress if packed else bytes
    first, second = pack(record(answer(b"<p>one"))), pack(record(answer(b"<p>two" * 99)))
    for end in range(1, len(second) - 4, 7):
        pieces, problems = read(first + second[:end])
        assert pieces[0].text == "one\n"
        # Plain, "WAR" at the end is no header; and the line ends behind a page are no text.
        told = {kind: x.count for kind, x in problems.kinds.items()}
        assert told == {"damaged file": 1} or (not packed and (end < 7 or len(pieces) == 2))
    pieces, problems = read(first + b"no record at all\r\n\r\n" * 20)
    assert pieces[0].text == "one\n" and problems.count("damaged file") == 1


@pytest.mark.parametrize("num_words", [0, 30_000])
@pytest.mark.parametrize("kind", ["conversion", "metadata", "response"])
def test_a_page_about_archives_is_whole_without_the_line_ends_behind_it(
    kind: str, num_words: int
) -> None:
    text = b"padding " * num_words + b"How archives look:\nWARC/1.0 is a format\nof records"
    block = answer(text, "text/plain") if kind == "response" else text
    data = record(b"software: test", "warcinfo") + record(block, kind)
    for end in range(5):
        pieces, problems = read(data[: len(data) - end])
        assert not problems.kinds and len(pieces) == (kind != "metadata")
    header = record(answer(b"<p>next")).partition(b"\r\n\r\n")[0] + b"\r\n"
    for end in (3, 7, 30, len(header) - 1, len(header)):
        problems = read(data + header[:end])[1]
        told = {kind: x.count for kind, x in problems.kinds.items()}
        assert told == {"damaged file": 1}


def test_what_is_no_archive_is_said_to_be_none() -> None:
    assert read(b"")[1].count("empty file") == 1
    assert read(b"<html><p>a page")[1].count("not text") == 1


ARCHIVE = record(answer(b"<p>one")) + record(answer(b"<p>two", "text/html; charset=utf-8"))


@settings(max_examples=200)
@given(st.booleans(), st.integers(0, len(ARCHIVE)), st.binary(max_size=20))
def test_no_damage_raises(packed: bool, at: int, put: bytes) -> None:
    whole = gzip.compress(ARCHIVE) if packed else ARCHIVE
    read(whole[:at] + put + whole[at + len(put) :])


@given(st.binary(max_size=500), st.sampled_from([b"", b"WARC/1.0\r\n", b"\x1f\x8b\x08\0"]))
def test_no_bytes_raise(data: bytes, before: bytes) -> None:
    read(before + data)


@settings(max_examples=50)
@given(st.lists(st.lists(WORDS, min_size=1, max_size=5), min_size=1, max_size=5), st.booleans())
def test_text_comes_back_out(texts: list[list[str]], packed: bool) -> None:
    pack = gzip.compress if packed else bytes
    pages = [f"<p>{' '.join(words)}".encode() for words in texts]
    kind = "text/html; charset=utf-8"
    pieces, _ = read(b"".join(pack(record(answer(page, kind))) for page in pages))
    assert [p.text.split() for p in pieces] == texts


@pytest.mark.parametrize(
    "kind", ["Text/HTML", "TEXT/HTML; charset=UTF-8", "Text/Plain", "Application/XHTML+XML"]
)
def test_media_types_have_no_case(kind: str) -> None:
    pieces, problems = read(record(answer("Schöne Wörter".encode(), kind)))
    assert [piece.text.strip() for piece in pieces] == ["Schöne Wörter"]
    assert not problems.kinds
