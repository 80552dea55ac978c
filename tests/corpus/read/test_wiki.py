import io
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.corpus.read import wiki
from cygnet.corpus.read.piece import Piece
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.wiki import wiki_pieces, wikitext_to_text

WORDS = st.text(st.characters(categories=["Lu", "Ll", "Lo"]), min_size=1, max_size=8)
HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="zh">
  <siteinfo><sitename>维基百科</sitename><dbname>zhwiki</dbname>{rights}
    <namespaces><namespace key="0" case="first-letter" />
      <namespace key="6" case="first-letter">文件</namespace>
      <namespace key="14" case="first-letter">分类</namespace></namespaces></siteinfo>
"""
PAGE = """  <page><title>{title}</title><ns>{ns}</ns><id>{number}</id>{redirect}
    <revision><id>9{number}</id><timestamp>2020-01-02T03:04:05Z</timestamp>
      <contributor><username>Someone</username><id>7</id></contributor>
      <model>wikitext</model><format>text/x-wiki</format>
      <text bytes="{size}" xml:space="preserve">{text}</text></revision></page>
"""


def page(text: str, number: int = 1, ns: int = 0, redirect: str = "", title: str = "Sea") -> str:
    return PAGE.format(
        title=title, ns=ns, number=number, redirect=redirect, size=len(text), text=escape(text)
    )


def dump(pages: Iterable[str], rights: str = "") -> bytes:
    return (HEAD.format(rights=rights) + "".join(pages) + "</mediawiki>\n").encode()


def read(data: bytes) -> tuple[list[Piece], Problems]:
    problems = Problems()
    return list(wiki_pieces(io.BytesIO(data), "a.xml", problems)), problems


def test_articles_come_with_title_id_timestamp_and_licence() -> None:
    pieces, problems = read(
        dump(
            [
                page("The '''sea''' is [[water|salt water]].", 3),
                page("A talk", 4, ns=1),
                page("#REDIRECT [[Sea]]", 5, redirect='<redirect title="Sea" />'),
                page("#redirect [[Sea]]", 6),
                page(
                    "[[文件:Sea.jpg|thumb|a picture]]The [[lake]]s.[[分类:Water]]", 7, title="Lake"
                ),
            ],
            rights="<rights>CC BY-SA 4.0</rights>",
        )
    )
    assert [(p.where, p.text) for p in pieces] == [
        ("page 3", "The sea is salt water.\n"),
        ("page 7", "The lakes.\n"),
    ]
    assert pieces[1].fields == {
        "title": "Lake",
        "page_id": "7",
        "timestamp": "2020-01-02T03:04:05Z",
        "licence": "CC BY-SA 4.0",
    }
    assert not problems.kinds


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a {{b|c={{d}}|e}} f", "a  f"),
        ("a<ref name=x>b [[c]]</ref> d<ref name=x /> e", "a d e"),
        ("a<!-- b\n-->c", "ac"),
        ("== Head ==\ntext\n=== Sub ===\nmore", "## Head\n\ntext\n\n### Sub\n\nmore"),
        ("== Full ==\ntext\n== Empty ==\n{{list}}\n== Last ==\n{{x}}", "## Full\n\ntext"),
        ("* a\n** b\n# c\n: d", "- a\n  - b\n1. c\nd"),
        ("* {{x}}\n* y", "- y"),
        ("a\n{| class=x\n|-\n| b {{c}}\n{|\n|d\n|}\n|}\ne", "a\n\ne"),
        ("[[File:A.jpg|thumb|b [[c]] d]]e", "e"),
        ("[[:Category:Seas|Seas]] [[Category:Water]][[de:Meer]]", "Seas"),
        ("[https://a.org A site] and [https://b.org] https://c.org", "A site and  https://c.org"),
        ("'''''a''''' b's ''c''", "a b's c"),
        ("x<br/>y <small>z</small>", "x\ny z"),
        ("a &amp; b &lt;c&gt; &nbsp;d", "a & b <c> \xa0d"),
        ("<nowiki>[[a]] {{b}}</nowiki>", "[[a]] {{b}}"),
        ("area <math>\\frac{a}{{b}}</math>", "area $\\frac{a}{{b}}$"),
        (
            "<syntaxhighlight lang=py>\nif a:\n    b = [[1]]\n</syntaxhighlight>",
            "```\nif a:\n    b = [[1]]\n```",
        ),
        ("Paris (; {{ipa|x}}) is", "Paris is"),
        ("__NOTOC__a", "a"),
        ("a {{b [[c]] d", "a b c d"),
        ("a }} b ]] c", "a  b  c"),
        ("a [[b {{c}} d", "a b  d"),
    ],
)
def test_wikitext_reads_as_the_page_does(source: str, text: str) -> None:
    assert wikitext_to_text(source) == f"{text}\n"


def test_what_comes_before_damage_is_used() -> None:
    whole = dump([page("one", 1), page("two", 2)])
    for end in range(whole.index(b"two"), len(whole) - len("</mediawiki>\n"), 20):
        pieces, problems = read(whole[:end])
        assert pieces[0].text == "one\n" and problems.count("damaged file") == 1
    pieces, problems = read(dump([page("one", 1), "<page><<</page>", page("two", 2)]))
    assert [p.text for p in pieces] == ["one\n"] and problems.count("damaged file") == 1


def test_a_bomb_of_entities_is_refused() -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'
    for data in (bomb + dump([page("x")]), (bomb + dump([])).decode().encode("utf-16")):
        pieces, problems = read(data)
        assert pieces == [] and "entities" in problems.kinds["damaged file"].examples[0]


def test_a_page_without_end_does_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiki, "MAX_PAGE_CHARS", 100_000)
    pieces, problems = read(dump([page("one"), page("x" * 150_000, 2), page("three", 3)]))
    assert [p.text for p in pieces] == ["one\n", "three\n"]
    assert problems.kinds["damaged file"].examples[0].startswith("a.xml: page 2: over")
    pieces, problems = read(dump([page("one"), page("x" * 900_000, 2), page("three", 3)]))
    assert [p.text for p in pieces] == ["one\n"] and problems.count("damaged file") == 1


MEASURE = """
import resource, sys
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.wiki import wiki_pieces
peaks = []
for path in sys.argv[1:]:
    with open(path, "rb") as stream:
        count = sum(1 for _ in wiki_pieces(stream, "a", Problems()))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(count, (peaks[1] - peaks[0]) // 1024)
"""


def test_memory_stays_flat(tmp_path: Path) -> None:
    body = page("word " * 2_000)
    (tmp_path / "small").write_bytes(dump([body] * 100))
    (tmp_path / "large").write_bytes(dump([body] * 1_200))
    command = [sys.executable, "-c", MEASURE, tmp_path / "small", tmp_path / "large"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    count, grown_mib = map(int, output.split())
    assert count == 1_200 and grown_mib < 8


@pytest.mark.parametrize(
    "unit",
    ["{{", "[[", "{|", "\n|}", "[[a|", "<ref>", "<!--", "'''", "<nowiki>", "[http://a ", "("],
)
def test_time_grows_no_faster_than_a_page(unit: str) -> None:
    def seconds(times: int) -> float:
        began = time.process_time()
        wikitext_to_text(unit * times)
        return time.process_time() - began

    # A square would take 64 times as long.
    assert seconds(32_000) < 30 * max(seconds(4_000), 0.005)


@given(st.binary(max_size=500), st.sampled_from([b"", b"<mediawiki><page>", HEAD.encode()]))
def test_no_bytes_raise(data: bytes, before: bytes) -> None:
    _, problems = read(before + data)
    assert problems.kinds


@given(
    st.lists(
        st.sampled_from(
            [
                "{{",
                "}}",
                "[[",
                "]]",
                "|",
                "\n",
                "{|",
                "\n|}",
                "==",
                "*",
                "<ref>",
                "</ref>",
                "a",
                "'''",
                "<nowiki>",
                "</nowiki>",
                "File:",
                "[http://a b]",
                "&lt;",
                "<!--",
                "-->",
                "\ue000",
                "1",
            ]
        )
    )
)
def test_no_wikitext_raises(parts: list[str]) -> None:
    wikitext_to_text("".join(parts))


@settings(max_examples=50)
@given(st.lists(st.lists(WORDS, min_size=1, max_size=5), min_size=1, max_size=5))
def test_text_comes_back_out(texts: list[list[str]]) -> None:
    pieces, _ = read(dump(page(" ".join(words), i) for i, words in enumerate(texts)))
    assert [p.text.split() for p in pieces] == texts
