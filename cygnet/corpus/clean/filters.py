"""Named rules that drop a document; the thresholds are the documentation.

They follow the quality rules of MassiveText (Rae et al. 2021, arXiv:2112.11446, table A1) with
words as `normalize.words` counts them, so that they hold for Chinese as they do for English.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

MAX_UNREADABLE = 0.01
MIN_LETTERS = 0.4
RUN_LENGTH = 40
MAX_RUNS = 0.2
MIN_CHARS_FOR_LINES = 200
MAX_REPEATED_LINES = 0.3
PHRASE_WORDS = 8
MIN_WORDS_FOR_PHRASES = 50
MAX_REPEATED_PHRASES = 0.3

RULES = {
    "too_short": "fewer characters than min_chars",
    "unreadable": f"over {MAX_UNREADABLE:.0%} of the characters are lost (U+FFFD)",
    "symbols": f"letters and digits are under {MIN_LETTERS:.0%} of the characters, space aside",
    "character_runs": (
        f"over {MAX_RUNS:.0%} of the text is one character {RUN_LENGTH} or more times in a row"
    ),
    "repeated_lines": (
        f"over {MAX_REPEATED_LINES:.0%} of the characters stand in lines that came before "
        f"(texts of {MIN_CHARS_FOR_LINES} characters or more)"
    ),
    "repeated_phrases": (
        f"over {MAX_REPEATED_PHRASES:.0%} of the runs of {PHRASE_WORDS} words came before "
        f"(texts of {MIN_WORDS_FOR_PHRASES} words or more)"
    ),
}

_RUN = re.compile(rf"(\S)\1{{{RUN_LENGTH - 1},}}")


def drop_reason(text: str, words: Sequence[str], min_chars: int) -> str | None:
    """Return the first rule of `RULES` that drops a normalised text, or None if it stays.

    Args:
        text: the normalised text.
        words: its words, as `dedup.comparable_words` gives them.
        min_chars: the least number of characters.
    """
    if len(text) < min_chars or not text.strip():
        return "too_short"
    if text.count("\ufffd") > MAX_UNREADABLE * len(text):
        return "unreadable"
    # Most texts are nearly all words, so the exact count is seldom needed.
    if sum(map(len, words)) < 0.5 * len(text) and letter_share(text) < MIN_LETTERS:
        return "symbols"
    if sum(len(run.group()) for run in _RUN.finditer(text)) > MAX_RUNS * len(text):
        return "character_runs"
    if len(text) >= MIN_CHARS_FOR_LINES and repeated_line_share(text) > MAX_REPEATED_LINES:
        return "repeated_lines"
    if len(words) >= MIN_WORDS_FOR_PHRASES:
        share = repeated_phrase_share(words)
        if share > MAX_REPEATED_PHRASES:
            return "repeated_phrases"
    return None


def letter_share(text: str) -> float:
    """Return the share of letters and digits (of any script) in the characters, space aside."""
    visible = "".join(text.split())
    return sum(map(str.isalnum, visible)) / max(len(visible), 1)


def repeated_line_share(text: str) -> float:
    """Return the share of characters that stand in lines equal to an earlier one."""
    seen: set[str] = set()
    total = repeated = 0
    for line in text.split("\n"):
        line = line.strip()
        total += len(line)
        if line in seen:
            repeated += len(line)
        seen.add(line)
    return repeated / max(total, 1)


def repeated_phrase_share(words: Sequence[str]) -> float:
    """Return the share of runs of `PHRASE_WORDS` words that are equal to an earlier one."""
    # Every repeated run repeats its pairs, so few repeated pairs settle it cheaply.
    num_pairs = max(len(words) - 1, 1)
    if 1 - len(set(itertools.pairwise(words))) / num_pairs <= MAX_REPEATED_PHRASES / 2:
        return 0.0
    phrases = list(zip(*(words[i:] for i in range(PHRASE_WORDS)), strict=False))
    return 1 - len(set(phrases)) / max(len(phrases), 1)
