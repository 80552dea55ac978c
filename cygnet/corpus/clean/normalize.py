"""One way of writing the same text."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any, Literal

from cygnet.corpus.clean.mojibake import mended
from cygnet.errors import require
from cygnet.han import HAN

MAX_ROUNDS = 10

# Full-width Chinese punctuation and the indentation of code must survive: no NFKC, no uncurling
# of quotes, no unescaping of HTML, no joining of lines.
_REMOVED = dict.fromkeys(
    [
        *(*range(0x09), *range(0x0E, 0x20), *range(0x7F, 0x85), *range(0x86, 0xA0)),
        *(0xFEFF, 0xFFF9, 0xFFFA, 0xFFFB),
    ]
)
_NEWLINES = {0x0B: "\n", 0x0C: "\n", 0x0D: "\n", 0x85: "\n", 0x2028: "\n", 0x2029: "\n"}
_CONTROL = {**_REMOVED, **_NEWLINES}
_TO_MEND = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufff9-\ufffb\ud800-\udfff]")
SURROGATE = re.compile("[\ud800-\udfff]")
_TRAILING = re.compile(r"[ \t\u3000]+$", re.MULTILINE)
_ENDS_TO_MEND = (" \n", "\t\n", "\u3000\n")
_HAN = re.compile(f"[{HAN}]")
_BLANK_LINES = re.compile(r"\n{4,}")


Chinese = Literal["as_is", "simplified", "traditional"]


def normalize(text: str, chinese: Chinese = "as_is") -> str:
    r"""Repair and unify a text; `normalize(normalize(x)) == normalize(x)`.

    Encoding accidents such as "cafÃ©" are undone (ftfy), characters composed (NFC), line ends
    become "\n", control characters and byte-order marks go, trailing space goes, more than two
    blank lines become two. Indentation and full-width punctuation stay as they are. By choice
    Chinese is written in simplified or traditional characters (OpenCC).
    """
    for _ in range(MAX_ROUNDS):  # a repair may uncover another, and so may space that goes
        repaired = _repaired(text)
        trimmed = _trimmed(repaired)
        is_done = repaired == text and (trimmed == repaired or text.isascii())
        text = _with_few_blank_lines(trimmed)
        if is_done:
            break
    if chinese != "as_is" and _HAN.search(text):
        return str(_converter(chinese).convert(text))
    return text


@lru_cache(maxsize=2)
def _converter(chinese: Chinese) -> Any:
    """Return OpenCC's converter; it works phrase by phrase, since one sign may stand for two."""
    opencc = require("opencc", "data")
    return opencc.OpenCC("t2s" if chinese == "simplified" else "s2t")


def _repaired(text: str) -> str:
    text = text.replace("\r\n", "\n")
    text = mended(text)
    if _TO_MEND.search(text):
        text = SURROGATE.sub("\ufffd", text).translate(_CONTROL)
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def _trimmed(text: str) -> str:
    """Return the text without space at the ends of its lines."""
    if any(end in text for end in _ENDS_TO_MEND):
        text = _TRAILING.sub("", text)
    ended = text.rstrip()
    return text if ended == text.rstrip("\n") else ended


def _with_few_blank_lines(text: str) -> str:
    if "\n\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n\n", text)
    return text.strip("\n")
