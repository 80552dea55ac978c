"""Text that was read in the wrong encoding: found quickly, mended by ftfy.

ftfy's own test of a text reads about a megabyte a second. What it mends are bytes of UTF-8 that
were taken for characters of a one-byte encoding, so that a character whose byte begins a sequence
stands before one whose byte continues it. Such pairs are rare in sound text; ftfy is asked about
their surroundings alone.
"""

from __future__ import annotations

import re
from functools import lru_cache

from cygnet.errors import require

AROUND = 24
"""Characters on either side of a suspicious pair that ftfy looks at; its patterns are shorter."""


def mended(text: str) -> str:
    """Return the text with encoding accidents such as "cafÃ©" undone."""
    if text.isascii() or not _is_garbled(text):
        return text
    return str(require("ftfy", "data").fix_encoding(text))


def _is_garbled(text: str) -> bool:
    is_bad = require("ftfy.badness", "data").is_bad
    at = 0
    for pair in _suspicious().finditer(text):
        if pair.start() >= at:  # else it was looked at with the last one
            at = pair.end() + AROUND
            if is_bad(text[max(pair.start() - AROUND, 0) : at]):
                return True
    return False


@lru_cache(maxsize=1)
def _suspicious() -> re.Pattern[str]:
    """Return what matches the beginning of UTF-8 in any of the encodings that ftfy undoes."""
    # Importing ftfy makes its own encodings known.
    encodings = require("ftfy.chardata", "data").CHARMAP_ENCODINGS
    pairs = []
    leads = set()
    for encoding in encodings:
        first = _characters(encoding, 0xC2, 0xF4)
        leads |= set(first)
        pairs.append(f"(?<={_class(first)}){_class(_characters(encoding, 0x80, 0xBF))}")
    # A no-break space may have become a space; lone control characters stand for Windows' signs.
    controls = set(map(chr, range(0x80, 0xA0)))
    anywhere = ["(?<=[\x80-\x9f])", "(?<=Ã) "]
    return re.compile(f"{_class(leads | controls)}(?:{'|'.join([*pairs, *anywhere])})")


def _characters(encoding: str, first: int, last: int) -> set[str]:
    return set(bytes(range(first, last + 1)).decode(encoding, "ignore"))


def _class(characters: set[str]) -> str:
    return f"[{re.escape(''.join(sorted(characters)))}]"
