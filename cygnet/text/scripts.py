"""In what language a document is written, or at least in what script; and how many words it has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cygnet.han import HAN

_SCRIPTS = {
    "han": f"[{HAN}]",
    "kana": "[\u3041-\u30ff\u31f0-\u31ff]",
    "hangul": "[\u1100-\u11ff\uac00-\ud7af]",
    "latin": "[A-Za-z\u00c0-\u024f\u1e00-\u1eff]",
    "greek": "[\u0370-\u03ff\u1f00-\u1fff]",
    "cyrillic": "[\u0400-\u052f]",
    "hebrew": "[\u0590-\u05ff]",
    "arabic": "[\u0600-\u06ff\u0750-\u077f]",
    "devanagari": "[\u0900-\u097f]",
    "bengali": "[\u0980-\u09ff]",
    "tamil": "[\u0b80-\u0bff]",
    "thai": "[\u0e00-\u0e7f]",
}
_LETTERS = {name: re.compile(letters) for name, letters in _SCRIPTS.items()}
_UNSPACED = f"{HAN}\u3041-\u30ff\u0e00-\u0e7f"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
READ_CHARACTERS = 2000
"""Of a document, to find its script."""


def language_of(row: Mapping[str, Any]) -> str:
    """Return a document's `language`, or else its script, such as `latin`.

    Japanese is known by its kana, whatever else there is beside Han characters.
    """
    if language := row.get("language"):
        return str(language)
    text = row["text"][:READ_CHARACTERS]
    counts = {name: len(letters.findall(text)) for name, letters in _LETTERS.items()}
    if counts["kana"] * 10 > counts["han"] and counts["kana"] >= counts["latin"]:
        return "kana"
    script = max(counts, key=counts.__getitem__)
    return script if counts[script] else "other"


def count_words(text: str) -> int:
    """Return the number of words; where a script sets no spaces, each character is one."""
    return len(_WORD.findall(text))
