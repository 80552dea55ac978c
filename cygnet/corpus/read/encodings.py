"""Which encoding of a byte a character a text is in: by its letters and by its language.

An encoding is likely if, read by it, the text is of a language (py3langid) whose alphabet has all
its letters beyond ASCII, and marks stand where marks may stand. So "krásn\\xfd den" is Czech, and
"l'\\x82t\\x82" is no Windows-1252, for there is no comma inside a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from cygnet.corpus.clean.language import languages

JUDGED_BYTES = 1_500
"""So much of the lines that have more than ASCII is looked at."""
CHUNK_CHARS = 200
"""The language of so many characters is told at a time."""
MAX_MISPLACED = 0.03
"""Share of misplaced characters from which an encoding is out of the question."""
MIN_SCORE = 0.3
"""Below it no encoding is likely."""
MARGIN = 0.02
"""So much better an encoding must be than those before it in `SINGLE_BYTE`."""
SINGLE_BYTE = (
    *("cp1252", "cp1250", "iso8859_2", "cp850", "cp437", "cp852", "cp1254", "cp1257"),
    *("cp1251", "koi8_r", "koi8_u", "cp866", "iso8859_5", "cp1253", "iso8859_7"),
    *("cp1255", "cp1256"),
)
"""The encodings that are told from each other, the commonest of those alike first."""

_CYRILLIC = "абвгдежзийклмнопрстуфхцчшщъыьэюя"
_ARABIC = "".join(map(chr, range(0x621, 0x64B)))
_WESTERN = "àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿßœšž"
_ALPHABETS = {
    "en": _WESTERN, "de": "äöüßéèàêáç", "fr": "àâæçéèêëîïôœùûüÿ", "es": "áéíñóúüç",
    "it": "àèéìíòóùúîï", "pt": "áâãàçéêíóôõúü", "sv": "åäöéèüàá", "da": "æøåéèáóü",
    "nb": "æøåéèóòôâ", "nn": "æøåéèóòôâ", "no": "æøåéèóòôâ", "fi": "äöåšžé",
    "nl": "éëïóöüèêáàíç", "ca": "àçéèíïóòúü", "gl": "áéíñóúüï", "eu": "ñçü", "ga": "áéíóú",
    "is": "áðéíóúýþæö", "fo": "áðíóúýæø", "af": "êëéèôîûïáóú", "cy": "âêîôûŵŷäëïöáéó",
    "sq": "çë", "id": "é",
    "cs": "áčďéěíňóřšťúůýž", "sk": "áäčďéíĺľňóôŕšťúýž", "pl": "ąćęłńóśźż", "hu": "áéíóöőúüű",
    "sl": "čšž", "hr": "čćđšž", "bs": "čćđšž", "ro": "ăâîșțşţ", "et": "äõöüšž",
    "lt": "ąčęėįšųūž", "lv": "āčēģīķļņšūž", "tr": "çğıöşüâîûi̇", "az": "çğıöşüə",
    "sr": "čćđšž" + "ђјљњћџабвгдежзиклмнопрстуфхцчш", "ru": _CYRILLIC + "ё",
    "uk": _CYRILLIC + "єіїґ", "be": _CYRILLIC + "ёіў", "bg": _CYRILLIC,
    "mk": "абвгдѓежзѕијклљмнњопрстќуфхцчџш",
    "el": "αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋΐΰ", "he": "אבגדהוזחטיךכלםמןנסעףפץצקרשת",
    "ar": _ARABIC, "fa": _ARABIC + "پچژگکی",
}  # fmt: skip
"""The letters beyond ASCII that a language is written with."""
_LETTERS = {
    language: frozenset(letters + letters.upper()) for language, letters in _ALPHABETS.items()
}
_JOINING = "’‘'·\xa0\xad-–‐"
"""What may stand between two letters."""
_SELDOM_BEFORE_LETTERS = "¶§¦¨"
_HEBREW_FINALS = "ךםןףץ"
"""Forms that letters have at the end of a word alone."""
LATIN_WORDS = frozenset("àÀèÈéÉíÍóÓáÁåÅöÖæÆøØ")
"""Letters beyond ASCII that are words of their own in some language."""
_LAST_LATIN = "\u024f"
_ODD = re.compile(
    # Latin and other letters in one word, also with a mark between; a space behind a hard one.
    r"[\u0370-\u06ff][’”“…–—]?[A-Za-z]|[A-Za-z][\u0370-\u06ff]|\xa0\s"
)
_BEHIND_LETTERS = frozenset("’”“…–—\xa0")
"""Marks that may follow a letter; quotation marks among them close in some language."""
_LINE_END = re.compile(rb"[\r\n]+")


def single_byte_encoding(sample: bytes) -> str | None:
    """Return which of `SINGLE_BYTE` a text is in, or None where none is likely.

    Lines in UTF-8 are passed over: a file may be put together of both.
    """
    lines = [line for line in _LINE_END.split(sample) if _is_older(line)]
    judged = b"\n".join(lines)[:JUDGED_BYTES]
    if not judged:
        return None
    readings: dict[str, str] = {}  # the first encoding that gives it, by the text
    for encoding in SINGLE_BYTE:
        readings.setdefault(judged.decode(encoding, "replace"), encoding)
    misplaced = {text: _misplaced(text) for text in readings}
    texts = [text for text in readings if misplaced[text] <= MAX_MISPLACED]
    best, best_score = None, MIN_SCORE - MARGIN
    for text, spoken in zip(texts, _languages_of(texts), strict=True):
        score = _fit(text, spoken) * (1 - 5 * misplaced[text])
        if score > best_score + MARGIN:
            best, best_score = readings[text], score
    return best


def is_sound(line: str) -> bool:
    """Say whether nothing is odd in a line, so that its encoding is likely the one it was read by.

    That is so if no character is misplaced, all letters beyond ASCII are of one language, the
    marks beyond ASCII may follow a letter, and no letter stands alone that is no word.
    """
    if _misplaced(line) > 0:
        return False
    beyond = [char for char in line if not char.isascii()]
    letters = {char for char in beyond if char.isalpha()}
    if not (letters.union(_BEHIND_LETTERS).issuperset(beyond) and _is_of_one_language(letters)):
        return False
    if _ODD.search(f" {line} "):
        return False
    padded = f" {line} "
    for before, char, after in zip(padded, padded[1:], padded[2:], strict=False):
        is_latin_letter = not char.isascii() and char.isalpha() and char <= _LAST_LATIN
        is_alone = not (before.isalpha() or after.isalpha())
        if is_latin_letter and is_alone and char not in LATIN_WORDS:
            return False
        if before.isupper() and char.isupper() and after.islower():
            return False
    return True


def _is_of_one_language(letters: set[str]) -> bool:
    # English is told by the letters of all the foreign words in it: those of no one language.
    return any(alphabet >= letters for language, alphabet in _LETTERS.items() if language != "en")


def _is_older(line: bytes) -> bool:
    if line.isascii():
        return False
    try:
        line.decode()
    except UnicodeDecodeError:
        return True
    return False


def _misplaced(text: str) -> float:
    """Return the share of characters beyond ASCII that do not belong where they stand."""
    wrong = total = 0
    padded = f"  {text} "
    is_quoted = "«" in text and "»" in text
    for at, char in enumerate(padded):
        if char.isascii():
            continue
        total += 1
        before, after = padded[at - 1], padded[at + 1]
        if char.isalpha():
            # "aB" and "ABc" are no words.
            wrong += char.isupper() and before.islower()
            wrong += char.islower() and before.isupper() and padded[at - 2].isupper()
            wrong += char in _HEBREW_FINALS and after.isalpha()
        elif (
            (char in "«»" and not is_quoted)
            or char < "\xa0"
            or char == "\ufffd"
            or "\ue000" <= char <= "\uf8ff"
        ):
            wrong += 1
        elif char not in _JOINING:
            kind = unicodedata.category(char)
            is_seldom = kind in ("No", "So", "Sc", "Sm") or char in _SELDOM_BEFORE_LETTERS
            wrong += (
                kind in ("Sk", "Mn") or (after.isalpha() and (before.isalpha() or is_seldom))
            )  # fmt: skip
    return wrong / total


def _languages_of(texts: Sequence[str]) -> list[dict[str, float]]:
    """Return each text's languages: the share of its chunks, times the confidence."""
    chunks = [
        [text[at : at + CHUNK_CHARS] for at in range(0, len(text), CHUNK_CHARS)] for text in texts
    ]
    answers = iter(languages([chunk for own in chunks for chunk in own]))
    spoken: list[dict[str, float]] = []
    for text, own in zip(texts, chunks, strict=True):
        shares: dict[str, float] = {}
        for chunk in own:
            language, confidence = next(answers)
            share = confidence * len(chunk) / len(text)
            shares[language] = shares.get(language, 0.0) + share
        spoken.append(shares)
    return spoken


def _fit(text: str, spoken: dict[str, float]) -> float:
    """Return how well a text's letters are those of its languages, from 0 to 1."""
    letters = [char for char in text if not char.isascii() and char.isalpha()]
    fit = 0.0
    for language, share in spoken.items():
        if alphabet := _LETTERS.get(language):
            own = sum(char in alphabet for char in letters)
            # A power, since a stranger in twenty letters is a name, and four are another encoding.
            fit += share * ((own / len(letters)) ** 6 if letters else 1.0)
    return fit
