import re
import unicodedata

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.corpus.clean.words import SYMBOLS, TextBatch, word_run_hash, words
from cygnet.han import HAN

ONE_BY_ONE = re.compile(f"[\u3040-\u30ff{HAN}]")
ODD = "aAbßİé_9½٣ \n\t\u3000\u2028,.-+#@天鹅のカ々नमस्ते\U0001f600\U00020000\U000e0041\ud800"
text = st.text(alphabet=ODD, max_size=60) | st.text(max_size=40)
texts = st.lists(text.map(lambda t: t.replace("\0", "")), max_size=6)


def plain_words(text: str) -> list[str]:
    """What `words` is to give, a character at a time."""
    found, run = [], ""
    for char in [*text, " "]:
        alone = bool(ONE_BY_ONE.match(char)) or char in SYMBOLS
        in_run = char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M"
        if ord(char) >= 0x323B0 or alone or not in_run:
            found += [run] if run else []
            run = ""
            found += [char] if alone else []
        else:
            run += char
    return [word.lower() for word in found]


def test_words_are_han_characters_words_and_symbols() -> None:
    expected = ["白", "日", "sun", "s", "2", "+", "2", "gpu"]
    assert words("白日 Sun's 2+2, GPU。") == expected


@settings(max_examples=300)
@given(texts)
def test_the_words_of_a_batch_are_those_of_each_text(texts: list[str]) -> None:
    batch = TextBatch(texts)
    assert [batch.words(i) for i in range(len(texts))] == [plain_words(text) for text in texts]


@settings(max_examples=300)
@given(texts)
def test_lines_and_paragraphs_are_those_of_each_text(texts: list[str]) -> None:
    batch = TextBatch(texts)
    for spans, expected in (
        (batch.line_spans, [[line.strip() for line in text.split("\n")] for text in texts]),
        (
            batch.paragraph_spans,
            [[part.strip() for part in re.split(r"\n\s*\n", text)] for text in texts],
        ),
    ):
        offsets = np.searchsorted(spans[0], batch.offsets)
        for i, text in enumerate(texts):
            origin = batch.offsets[i]
            found = [
                text[start - origin : end - origin]
                for start, end in zip(
                    spans[0][offsets[i] : offsets[i + 1]],
                    spans[1][offsets[i] : offsets[i + 1]],
                    strict=True,
                )
            ]
            assert found == [part for part in expected[i] if part]


@settings(max_examples=200)
@given(texts, texts, st.integers(1, 4))
def test_runs_of_words_have_equal_hashes_just_where_the_words_are_equal(
    some: list[str], others: list[str], length: int
) -> None:
    seen: dict[tuple[str, ...], np.uint64] = {}
    for batch in (TextBatch(some), TextBatch([*others, "tail"])):
        hashes, offsets = batch.ngrams(length)
        for i in range(len(batch)):
            found = [simple(word) for word in batch.words(i)]
            runs = list(zip(*(found[k:] for k in range(length)), strict=False))
            own = hashes[offsets[i] : offsets[i + 1]].tolist()
            assert own == batch.ngrams_of(i, length).tolist()
            for run, value in zip(runs, own, strict=True):
                assert seen.setdefault(run, value) == value
    assert len(set(seen.values())) == len(seen)


def simple(word: str) -> str:
    """A word in lower case, letter by letter: İ has no single lower-case letter."""
    return "".join(char.lower() if len(char.lower()) == 1 else char for char in word)


def test_a_run_alone_has_the_hash_that_it_has_within_a_text() -> None:
    count, value = word_run_hash("Large Water bird")
    batch = TextBatch(["x", "the swan is a large water bird"])
    assert count == 3 and batch.ngrams(3)[0][-1] == value
    assert word_run_hash(" .")[0] == 0
