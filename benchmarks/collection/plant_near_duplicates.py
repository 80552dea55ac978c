"""Make the planted set of near duplicates, `benchmarks/data/near_duplicates.jsonl.gz`.

python -m benchmarks.collection.plant_near_duplicates [GATHERED] [--write]

GATHERED is what `gather.py` made. Without --write it is said whether the set would be the shipped
one; it is as long as the registry has the same versions of the packages.

About 3,000 real documents, 100 to 10,000 characters, English, German, French, Spanish and Chinese:
Cygnet's built-in text, manuals, help pages, man pages. About 2,000 copies of them, 1-20 % of the
words changed (of Chinese: characters; `copy_edits.py`). And hard negatives: documents that share
many word pairs without being the same text, such as recipes of one dish or help pages of one form.

What a near duplicate is must be said without the similarity that the finder uses: by the share of
words to change, Levenshtein's distance of the word sequences over the longer one's length. Of two
documents of the pool at 0.4 or less one is taken out, as the same text or in doubt; those above
stay, however alike. Rows: `id`, `text`, `language`, `of` (the original's id; null for an original),
`edit` (the share of words touched), `kind` (of edit; `original` or `hard`), `source`.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from benchmarks.collection.copy_edits import TOKEN, Editor
from benchmarks.near_duplicates import similarities
from cygnet.corpus.builtin import builtin_documents
from cygnet.corpus.clean.normalize import normalize
from cygnet.corpus.clean.words import words
from cygnet.corpus.document import document_id
from cygnet.corpus.near import Compared
from cygnet.han import HAN

FILE = Path(__file__).parent / "data" / "near_duplicates.jsonl.gz"
MIN_CHARS, MAX_CHARS = 100, 10_000
ORIGINALS = {"en": 1000, "de": 450, "fr": 450, "es": 450, "zh": 650}
HARD_SHARE = 0.25
SEED = 0
NUM_COPIES = 2000
MAX_OF_SOURCE = 1200
MIN_ALIKE, MIN_COMPARED = 0.2, 0.3
DISTINCT = 0.4
DIALECTS = {"en": "en-US", "de": "de-DE", "fr": "fr-FR", "es": "es-ES", "zh": "zh-CN"}
MANUALS = {
    "debian-handbook": "debian-handbook_*/html/doc/debian-handbook/html/{dialect}",
    "debian-reference": "debian-reference-{code}_*/html/debian-reference",
    "maint-guide": "maint-guide{dash}_*/html",
    "libreoffice-help": "libreoffice-help-{code}_*/html/libreoffice/help/*/text",
}
MAN = {"en": "git-man", "de": "manpages-de", "fr": "manpages-fr", "es": "manpages-es"}


@dataclass(frozen=True)
class Text:
    """One document of the pool."""

    text: str
    language: str
    source: str


class Paragraphs(HTMLParser):
    """The paragraphs, headings and list items of a page."""

    blocks = frozenset(["p", "li", "h1", "h2", "h3", "h4", "dt", "dd", "pre", "title"])

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a paragraph."""
        if tag in self.blocks:
            self._open = True
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        """End it."""
        self._open = self._open and tag not in self.blocks

    def handle_data(self, data: str) -> None:
        """Add to it."""
        if self._open:
            self.found[-1] += data


def manual(folder: Path, language: str, name: str, draw: random.Random) -> Iterator[Text]:
    """Yield runs of paragraphs of a manual, their lengths drawn evenly on a logarithmic scale."""
    for path in sorted(folder.rglob("*.html")):
        page = Paragraphs()
        page.feed(path.read_text(encoding="utf-8", errors="replace"))
        limit, run = 0.0, ""
        for paragraph in (" ".join(p.split()) for p in page.found):
            if len(paragraph) < 15 and not run:  # navigation, headings without a text
                continue
            limit = limit or MIN_CHARS * (MAX_CHARS / MIN_CHARS) ** draw.random() / 1.3
            run += paragraph + "\n"
            if len(run) > limit:
                yield Text(run, language, name)
                limit, run = 0.0, ""
        yield Text(run, language, name)


def pool(gathered: Path, draw: random.Random) -> list[Text]:
    """Return every document to choose from, each text once."""
    texts = [Text(d.text, d.domain[-2:], d.domain) for d in builtin_documents()]
    for language, dialect in DIALECTS.items():
        code = "zh-cn" if language == "zh" else language
        dash = "" if language == "en" else f"-{code}"
        for name, place in MANUALS.items():
            place = place.format(dialect=dialect, code=code, dash=dash)
            for folder in sorted((gathered / "unpacked").glob(place)):
                texts += manual(folder, language, name, draw)
        for path in sorted((gathered / "raw/man").glob(f"{MAN.get(language, '-')}_*/**/*.txt")):
            texts.append(Text(path.read_text(errors="replace"), language, MAN[language]))
    texts = [Text(normalize(t.text), t.language, t.source) for t in texts]
    once = {t.text: t for t in texts if MIN_CHARS <= len(t.text) <= MAX_CHARS and is_in(t)}
    by_source: dict[tuple[str, str], list[Text]] = defaultdict(list)
    for text in once.values():
        by_source[text.source, text.language].append(text)
    return [t for ts in by_source.values() for t in draw.sample(ts, min(len(ts), MAX_OF_SOURCE))]


def is_in(text: Text) -> bool:
    """Say whether a text looks like its language: parts of a manual are not translated."""
    found = Counter(words(text.text))
    total = sum(found.values())
    if text.language == "zh":
        return sum(n for word, n in found.items() if re.match(f"[{HAN}]", word)) > 0.5 * total
    common = {
        "en": "the of and to in is for that", "de": "der die das und ist nicht ein für",
        "fr": "le la les des est pour une dans", "es": "el la los que de es para una",
    }  # fmt: skip
    share = {lang: sum(found[w] for w in names.split()) for lang, names in common.items()}
    return share[text.language] == max(share.values()) and share[text.language] > 0.04 * total


def changed_share(a: Sequence[str], b: Sequence[str]) -> float:
    """Return Levenshtein's distance of two sequences over the longer one's length.

    The rows of the table are computed whole: an insertion costs what is least to the left.
    """
    ids = {word: number for number, word in enumerate(dict.fromkeys([*a, *b]))}
    short, long = sorted(([ids[w] for w in a], [ids[w] for w in b]), key=len)
    columns = np.array(long)
    steps = np.arange(len(long) + 1)
    row = steps.copy()
    for position, word in enumerate(short, start=1):
        best = np.minimum(row[1:] + 1, row[:-1] + (columns != word))
        row = np.minimum.accumulate(np.concatenate([[position], best]) - steps) + steps
    return float(row[-1]) / max(len(long), 1)


def choose(texts: list[Text], draw: random.Random) -> dict[str, list[tuple[Text, str]]]:
    """Return the originals of each language with their kinds: `hard` and `original`."""
    tokens = [words(t.text) for t in texts]
    chosen: dict[str, list[tuple[Text, str]]] = {}
    for language, wanted in ORIGINALS.items():
        numbers = [n for n, t in enumerate(texts) if t.language == language]
        found = similarities([Compared.of(texts[n].text).pairs for n in numbers], MIN_ALIKE)
        pairs = [
            (similarity, numbers[a], numbers[b])
            for a, b, similarity in zip(*(column.tolist() for column in found), strict=True)
        ]
        pairs.sort(reverse=True)
        # Of pairs at 0.3 to 0.4 one in a hundred counts as the same text; below, none is taken to.
        compared = [(a, b) for similarity, a, b in pairs if similarity >= MIN_COMPARED]
        changed = [changed_share(tokens[a], tokens[b]) for a, b in compared]
        in_the_wild([similarity for similarity, _, _ in pairs], changed)
        changed += [1.0] * (len(pairs) - len(compared))
        out: set[int] = set()
        hard: dict[int, None] = {}
        for (_, a, b), share in zip(pairs, changed, strict=True):
            if a in out or b in out:
                continue
            if share <= DISTINCT:
                out.add(b)
            elif len(hard) < HARD_SHARE * wanted:
                hard.update({a: None, b: None})
        hard = {n: None for n in hard if n not in out}
        rest = [n for n in numbers if n not in out and n not in hard]
        by_source = defaultdict(list)
        for number in draw.sample(rest, len(rest)):
            by_source[texts[number].source].append(number)
        turns = (n for turn in _turns(list(by_source.values())) for n in turn)
        plain = [n for n, _ in zip(turns, range(wanted - len(hard)), strict=False)]
        chosen[language] = [(texts[n], "hard") for n in hard]
        chosen[language] += [(texts[n], "original") for n in plain]
        print(f"{language}: {len(numbers):,} in the pool, {len(pairs):,} pairs alike, {len(out):,} "
              f"out, {len(hard):,} hard of {len(chosen[language]):,}")  # fmt: skip
    return chosen


def in_the_wild(similarity: list[float], changed: list[float]) -> None:
    """Print how much of the words differs in the pool's pairs, by their similarity."""
    for low in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
        shares = [c for s, c in zip(similarity, changed, strict=False) if low <= s < low + 0.1]
        counts = [sum(a <= c < b for c in shares) for a, b in ((0, 0.2), (0.2, 0.4), (0.4, 2))]
        print(f"  similarity {low:.1f}: {len(shares):,} pairs, changed below 20 %: {counts[0]:,}, "
              f"below 40 %: {counts[1]:,}, more: {counts[2]:,}")  # fmt: skip


def _turns(queues: list[list[int]]) -> Iterator[list[int]]:
    while any(queues):
        yield [queue.pop() for queue in queues if queue]


def plant(chosen: dict[str, list[tuple[Text, str]]], draw: random.Random) -> Iterator[dict]:
    """Yield the rows: each original with its copies behind it, which packs well."""
    total = sum(map(len, chosen.values()))
    for language, originals in chosen.items():
        others = [[t for t in TOKEN.findall(o.text) if t[0].isalnum()] for o, _ in originals]
        editor = Editor(language, others, draw)
        for original, kind in originals:
            own = document_id(original.text)
            row = {"id": own, "text": original.text, "language": language, "of": None, "edit": 0.0}
            yield {**row, "kind": kind, "source": original.source}
            for copy in range(2):
                if draw.random() >= (0.45 if copy == 0 else 0.217) * NUM_COPIES * 1.5 / total:
                    continue
                text, share, how = editor.copy(original.text, draw.uniform(0.01, 0.2))
                if 0 < share <= 0.2 and text != original.text:
                    row = {"id": document_id(text), "text": text, "language": language, "of": own}
                    yield {**row, "edit": round(share, 4), "kind": how, "source": original.source}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("gathered", type=Path, nargs="?", default=Path("runs/gathered"))
    parser.add_argument("--write", action="store_true", help="put it in the place of the shipped")
    arguments = parser.parse_args()
    if not (arguments.gathered / "MANIFEST.tsv").exists():
        print(f"{arguments.gathered}: nothing here; first: python -m benchmarks.collection.gather")
        return
    draw = random.Random(SEED)
    rows = list(plant(choose(pool(arguments.gathered, draw), draw), draw))
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9, mtime=0) as file:
        file.write(data)
    if arguments.write:
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_bytes(packed.getvalue())
    same = gzip.decompress(FILE.read_bytes()) == data
    print("the same as the shipped set" if same else "not the shipped set")
    copies = sum(row["of"] is not None for row in rows)
    size = f"{packed.tell() / 1e6:.2f} MB packed of {len(data) / 1e6:.1f}"
    print(f"{len(rows) - copies:,} originals, {copies:,} copies, {size}")


if __name__ == "__main__":
    main()
