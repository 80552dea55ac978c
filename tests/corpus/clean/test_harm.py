import itertools

import numpy as np
import pytest

from cygnet.corpus.builtin import builtin_documents
from cygnet.corpus.clean.harm import (
    CATEGORIES,
    MAX_WORDS,
    MIN_DIFFERENT,
    about,
    harmful_share,
    terms,
)
from cygnet.corpus.clean.rules import BY_NAME
from cygnet.corpus.clean.words import TextBatch, words

PLAIN = "it was a dark night and the rain fell on the roof of the old house by the river".split()
PLAIN_ZH = "那天夜里雨下得很大河边的老房子里没有一个人说话"


def spread(chosen: list[str], every: int) -> str:
    """Return plain words with a term after each `every` of them."""
    plain = itertools.cycle(PLAIN)
    return " ".join(" ".join([*itertools.islice(plain, every), term]) for term in chosen)


def shares(*texts: str) -> list[float]:
    return harmful_share(TextBatch(texts)).tolist()


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_term_is_found_and_covers_its_words(category: str) -> None:
    every = terms()[category]
    for at in range(len(every) - MIN_DIFFERENT + 1):
        chosen = every[at : at + MIN_DIFFERENT]
        assert shares(" . ".join(chosen).title()) == [1.0], chosen  # a full stop is no word


def test_the_builtin_text_loses_nothing() -> None:
    documents = builtin_documents()
    while texts := [document.text for document in itertools.islice(documents, 5000)]:
        assert not harmful_share(TextBatch(texts)).any()


def test_text_full_of_terms_is_dropped_and_text_with_few_is_not() -> None:
    rule = BY_NAME["harmful"]
    for category in CATEGORIES:
        single = [term for term in terms()[category] if len(words(term)) == 1][:12]
        if len(single) >= MIN_DIFFERENT:
            assert rule.breaks(harmful_share(TextBatch([spread(single, 10)]))).all()
        assert not rule.breaks(harmful_share(TextBatch([spread(single[:2] * 6, 10)]))).any()
        assert not rule.breaks(harmful_share(TextBatch([spread(single, 100)]))).any()
    chinese = [term for term in terms()["adult"] if not term.isascii()][:10]
    text = "。".join(PLAIN_ZH + term for term in chinese)
    assert rule.breaks(harmful_share(TextBatch([text]))).all()


def test_the_share_is_of_words_and_overlapping_terms_count_once() -> None:
    chinese = terms()["profanity"]
    longer, shorter = next(
        (long, short)
        for long in chinese
        for short in chinese
        if short != long and short in long and not long.isascii()
    )
    three = [*terms()["slur"][:2], longer]
    num_words = sum(len(words(term)) for term in three)
    assert shares(" ".join(three)) == [1.0]
    assert shares(" ".join([*three, *PLAIN[:num_words]])) == [0.5]
    assert shares(shorter + "，" + " ".join(PLAIN)) == [0.0]


def test_documents_do_not_run_into_each_other() -> None:
    bad = spread(list(terms()["slur"][:5]), 3)
    good = " ".join(PLAIN)
    together = shares(good, bad, "", good, bad)
    assert together == [0.0, *shares(bad), 0.0, 0.0, *shares(bad)]
    phrase = next(term for term in terms()["adult"] if len(words(term)) == 2 and term.isascii())
    first, second = phrase.split()
    three = " ".join(terms()["slur"][:3])
    assert shares(f"{three} {first}", f"{second} {three}") == pytest.approx([0.75, 0.75])
    assert shares() == [] and np.shape(harmful_share(TextBatch([]))) == (0,)


def test_lists_are_clean_and_name_their_source() -> None:
    every = [term for category in terms().values() for term in category]
    assert all(term == term.lower().strip() and words(term) for term in every)
    assert sum(len(words(term)) > MAX_WORDS for term in every) == 0
    assert "CC BY 4.0" in about()
    for (
        ordinary
    ) in "sex rape penis breast rectum cock escort 性 成人 奶 卵 月经 sexual negro".split():
        assert ordinary not in every
