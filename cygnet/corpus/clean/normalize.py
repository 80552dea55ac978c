"""One way of writing the same text, and the words that texts are compared by."""

from __future__ import annotations

import re
import unicodedata

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
_BLANK_LINES = re.compile(r"\n{4,}")

_ONE_BY_ONE = f"\u3040-\u30ff{HAN}"  # kana and Han characters
# Symbols are words too, or "2 + 2" and "2 - 2" would be the same text.
_WORD = re.compile(rf"[{_ONE_BY_ONE}]|[^\W{_ONE_BY_ONE}]+|[-+*/=<>^%$&|~#@\\]")


def normalize(text: str) -> str:
    r"""Repair and unify a text; `normalize(normalize(x)) == normalize(x)`.

    Encoding accidents such as "cafÃ©" are undone (ftfy), characters composed (NFC), line ends
    become "\n", control characters and byte-order marks go, trailing space goes, more than two
    blank lines become two. Indentation and full-width punctuation stay as they are.
    """
    for _ in range(MAX_ROUNDS):  # a repair may uncover another
        cleaner = _normalize_once(text)
        if cleaner == text:
            break
        text = cleaner
    return text


def _normalize_once(text: str) -> str:
    text = text.replace("\r\n", "\n")
    if not text.isascii():
        if _is_garbled(text):
            text = require("ftfy", "data").fix_encoding(text)
        text = SURROGATE.sub("\ufffd", text)
    if _TO_MEND.search(text):
        text = text.translate(_CONTROL)
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    text = _TRAILING.sub("", text)
    if "\n\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n\n", text)
    return text.strip("\n").rstrip()


def _is_garbled(text: str) -> bool:
    return bool(require("ftfy.badness", "data").is_bad(text))


def words(text: str) -> list[str]:
    """Return lower-case words; a Han character or kana is a word of its own, so is a symbol."""
    return _WORD.findall(text.lower())
