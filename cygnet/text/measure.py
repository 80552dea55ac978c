"""How well a vocabulary fits a text: bytes per token, tokens per word, how much of it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.text.scripts import count_words, language_of
from cygnet.text.tokenizer import Tokenizer
from cygnet.text.vocabularies import Vocabulary

OWN = "this one"
ALL = "all"
Encode = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True, slots=True)
class HeldOutText:
    """Texts to measure on, and where each belongs."""

    texts: list[str]
    domains: list[str]
    languages: list[str]
    num_bytes: NDArray[np.int64]
    """(N,) in UTF-8."""
    num_words: int

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> HeldOutText:
        """Take clean documents that have text."""
        taken = [(row["text"], row["domain"], language_of(row)) for row in rows if row["text"]]
        texts, domains, languages = ([row[column] for row in taken] for column in range(3))
        num_bytes = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
        words = sum(map(count_words, texts))
        return cls(texts, domains, languages, np.array(num_bytes, np.int64), words)


@dataclass(frozen=True, slots=True)
class Measure:
    """A vocabulary on held-out text."""

    name: str
    num_entries: int
    by_domain: dict[str, float]
    """Bytes per token; `all` is that of all text."""
    by_language: dict[str, float]
    tokens_per_word: float
    used: float
    """Share of its entries that occur at all."""
    num_tokens: int = field(default=0)

    @property
    def bytes_per_token(self) -> float:
        """Over all text."""
        return self.by_domain[ALL]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def measure(name: str, num_entries: int, encode: Encode, text: HeldOutText) -> Measure:
    """Cut held-out text with a vocabulary."""
    ids = encode(text.texts)
    counts = np.array([len(row) for row in ids], np.int64)
    found: set[int] = set()
    found.update(*ids)
    num_tokens = int(counts.sum())
    everything = {ALL: int(text.num_bytes.sum()) / max(num_tokens, 1)}
    return Measure(
        name=name,
        num_entries=num_entries,
        by_domain=_ratios(text.domains, text.num_bytes, counts) | everything,
        by_language=_ratios(text.languages, text.num_bytes, counts),
        tokens_per_word=num_tokens / max(text.num_words, 1),
        used=len(found) / num_entries,
        num_tokens=num_tokens,
    )


def measure_tokenizer(tokenizer: Tokenizer, text: HeldOutText, name: str = OWN) -> Measure:
    """Measure a tokenizer of ours."""
    return measure(name, tokenizer.vocab_size, tokenizer.encode_batch, text)


def measure_known(vocabularies: Iterable[Vocabulary], text: HeldOutText) -> list[Measure]:
    """Measure vocabularies of other makers."""
    return [measure(known.name, known.num_entries, known.encode, text) for known in vocabularies]


def _ratios(
    groups: Sequence[str], num_bytes: NDArray[np.int64], num_tokens: NDArray[np.int64]
) -> dict[str, float]:
    """Return bytes per token of each group that has a token, the largest group first."""
    names, places = np.unique(np.array(groups, object).astype(str), return_inverse=True)
    sizes = np.bincount(places, num_bytes, len(names))
    tokens = np.bincount(places, num_tokens, len(names))
    order = np.argsort(-sizes, kind="stable").tolist()
    return {str(names[at]): float(sizes[at] / tokens[at]) for at in order if tokens[at]}


def tables(measures: Sequence[Measure]) -> str:
    """Return Markdown: bytes per token by domain and by language, use, tokens per word."""
    first = measures[0]
    domains = [ALL, *(name for name in first.by_domain if name != ALL)]
    by_domain = [
        [row.name, f"{row.num_entries:,}", *(_number(row.by_domain.get(d)) for d in domains),
         f"{row.tokens_per_word:.2f}", f"{100 * row.used:.1f} %"]
        for row in measures
    ]  # fmt: skip
    languages = list(first.by_language)
    by_language = [
        [row.name, *(_number(row.by_language.get(name)) for name in languages)] for row in measures
    ]
    titles = ["vocabulary", "entries", *domains, "tokens per word", "entries used"]
    return (
        "## Bytes per token by domain\n\n" + markdown(titles, by_domain)
        + "\n## Bytes per token by language\n\n" + markdown(["vocabulary", *languages], by_language)
    )  # fmt: skip


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column is words and the others numbers."""
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
