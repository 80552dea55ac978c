import io
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.corpus.read.html import MAX_ATTRIBUTES, MAX_PAGE_BYTES, encoding_of, html_pieces
from cygnet.corpus.read.piece import Piece
from cygnet.corpus.read.problems import Problems

CHINESE = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"
WORDS = st.text(st.characters(categories=["Lu", "Ll", "Lo", "Nd"]), min_size=1, max_size=8)
MANUAL = """<!DOCTYPE html><html lang="en"><head><title> Walking &amp;
 running </title><link rel="canonical" href="https://example.org/walk"></head><body>
<div class="navheader"><a href="a.html">Previous chapter</a></div>
<nav><ul><li><a href="/">Home</a></ul></nav>
<h1>Walking</h1><p>One <b>foot</b> before<br>the other.</p>
<pre>def walk(steps):
    for step in steps:

        step.take()</pre>
<h2>Shoes</h2><ul><li>boots<li>sandals<ul><li>open ones</ul></ul><ol><li>tie<li>go</ol>
<table><tr><th>shoe</th><th>price</th></tr><tr><td>boot</td><td>70</td></tr></table>
<script>var x = "never shown";</script><style>p {color: red}</style><!-- nor this -->
<a rel="license" href="https://creativecommons.org/licenses/by/4.0/">CC BY</a>
<footer>Imprint</footer></body></html>"""


def read(page: str | bytes) -> tuple[list[Piece], Problems]:
    problems = Problems()
    data = page.encode() if isinstance(page, str) else page
    return list(html_pieces(io.BytesIO(data), "a.html", problems)), problems


def test_a_page_becomes_lines_that_read_as_the_page_does() -> None:
    (piece,), problems = read(MANUAL)
    lines = piece.text.split("\n")
    for line in (
        "Walking",
        "Shoes",
        "One foot before",
        "the other.",
        "shoe\t\tprice",
        "boot\t\t70",
    ):
        assert line in lines
    assert "def walk(steps):\n    for step in steps:\n\n        step.take()\n" in piece.text
    marked = [line.split() for line in lines if line.startswith("  ")]
    assert ["•", "boots"] in marked and ["•", "open", "ones"] in marked and ["1.", "tie"] in marked
    assert not problems.kinds


def test_menus_scripts_and_comments_are_left_out() -> None:
    (piece,), _ = read(MANUAL)
    for word in ("Home", "Previous", "never shown", "color", "nor this", "Imprint"):
        assert word not in piece.text


def test_title_language_address_and_licence_come_along() -> None:
    (piece,), _ = read(MANUAL)
    assert piece.fields == {
        "title": "Walking & running",
        "language": "en",
        "url": "https://example.org/walk",
        "licence": "https://creativecommons.org/licenses/by/4.0/",
    }


def test_a_page_of_the_web_gives_its_article_alone() -> None:
    menu = "".join(f'<li><a href="/{i}">Section {i}</a></li>' for i in range(30))
    article = "".join(f"<p>Paragraph {i} tells of the long road to the sea.</p>" for i in range(9))
    page = (
        '<html><head><script src="https://ads.example.com/x.js"></script></head><body>'
        f'<div class="menu sidebar"><ul>{menu}</ul></div><article>{article}</article>'
        '<div class="footer">All rights reserved</div></body></html>'
    )
    (piece,), _ = read(page)
    assert all(f"Paragraph {i} tells" in piece.text for i in range(9))
    assert "Section" not in piece.text and "rights" not in piece.text


@pytest.mark.parametrize(
    ("meta", "encoding", "text"),
    [
        ('<meta charset="gb2312">', "gb18030", CHINESE),
        ('<meta charset="big5">', "big5", "臺灣的春天很美，花開滿山坡"),
        (
            '<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">',
            "koi8-r",
            "Мороз и солнце; день чудесный",
        ),
        ("<meta charset=shift_jis>", "shift_jis", "古池や蛙飛びこむ水の音"),
        ("", "utf-16", CHINESE),
        ("", "utf-8-sig", CHINESE),
        ("", "gb18030", CHINESE),
        ('<meta charset="iso-8859-1">', "cp1252", "“Zwölf Köche”"),
        ('<meta charset="iso-8859-1">', "utf-8", "zwölf Köche, es lügt die Seite"),
        ('<meta charset="no-such-thing">', "utf-8", CHINESE),
        ('<meta charset="punycode">', "utf-8", CHINESE),
        ('<meta charset="utf-16">', "utf-8", CHINESE),
    ],
)
def test_the_encoding_is_the_mark_s_the_page_s_or_a_good_guess(
    meta: str, encoding: str, text: str
) -> None:
    (piece,), problems = read(f"<html><head>{meta}</head><body><p>{text}</p>".encode(encoding))
    assert piece.text == f"{text}\n"
    assert not problems.count("unreadable bytes")


def test_the_server_s_word_comes_before_the_page_s() -> None:
    page = '<meta charset="koi8-r"><p>Мороз и солнце'.encode("cp1251")
    assert encoding_of(page, "windows-1251") == "windows-1251"
    assert encoding_of(page) == "koi8-r"


def test_xhtml_that_closes_a_title_at_once_loses_nothing() -> None:
    page = (
        '<?xml version="1.0"?><html><head><title/></head><body><a id="x"/><p>Text</p></body></html>'
    )
    (piece,), _ = read(page)
    assert piece.text == "Text\n"


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        (b"", "empty file"),
        (b"<html><body><script>x</script></body></html>", "no text"),
        (bytes(range(256)) * 4 + b"\0" * 900, "not text"),
    ],
)
def test_a_page_without_text_is_counted(page: bytes, kind: str) -> None:
    pieces, problems = read(page)
    assert pieces == [] and problems.count(kind) == 1


def test_broken_bytes_and_nuls_are_counted_and_the_rest_is_used() -> None:
    (piece,), problems = read(("<p>" + CHINESE * 9).encode() + b" \xff\xfe a\0b</p>")
    assert piece.text.startswith(CHINESE) and piece.text.endswith("\ufffd\ufffd ab\n")
    assert problems.count("unreadable bytes") == 2 and problems.count("NUL characters") == 1


def test_of_a_page_too_long_the_beginning_is_used() -> None:
    (piece,), problems = read(b"<p>begins " + b"word " * (MAX_PAGE_BYTES // 5))
    assert piece.text.startswith("begins word") and len(piece.text) < MAX_PAGE_BYTES
    assert problems.count("damaged file") == 1


def test_a_tag_of_many_attributes_ends_the_page() -> None:
    many = " ".join(f"attribute{i}='{i}'" for i in range(10 * MAX_ATTRIBUTES))
    (piece,), problems = read(f"<p>before</p><p {many}>after</p>")
    assert piece.text == "before\n" and problems.count("damaged file") == 1


def test_one_attribute_of_megabytes_is_no_hindrance() -> None:
    (piece,), problems = read(f'<p>a</p><img src="data:{"x y" * 1_000_000}"><p>b</p>')
    assert piece.text.split() == ["a", "b"] and not problems.kinds


@pytest.mark.parametrize("tag", ["div", "b", "table", "a href=x", "article", "ul><li", "svg><g"])
def test_deep_nesting_ends_in_time(tag: str) -> None:
    # A process of its own: a parser that overruns its stack takes all with it.
    program = (
        "import io; from cygnet.corpus.read.html import html_pieces\n"
        "from cygnet.corpus.read.problems import Problems\n"
        f"page = '<script src=https://a/b.js></script>' + '<{tag}>' * 30_000 + 'deep'\n"
        "print(len(list(html_pieces(io.BytesIO(page.encode()), 'a', Problems()))))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True)


@given(st.binary(max_size=2000), st.sampled_from([b"", b"<html><body><p>", b"<?xml ?><!DOCTYPE "]))
def test_no_bytes_raise(data: bytes, before: bytes) -> None:
    read(before + data)


@settings(max_examples=50)
@given(st.integers(0, len(MANUAL)))
def test_a_page_cut_anywhere_gives_what_came_before(end: int) -> None:
    pieces, _ = read(MANUAL[:end])
    if end > MANUAL.index("the other"):
        assert "One foot before" in pieces[0].text


@given(st.lists(st.lists(WORDS, min_size=1, max_size=5), min_size=1, max_size=8))
def test_text_comes_back_out(paragraphs: list[list[str]]) -> None:
    body = "".join(f"<p>{' '.join(words)}</p>\n" for words in paragraphs)
    (piece,), _ = read(f'<meta charset="utf-8"><body>{body}</body>')
    assert piece.text.split() == [word for words in paragraphs for word in words]
