import io
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.corpus.read import books
from cygnet.corpus.read.books import epub_pieces, pdf_pieces, without_running_heads
from cygnet.corpus.read.piece import Piece
from cygnet.corpus.read.problems import Problems

WORDS = st.text(st.characters(categories=["Lu", "Ll", "Lo"]), min_size=1, max_size=8)
CONTAINER = """<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>
<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles>
</container>"""
PACKAGE = """<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>The Road</dc:title>
<dc:creator>A. Walker</dc:creator><dc:creator>B. Runner</dc:creator>
<dc:language>en</dc:language><dc:rights>CC BY 4.0</dc:rights></metadata>
<manifest><item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="css" href="style.css" media-type="text/css"/>{items}</manifest>
<spine><itemref idref="nav"/>{order}</spine>
<guide><reference type="cover" href="nav.xhtml"/></guide></package>"""


def epub(chapters: list[str], **more: str) -> bytes:
    items = "".join(
        f'<item id="c{i}" href="text/chapter%20{i}.xhtml" media-type="application/xhtml+xml"/>'
        for i in reversed(range(len(chapters)))
    )
    order = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    files = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": PACKAGE.format(items=items, order=order),
        "OEBPS/nav.xhtml": "<html><body><nav>Contents</nav></body></html>",
    }
    for i, chapter in enumerate(chapters):
        files[f"OEBPS/text/chapter {i}.xhtml"] = chapter
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (files | more).items():
            archive.writestr(name, content)
    return out.getvalue()


def chapter(text: str, title: str = "") -> str:
    return (
        f'<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><head>'
        f"<title>{title}</title></head><body><p>{text}</p></body></html>"
    )


def read_epub(data: bytes) -> tuple[list[Piece], Problems]:
    problems = Problems()
    return list(epub_pieces(io.BytesIO(data), "a.epub", problems)), problems


@pytest.mark.parametrize(
    ("rights", "licence"),
    [
        ("CC BY-SA 4.0", "CC BY-SA 4.0"),
        ("Public domain in the USA.", "public domain"),
        ("Copyright 2010 A. Walker", "Copyright 2010 A. Walker"),
        ("Copyright 2010. All rights reserved. No part may be " + "x " * 99, "all rights reserved"),
        (
            "Some rights reserved. To view a copy of this licence, which " + "x " * 99 + "visit "
            "https://creativecommons.org/licenses/by-nc/4.0/.",
            "https://creativecommons.org/licenses/by-nc/4.0/",
        ),
        (
            "You may use it under a Creative Commons Attribution-ShareAlike 3.0 Unported License "
            "as long as " + "x " * 99,
            "Creative Commons Attribution-ShareAlike 3.0 Unported License",
        ),
        ("This book may be copied by whoever likes it, but " + "x " * 99, None),
    ],
)
def test_a_note_on_rights_gives_the_licence_that_it_names_and_no_more(
    rights: str, licence: str | None
) -> None:
    package = PACKAGE.replace("CC BY 4.0", rights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "PACKAGE", package)
        pieces, _ = read_epub(epub([chapter("It begins.", "One")]))
    assert pieces[0].fields.get("licence") == licence


def test_chapters_come_in_reading_order_with_what_the_book_says_of_itself() -> None:
    pieces, problems = read_epub(epub([chapter("It begins.", "One"), chapter("It ends.", "Two")]))
    assert [(p.where, p.text) for p in pieces] == [
        ("chapter 1", "It begins.\n"),
        ("chapter 2", "It ends.\n"),
    ]
    assert pieces[1].fields == {
        "title": "The Road",
        "author": "A. Walker, B. Runner",
        "language": "en",
        "licence": "CC BY 4.0",
        "chapter": "Two",
    }
    assert not problems.kinds


def test_an_encrypted_chapter_is_named_and_the_rest_is_read() -> None:
    said = '<e><CipherReference URI="OEBPS/text/chapter%200.xhtml"/></e>'
    data = epub([chapter("a"), chapter("b")], **{"META-INF/encryption.xml": said})
    pieces, problems = read_epub(data)
    assert [p.text for p in pieces] == ["b\n"]
    assert "encrypted" in problems.kinds["damaged file"].examples[0]


def test_a_bomb_of_entities_is_refused() -> None:
    bomb = "<!DOCTYPE x [<!ENTITY a 'ha'><!ENTITY b '&a;&a;'>]>"
    data = epub([chapter("a")], **{"META-INF/container.xml": bomb + CONTAINER})
    pieces, problems = read_epub(data)
    assert pieces == [] and "entities" in problems.kinds["damaged file"].examples[0]


def test_a_chapter_that_unpacks_to_too_much_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "MAX_PAGE_BYTES", 10_000)
    pieces, problems = read_epub(epub([chapter("a " * 50_000), chapter("b")]))
    assert [p.text for p in pieces] == ["b\n"]
    assert "unpacks to over 10,000 bytes" in problems.kinds["damaged file"].examples[0]


def test_a_book_without_chapters_is_counted() -> None:
    pieces, problems = read_epub(epub([]))
    assert pieces == [] and problems.count("no text") == 1


BOOK = epub([chapter(f"Chapter {i} has words. " * 40) for i in range(4)])


@settings(max_examples=60)
@given(st.integers(0, len(BOOK) - 1), st.binary(max_size=20))
def test_no_damage_to_a_book_raises(at: int, put: bytes) -> None:
    read_epub(BOOK[:at] + put + BOOK[at + len(put) :])
    pieces, problems = read_epub(BOOK[:at])
    assert pieces == [] and problems.kinds


@given(st.binary(max_size=500))
def test_no_bytes_raise_as_a_book(data: bytes) -> None:
    _, problems = read_epub(data)
    assert problems.kinds


@settings(max_examples=40)
@given(st.lists(st.lists(WORDS, min_size=1, max_size=5), min_size=1, max_size=5))
def test_text_put_into_a_book_comes_back_out(texts: list[list[str]]) -> None:
    pieces, _ = read_epub(epub([chapter(" ".join(words)) for words in texts]))
    assert [p.text.split() for p in pieces] == texts


def pdf(pages: list[list[str]], encrypt: str = "", info: str = "") -> bytes:
    """A small PDF: lines of ASCII at fixed places, in a standard font."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, lines in enumerate(pages):
        drawn = " ".join(
            f"1 0 0 1 50 {780 - 14 * n} Tm ({line}) Tj" for n, line in enumerate(lines)
        )
        content = f"BT /F1 11 Tf {drawn} ET" if lines else "0 0 m 9 9 l S"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    objects.append(f"<< {info} >>")
    trailer = f"/Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R {encrypt}"
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< {trailer} >>\n"
    return out + f"{end}startxref\n{len(out)}\n%%EOF\n".encode()


def read_pdf(data: bytes) -> tuple[list[Piece], Problems]:
    problems = Problems()
    return list(pdf_pieces(io.BytesIO(data), "a.pdf", problems)), problems


LINES = [f"Line {word} tells of the road." for word in ("one", "two", "three")]
PAGES = [
    ["The Road", *(f"{line} Part {'abcdef'[i]}." for line in LINES), f"- {i + 1} -"]
    for i in range(6)
]


def test_pages_lose_their_heads_and_numbers_and_keep_the_rest() -> None:
    (piece,), problems = read_pdf(pdf(PAGES, info="/Title (Walks) /Author (A. Walker)"))
    assert piece.where == "pages 1-6"
    assert piece.text.split("\n")[:-1] == [line for page in PAGES for line in page[1:-1]]
    assert piece.fields == {"title": "Walks", "author": "A. Walker"}
    assert not problems.kinds


def test_long_books_come_in_pieces_that_name_their_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "PIECE_CHARS", 250)
    pieces, _ = read_pdf(pdf(PAGES))
    assert [p.where for p in pieces] == ["pages 1-3", "pages 4-6"]


def test_words_parted_at_a_line_s_end_are_whole() -> None:
    (piece,), _ = read_pdf(
        pdf([["He was going to the moun-", "tains in Mid-", "Wales at 5-", "6."]])
    )
    assert "mountains" in piece.text and "5-" in piece.text


def test_a_table_of_contents_loses_its_dots() -> None:
    (piece,), _ = read_pdf(pdf([["1.1 Shoes . . . . . . . . . . . 17", "1.2 Boots ........ xi"]]))
    assert piece.text == "1.1 Shoes\n1.2 Boots\n"


def test_heads_that_alternate_and_differ_in_numbers_are_heads() -> None:
    pages = [f"{'The Road' if i % 2 else 'A. Walker'} {i}\nText {chr(97 + i)}" for i in range(6)]
    assert without_running_heads(pages) == [f"Text {chr(97 + i)}" for i in range(6)]
    assert without_running_heads(["One alone\nText"]) == ["One alone\nText"]


def test_a_scan_is_said_to_have_no_text_layer() -> None:
    pieces, problems = read_pdf(pdf([[], []]))
    assert pieces == []
    assert problems.kinds["no text"].examples == ["a.pdf: no text layer"]


def test_a_book_under_a_password_is_said_to_be_encrypted() -> None:
    locked = pdf(
        [["secret"]],
        f"/Encrypt << /Filter /Standard /V 1 /R 2 /P -44 /O <{'41' * 32}> /U <{'42' * 32}> >>"
        f" /ID [<{'43' * 16}> <{'43' * 16}>]",
    )
    pieces, problems = read_pdf(locked)
    assert pieces == [] and "encrypted" in problems.kinds["damaged file"].examples[0]


SOUND = pdf(PAGES)


@settings(max_examples=60)
@given(st.integers(0, len(SOUND) - 1), st.binary(min_size=1, max_size=20))
def test_no_damage_to_a_pdf_raises(at: int, put: bytes) -> None:
    for damaged in (SOUND[:at], SOUND[:at] + put + SOUND[at + len(put) :]):
        pieces, problems = read_pdf(damaged)
        assert pieces or problems.kinds


@given(st.binary(max_size=300))
def test_no_bytes_raise_as_a_pdf(data: bytes) -> None:
    _, problems = read_pdf(b"%PDF-1.7\n" + data)
    assert problems.kinds
