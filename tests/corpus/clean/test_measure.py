"""Each number against its definition written out plainly, as datatrove and the papers have it."""

import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.corpus.clean.measure import (
    MIN_DUPLICATED,
    MOSTLY_HAN,
    STATISTICS,
    STOP_WORDS,
    TERMINALS,
    measure,
)
from cygnet.corpus.clean.rules import RULES
from cygnet.corpus.clean.words import TextBatch, words

WORDS = ["the", "Swan", "is", "of", "and", "lake", "bird", "2", "+", "#", "and...", "end.", "…"]
WORDS += ["天", "鹅", "的", "了", "是", "。", "• ", "- ", "{", "lorem ipsum", "long" * 12, "x" * 45]
document = st.lists(st.sampled_from([*WORDS, "\n", "\n\n", ", "]), max_size=80).map(" ".join)
document = document.map(lambda text: re.sub(" *\n *", "\n", text).strip())


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def num_tokens(text: str) -> int:
    return max(len(words(text) if is_han(text) else text.split()), 1)


def repeats(parts: list[str]) -> list[str]:
    return [part for i, part in enumerate(parts) if part.lower() in map(str.lower, parts[:i])]


def is_han(text: str) -> bool:
    found = words(text)
    return sum("\u3040" <= w <= "\u9fff" for w in found) > MOSTLY_HAN * max(len(found), 1)


def duplicated(text: str, length: int) -> float:
    found, seen, at, total = words(text), set(), 0, 0
    length *= 2 if is_han(text) else 1
    while at <= len(found) - length:
        run = tuple(found[at : at + length])
        total += sum(map(len, run)) if run in seen else 0
        at += length if run in seen else 1
        seen.add(run)
    share = total / max(len(text), 1)
    return share if share >= MIN_DUPLICATED else 0.0


def repeated_phrases(text: str) -> float:
    found = words(text)
    phrases = list(zip(*(found[i:] for i in range(8)), strict=False))
    return 1 - len(set(phrases)) / len(phrases) if len(found) >= 50 else 0.0


def inner_ends(text: str) -> int:
    ends = f"[{re.escape(TERMINALS)}]"
    han_end = "[\u3000-\uffff]"
    return sum(
        bool(re.match(ends, line[i]))
        and i + 1 < len(line)
        and (line[i + 1].isspace() or bool(re.match(han_end, line[i])))
        for line in lines_of(text)
        for i in range(len(line))
    )


REFERENCE: dict[str, Callable[[str], float]] = {
    "chars": len,
    "words": lambda t: len(words(t)),
    "letters": lambda t: (
        sum(c.isalpha() or c.isdigit() for c in t) / max(len("".join(t.split())), 1)
    ),
    "runs": lambda t: sum(len(m.group()) for m in re.finditer(r"(\S)\1{39,}", t)) / max(len(t), 1),
    "repeated_lines": lambda t: (
        sum(map(len, repeats(lines_of(t)))) / max(sum(map(len, lines_of(t))), 1)
    ),
    "repeated_phrases": repeated_phrases,
    "alpha_words": lambda t: (
        (
            sum(w[0].isalpha() for w in words(t))
            if is_han(t)
            else sum(any(c.isalpha() for c in w) for w in t.split())
        )
        / num_tokens(t)
    ),
    "hashes": lambda t: t.count("#") / num_tokens(t),
    "ellipses": lambda t: (t.count("...") + t.count("…")) / num_tokens(t),
    "bullets": lambda t: (
        sum(line.startswith(("•", "-")) for line in lines_of(t)) / len(t.split("\n"))
    ),
    "ellipsis_lines": lambda t: (
        sum(line.endswith(("...", "…")) for line in lines_of(t)) / len(t.split("\n"))
    ),
    "stop_words": lambda t: len(set(words(t)) & set(STOP_WORDS["en"].split())),
    "dup_lines": lambda t: len(repeats(lines_of(t))) / max(len(lines_of(t)), 1),
    "dup_line_chars": lambda t: sum(map(len, repeats(lines_of(t)))) / max(len(t), 1),
    "dup_paragraph_chars": lambda t: (
        sum(map(len, repeats(re.split(r"\n\s*\n", t)))) / max(len(t), 1)
    ),
    "punctuated_lines": lambda t: (
        sum(line[-1] in TERMINALS for line in lines_of(t)) / max(len(lines_of(t)), 1)
    ),
    "short_lines": lambda t: (
        sum(len(line) <= 30 for line in lines_of(t)) / max(len(lines_of(t)), 1)
    ),
    "dup_chars": lambda t: sum(map(len, repeats(lines_of(t)))) / max(len(t) - t.count("\n"), 1),
    "newlines": lambda t: t.count("\n") / num_tokens(t),
    "sentences": lambda t: len(lines_of(t)) + inner_ends(t),
    "curly_brackets": lambda t: t.count("{"),
    "lorem_ipsum": lambda t: t.lower().count("lorem ipsum"),
    "max_line_length": lambda t: max(map(len, lines_of(t)), default=0),
    **{f"dup_{n}": lambda t, n=n: duplicated(t, n) for n in range(5, 11)},
}


@settings(max_examples=150, deadline=None)
@given(st.lists(document, min_size=1, max_size=5))
def test_numbers_are_what_their_definitions_say(texts: list[str]) -> None:
    numbers = measure(TextBatch(texts))
    assert numbers.keys() == STATISTICS.keys()
    for name, reference in REFERENCE.items():
        expected = [reference(text) for text in texts]
        assert numbers[name].tolist() == pytest.approx(expected), name


@settings(max_examples=100, deadline=None)
@given(st.lists(document, min_size=1, max_size=5), st.sampled_from([2, 3, 4]))
def test_the_commonest_run_is_one_of_those_that_occur_most(texts: list[str], length: int) -> None:
    shares = measure(TextBatch(texts))[f"top_{length}"]
    for text, share in zip(texts, shares.tolist(), strict=True):
        size = length * (2 if is_han(text) else 1)
        batch = TextBatch([text])
        starts, ends = batch.word_spans
        runs = [
            (tuple(batch.words(0)[i : i + size]), ends[i + size - 1] - starts[i])
            for i in range(len(starts) - size + 1)
        ]
        counts = Counter(run for run, _ in runs)
        most = max(counts.values(), default=0)
        possible = [most * n / max(len(text), 1) for run, n in runs if counts[run] == most] or [0.0]
        assert any(share == pytest.approx(value) for value in possible)


@settings(max_examples=50, deadline=None)
@given(st.lists(document, min_size=1, max_size=4), st.lists(document, max_size=4))
def test_numbers_do_not_depend_on_the_company(texts: list[str], company: list[str]) -> None:
    alone = measure(TextBatch(texts))
    together = measure(TextBatch([*company, *texts]))
    for name, values in alone.items():
        np.testing.assert_allclose(together[name][len(company) :], values, err_msg=name)


def test_stop_words_are_those_of_the_language() -> None:
    texts = ["der Schwan und die Ente", "der Schwan und die Ente", "天鹅的巢和湖", "hattyú"]
    numbers = measure(TextBatch(texts), ["de", "en", "zh", "hu"])
    assert numbers["stop_words"].tolist()[:3] == [3, 0, 2]
    assert np.isnan(numbers["stop_words"][3])


@settings(max_examples=30, deadline=None)
@given(st.lists(document, min_size=1, max_size=4))
def test_without_the_numbers_of_web_pages_the_others_are_the_same(texts: list[str]) -> None:
    every, some = (measure(TextBatch(texts), of_web=of_web) for of_web in (True, False))
    asked_of_text = {
        rule.number for rule in RULES if {"basic", "code"} & set(rule.sets)
    } & STATISTICS.keys()
    for name, values in some.items():
        if name in asked_of_text or not np.isnan(values).all():
            np.testing.assert_allclose(values, every[name], err_msg=name)
