"""Codes of the languages that are told apart, and what people give in their place."""

from __future__ import annotations

import difflib
import re

_CODES = """
ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext
fa fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja
jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no
nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk
tl tr tt ug uk und ur uz uzs vec vi vo wa wuu xh yo yue zh zu
"""
CODES = tuple(_CODES.split())
"""What a text's language can be: what py3langid's model tells apart, and `und`: not known."""
_MEANT = {
    "cs": "cz cze ces czech", "da": "dk dan danish", "de": "ger deu german deutsch",
    "el": "gr gre ell greek", "en": "us gb eng english", "es": "sp spa spanish",
    "fa": "per fas persian farsi", "fr": "fre fra french", "he": "iw il heb hebrew",
    "id": "in ind indonesian", "it": "ita italian", "ja": "jp jpn japanese",
    "ko": "kr kor korean", "nl": "dut nld dutch", "no": "nb nob nor norwegian",
    "pl": "pol polish", "pt": "por portuguese", "ru": "rus russian", "sv": "swe swedish",
    "uk": "ua ukr ukrainian", "vi": "vn vie vietnamese", "zh": "cn chi zho cmn chinese mandarin",
}  # fmt: skip
"""Countries, three letters and names that people give for a code."""


def nearest_codes(word: str, most: int = 3) -> list[str]:
    """Return the `CODES` most like a word that is none, the likeliest first."""
    meant = {name: code for code, names in _MEANT.items() for name in names.split()}
    known = {code: code for code in CODES} | meant
    word = word.lower()
    likely = [word, *re.split(r"[-_]", word)[:1]]
    likely += difflib.get_close_matches(word, known, n=2 * most, cutoff=0.5)
    return list(dict.fromkeys(known[name] for name in likely if name in known))[:most]
