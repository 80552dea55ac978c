"""HTML to text: which library keeps the text of a page and leaves out its menus, and how fast.

The gold texts come from a folder of pairs `NAME.html` and `NAME.txt`, written by people, or are
made from manuals whose generator says where the text of a page is (`--gold_from`): all that such a
page shows inside `--content` and outside `--without`.

    python benchmarks/html_extraction.py PAIRS [--ways cygnet trafilatura ...]
    python benchmarks/html_extraction.py PAIRS --gold_from /usr/share/doc/python3.11/html \\
        --content 'div[role=main]' --without 'a.headerlink, script, style'

Words are compared as a bag (a Chinese or Japanese character is a word). Each way runs over all
pages in turn, again and again; processor time counts, so that a busy machine slows none. A way's
library has to be installed: trafilatura, resiliparse, justext, readability-lxml, selectolax.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean, median

from cygnet.corpus.read.html import html_pieces
from cygnet.corpus.read.problems import Problems

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")
LEAST_WORDS = 100


def cygnet(page: bytes) -> str:
    return "".join(p.text for p in html_pieces(io.BytesIO(page), "page", Problems()))


def trafilatura(page: bytes) -> str:
    import trafilatura as library

    return library.extract(page, include_comments=False) or ""


def trafilatura_fast(page: bytes) -> str:
    import trafilatura as library

    return library.extract(page, include_comments=False, fast=True) or ""


def trafilatura_recall(page: bytes) -> str:
    import trafilatura as library

    return library.extract(page, include_comments=False, favor_recall=True) or ""


def resiliparse(page: bytes) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    text = page.decode("utf-8", "replace")
    return extract_plain_text(text, main_content=True, alt_texts=False, comments=False)


def resiliparse_all(page: bytes) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(page.decode("utf-8", "replace"), alt_texts=False)


def readability(page: bytes) -> str:
    import html_text
    from readability import Document

    return html_text.extract_text(Document(page.decode("utf-8", "replace")).summary())


def justext(page: bytes) -> str:
    import justext as library

    paragraphs = library.justext(page, frozenset(), stopwords_low=0, stopwords_high=0)
    return "\n".join(p.text for p in paragraphs if not p.is_boilerplate)


def selectolax_all(page: bytes) -> str:
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(page.decode("utf-8", "replace"))
    tree.strip_tags(["script", "style", "nav", "header", "footer", "aside", "form"])
    return tree.body.text(separator="\n") if tree.body else ""


WAYS: dict[str, Callable[[bytes], str]] = {
    way.__name__: way
    for way in (
        *(cygnet, trafilatura, trafilatura_fast, trafilatura_recall, resiliparse),
        *(resiliparse_all, readability, justext, selectolax_all),
    )
}


def scores(text: str, gold: str) -> tuple[float, float, float]:
    """Return precision, recall and F1 of the bag of words."""
    found, wanted = (Counter(word.lower() for word in WORD.findall(t)) for t in (text, gold))
    common = sum((found & wanted).values())
    precision = common / max(sum(found.values()), 1)
    recall = common / max(sum(wanted.values()), 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)


def make_pairs(pairs: Path, manual: Path, content: str, without: str, pages: int) -> None:
    """Write pairs from pages of a manual, chosen by chance, with at least `LEAST_WORDS` words."""
    from lxml import html

    files = sorted(manual.rglob("*.html"))
    random.Random(0).shuffle(files)
    made = 0
    for file in files:
        page = file.read_bytes()
        tree = html.fromstring(page, parser=html.HTMLParser(encoding="utf-8"))
        for element in tree.cssselect(without) if without else []:
            element.drop_tree()
        gold = "\n".join(" ".join(found.itertext()) for found in tree.cssselect(content))
        if len(WORD.findall(gold)) < LEAST_WORDS:
            continue
        stem = f"{manual.parent.name}-{manual.name}-{file.stem}"
        (pairs / f"{stem}.html").write_bytes(page)
        (pairs / f"{stem}.txt").write_text(gold)
        made += 1
        if made == pages:
            break
    print(f"{made} pairs from {manual}")


def compare(pairs: Path, ways: Iterable[str], rounds: int) -> None:
    files = sorted(file for file in pairs.glob("*.html") if file.with_suffix(".txt").exists())
    pages = [file.read_bytes() for file in files]
    golds = [file.with_suffix(".txt").read_text() for file in files]
    megabytes = sum(map(len, pages)) / 1e6
    print(f"{len(pages)} pages, {megabytes:.1f} MB, {rounds} rounds\n")
    ways = list(ways)
    results = {
        way: [scores(WAYS[way](p), g) for p, g in zip(pages, golds, strict=True)] for way in ways
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            began = time.process_time()
            for page in pages:
                WAYS[way](page)
            seconds[way].append(time.process_time() - began)
    print("| way | precision | recall | F1 | pages under 0.5 | MB/s | median ms a page |")
    print("|---|---|---|---|---|---|---|")
    for way in ways:
        precision, recall, f1 = (fmean(column) for column in zip(*results[way], strict=True))
        low = sum(result[2] < 0.5 for result in results[way])
        took = median(seconds[way])
        print(
            f"| {way} | {precision:.3f} | {recall:.3f} | {f1:.3f} | {low} "
            f"| {megabytes / took:.1f} | {1000 * took / len(pages):.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("pairs", type=Path, help="folder of NAME.html and NAME.txt")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gold_from", type=Path, help="a manual to make pairs from")
    parser.add_argument("--content", default="body", help="CSS selector of a page's text")
    parser.add_argument("--without", default="script, style", help="CSS selector of what is none")
    parser.add_argument("--pages", type=int, default=12, help="pairs to make")
    arguments = parser.parse_args()
    if arguments.gold_from:
        arguments.pairs.mkdir(parents=True, exist_ok=True)
        given = (arguments.content, arguments.without, arguments.pages)
        make_pairs(arguments.pairs, arguments.gold_from, *given)
    else:
        compare(arguments.pairs, arguments.ways, arguments.rounds)


if __name__ == "__main__":
    main()
