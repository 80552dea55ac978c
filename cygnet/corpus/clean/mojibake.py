"""Text that was read in the wrong encoding: found quickly, mended by ftfy.

ftfy's own test of a text reads about a megabyte a second. What it mends are bytes of UTF-8 that
were taken for characters of a one-byte encoding, so that a character whose byte begins a sequence
stands before one whose byte continues it. Such pairs are rare in sound text; ftfy is asked about
their surroundings alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cygnet.errors import require

AROUND, MOST_BEHIND = 16, 6
"""Characters on either side of a suspicious pair that ftfy looks at, and that its patterns have."""


def mended(text: str) -> str:
    """Return the text with encoding accidents such as "cafÃ©" undone, line by line.

    A line of another encoding than the rest is mended alone; ftfy's doubts grow with the length.
    """
    if text.isascii():
        return text
    parts, at = [], 0
    for start, end in _garbled_lines(text):
        parts += [text[at:start], str(require("ftfy", "data").fix_encoding(text[start:end]))]
        at = end
    return "".join([*parts, text[at:]]) if parts else text


def _garbled_lines(text: str) -> Iterator[tuple[int, int]]:
    is_bad = require("ftfy.badness", "data").is_bad
    at = end = 0
    for place in suspicious(text).tolist():
        if place + MOST_BEHIND <= at:  # it was looked at with the last one
            continue
        if place >= end:
            start = text.rfind("\n", 0, place) + 1
            end = text.find("\n", place)
            end = end if end >= 0 else len(text)
        at = min(place + AROUND, end)
        if is_bad(text[max(place - AROUND, start) : at]):
            yield start, end
            at = end + MOST_BEHIND  # the rest of the line is mended with it


def suspicious(text: str) -> NDArray[np.int64]:
    """Return where a sequence of UTF-8 may begin in any of the encodings that ftfy undoes.

    A byte of a sequence may be lost (U+FFFD, "?"), or have become a space where it was a no-break
    one; some one is left. A lone control character stands for one of Windows' signs.
    """
    codes = np.frombuffer(f"{text}\0\0\0".encode("utf-32-le", "surrogatepass"), np.uint32)
    places = np.flatnonzero(codes >= 0x80)
    is_control = codes[places] < 0xA0
    # In sound text few characters pass this, and few of their neighbours.
    begins, furthers = _passes()
    chosen = begins[np.minimum(codes[places], _LAST)]
    chosen[chosen] = furthers[np.minimum(codes[places[chosen] + 1], _LAST)]
    lone, places = places[is_control & ~chosen], places[chosen]
    roles = [_roles_of(codes[places + behind]) for behind in range(4)]

    def role(number: int, behind: int) -> NDArray[np.uint64]:
        return roles[behind] >> np.uint64(number * _ENCODINGS) & _MASK

    more, lost = [role(_MORE, i) for i in range(4)], [role(_LOST, i) for i in range(4)]
    some = [a | b for a, b in zip(more, lost, strict=True)]
    found = role(_BEGINS_2, 0) & more[1]
    found |= role(_BEFORE_SPACE, 0) & lost[1]
    found |= role(_BEGINS_3, 0) & (more[1] & some[2] | lost[1] & more[2])
    rest = more[1] & some[2] & some[3] | lost[1] & (more[2] & some[3] | lost[2] & more[3])
    found |= role(_BEGINS_4, 0) & rest
    places = places[(found > 0) | (codes[places] < 0xA0)]
    return np.sort(np.concatenate([places, lone])) if len(lone) else places


def _roles_of(codes: NDArray[np.uint32]) -> NDArray[np.uint64]:
    return _roles()[np.minimum(codes, _LAST)]


_BEGINS_2, _BEGINS_3, _BEGINS_4, _BEFORE_SPACE, _MORE, _LOST = range(6)
"""What a character may be: the first of a sequence of so many bytes; of one whose second became a
space; a further byte of one; one that was lost. For each role a bit an encoding."""
_ENCODINGS = 10
_MASK = np.uint64((1 << _ENCODINGS) - 1)
_ANY_BEGIN = np.uint64((1 << 4 * _ENCODINGS) - 1)
_LAST = 0xFFFF


@lru_cache(maxsize=1)
def _passes() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which characters may begin a sequence, and which may follow in one."""
    further = _MASK << np.uint64(_MORE * _ENCODINGS) | _MASK << np.uint64(_LOST * _ENCODINGS)
    return (_roles() & _ANY_BEGIN) > 0, (_roles() & further) > 0


@lru_cache(maxsize=1)
def _roles() -> NDArray[np.uint64]:
    roles = np.zeros(_LAST + 1, np.uint64)
    encodings = require("ftfy.chardata", "data").CHARMAP_ENCODINGS
    assert len(encodings) <= _ENCODINGS
    for number, encoding in enumerate(encodings):
        for role, values in (
            (_BEGINS_2, range(0xC2, 0xE0)),
            (_BEGINS_3, range(0xE0, 0xF0)),
            (_BEGINS_4, range(0xF0, 0xF5)),
            (_BEFORE_SPACE, (0xC2, 0xC3, 0xC5, 0xCE, 0xD0, 0xD9)),
            (_MORE, range(0x80, 0xC0)),
        ):
            codes = [ord(char) for char in bytes(values).decode(encoding, "ignore")]
            roles[codes] |= np.uint64(1 << (role * _ENCODINGS + number))
    roles[0xFFFD] |= _MASK << np.uint64(_MORE * _ENCODINGS)
    roles[[ord(" "), ord("?")]] |= _MASK << np.uint64(_LOST * _ENCODINGS)
    return roles
