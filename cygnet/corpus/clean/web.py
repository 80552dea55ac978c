"""Lines that web pages have and texts do not (C4: Raffel et al. 2020, arXiv:1910.10683, 2.2)."""

from __future__ import annotations

import re

NOTICES = (
    "javascript",
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
    "utilise des cookies",
    "verwendet cookies",
    "utiliza cookies",
    "隐私政策",
    "使用条款",
    "启用 javascript",
)
"""A line that holds one of them, in any case, is taken out."""

_NOTICE = re.compile("|".join(map(re.escape, NOTICES)), re.IGNORECASE)
_CITATION = re.compile(r"\[(?:\d+|edit|citation needed)\]")


def web_lines(text: str) -> str:
    """Return a page's text without notices about cookies, scripts and terms, and without [1].

    Lines that end without a full stop stay, other than in C4: headings and lists are text, and
    FineWeb found that dropping them costs more than it gives.
    """
    if "[" in text:
        text = _CITATION.sub("", text)
    lowered = text.lower()
    if not any(notice in lowered for notice in NOTICES):
        return text
    return "\n".join(line for line in text.split("\n") if not _NOTICE.search(line)).strip("\n")
