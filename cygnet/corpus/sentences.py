"""Where sentences end, in English and Chinese, and passages of a text to continue."""

from __future__ import annotations

import re
from bisect import bisect_left
from itertools import accumulate

from cygnet.han import HAN

OPENING_WORDS = 40
FOLLOWING_WORDS = 80
MIN_WORDS = 12
CHARS_A_PASSAGE = 2000
MAX_PASSAGES = 8

_BOUNDARY = re.compile(
    r"(?<=[.!?])[\"”’)\]]*\s+(?=[\"“‘(\[]?[A-Z0-9])|(?<=[。！？])[”』」]?\s*|\n{2,}"
)
_UNFINISHED = re.compile(
    r"(?:\b(?:[A-Za-z]|Mr|Mrs|Ms|Dr|St|Sr|Jr|Prof|vs|etc|ca|cf|approx|no|No|Gen|Col|Lt|Sgt|Mt|Ft|"
    r"fl|lit|pron|Inc|Ltd|Co|Corp|Rev|Capt|Vol|vol|Op|op|Fig|fig)|\b(?:[A-Za-z]\.)+[A-Za-z])\.$"
)
_WORD = re.compile(f"([{HAN}])|[^\\W{HAN}]+")
_CLOSED = re.compile(r"[.!?。！？][\"”’)\]』」]?$")


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, without the space between them.

    A full stop behind an initial or a usual abbreviation ends none.
    """
    found: list[str] = []
    begin = 0
    for boundary in _BOUNDARY.finditer(text):
        sentence = text[begin : boundary.end()].strip()
        if _UNFINISHED.search(sentence) and "\n\n" not in boundary[0]:
            continue
        if sentence:
            found.append(sentence)
        begin = boundary.end()
    rest = text[begin:].strip()
    return [*found, rest] if rest else found


def first_sentences(text: str, count: int, max_chars: int) -> str:
    """Return the first sentences of a text as they stand there, or an empty string.

    Args:
        text: any.
        count: at most so many.
        max_chars: as many whole sentences as fit.
    """
    end = 0
    for sentence in sentences(text)[:count]:
        stop = text.index(sentence, end) + len(sentence)
        if stop > max_chars or not _CLOSED.search(sentence):
            break
        end = stop
    return text[:end].strip()


def passages(text: str) -> list[tuple[str, str]]:
    """Return openings of about 40 words and the about 80 words that follow each.

    A Han character counts as half a word. A long text gives one passage for every 2,000
    characters, eight at most; a short one is parted in the proportion of 1 to 2; one of fewer
    than twelve words gives none. The following words end with a sentence where one ends in their
    second half.
    """
    count = min(1 + len(text) // CHARS_A_PASSAGE, MAX_PASSAGES)
    begins = [0]
    for i in range(1, count):
        # From the first sentence behind an even share of the text on.
        boundary = _BOUNDARY.search(text, i * len(text) // count)
        if boundary:
            begins.append(boundary.end())
    parted = (_part(text[begin : begin + 4 * CHARS_A_PASSAGE]) for begin in sorted(set(begins)))
    return [passage for passage in parted if passage]


def _part(text: str) -> tuple[str, str] | None:
    """Return the opening and what follows it, or None where there is too little."""
    ends = [word.end() for word in _WORD.finditer(text)]
    words = list(accumulate(0.5 if word[1] else 1.0 for word in _WORD.finditer(text)))
    if not words or words[-1] < MIN_WORDS:
        return None
    num_opening = min(OPENING_WORDS, words[-1] / 3)
    opening_end = ends[bisect_left(words, num_opening)]
    last = bisect_left(words, num_opening + FOLLOWING_WORDS)
    stop = ends[last] if last < len(ends) else len(text)
    following = text[opening_end:stop]
    closed = [b.start() for b in _BOUNDARY.finditer(text, opening_end, stop + 8)]
    late = [at for at in closed if at - opening_end >= len(following) // 2]
    if stop < len(text) and late:
        following = text[opening_end : late[-1]]
    opening, following = text[:opening_end].strip(), following.strip()
    return (opening, following) if opening and following else None
