"""Bank cards, IBANs and national identity numbers: their shapes and their check digits.

The finders take a text, the bounds of a run of digits (as `privacy` cuts them: maximal, with the
signs that stand between groups) and the number of its digits; they look there and a few characters
to the left and right, and yield (start, end) of what passes its check.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# -- bank cards ---------------------------------------------------------------------------------

_CARD = re.compile(
    r"(?<![\w.+-])(?<![0-9] )(?:"
    r"[0-9]{14,19}"
    r"|[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?"
    r"|[0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5}"
    r"|[0-9]{6}([ -])[0-9]{10,13}"
    r")(?![A-Za-z0-9_]|[.,-][0-9]| [0-9])".replace(r"(?<![\w.+-])", r"(?<![A-Za-z0-9_.+-])")
)
# Network prefixes and lengths: ISO/IEC 7812 ranges as the networks publish them.
_NETWORKS = re.compile(
    r"4[0-9]{15}(?:[0-9]{3})?"  # Visa
    r"|5[1-5][0-9]{14}|(?:222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"
    r"|3[47][0-9]{13}"  # American Express
    r"|(?:6011|64[4-9][0-9]|65[0-9]{2})[0-9]{12,15}"  # Discover
    r"|(?:30[0-5]|309|36[0-9]|3[89][0-9])[0-9]{11}(?:[0-9]{2})?"  # Diners
    r"|35(?:2[89]|[3-8][0-9])[0-9]{12,15}"  # JCB
    r"|62[0-9]{14,17}"  # UnionPay
    r"|220[0-4][0-9]{12,15}"  # Mir
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])[0-9]{12,15}"  # Maestro
    r"|(?:508[5-9]|60[0-9]{2}|8[12][0-9]{2})[0-9]{12}"  # RuPay
)


def find_cards(text: str, start: int, end: int, num_digits: int) -> Iterator[tuple[int, int]]:
    """Yield bank cards: a network's prefix and length, usual grouping, Luhn's check."""
    if num_digits < 14:
        return
    for match in _CARD.finditer(text, start, end + 2):
        digits = _digits(match.group())
        if len(set(digits)) > 1 and _NETWORKS.fullmatch(digits) and luhn(digits):
            yield match.span()


def luhn(digits: str) -> bool:
    """Return whether decimal digits end in their Luhn check digit (ISO/IEC 7812-1, annex B)."""
    total = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + position % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


# -- IBAN ---------------------------------------------------------------------------------------

_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?:[A-Z0-9]{11,30}"
    r"|([ \u00a0-])[A-Z0-9]{4}(?:\1[A-Z0-9]{4}){1,6}(?:\1[A-Z0-9]{1,4})?)(?![A-Za-z0-9])"
)
# Lengths: SWIFT IBAN registry.
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD FK", 19: "MK SI", 20: "AT BA EE KZ LT LU XK MN",
        21: "CH CR HR LI LV", 22: "BG BH DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV", 29: "BR EG PS QA UA",
        30: "JO KW MU", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip


def find_ibans(text: str, start: int, end: int, num_digits: int) -> Iterator[tuple[int, int]]:
    """Yield IBANs of the length of their country whose check digits hold (ISO 13616)."""
    if num_digits < 7:
        return
    for match in _IBAN.finditer(text, max(0, start - 12), end + 24):
        length = _IBAN_LENGTHS.get(text[match.start() : match.start() + 2], 0)
        # A word in capitals may follow: the country says how much of it is the IBAN.
        end, seen = match.start(), 0
        while end < match.end() and seen < length:
            seen += text[end].isalnum()
            end += 1
        whole = end == len(text) or not text[end].isalnum()
        if length and seen == length and whole and _mod97(text[match.start() : end]):
            yield match.start(), end


def _mod97(iban: str) -> bool:
    letters = re.sub(r"[^A-Z0-9]", "", iban)
    turned = letters[4:] + letters[:4]
    return int("".join(str(int(letter, 36)) for letter in turned)) % 97 == 1


# -- national identity numbers ------------------------------------------------------------------

_FREE = r"(?<![A-Za-z0-9_.+-])(?<![0-9] )"
_END = r"(?![A-Za-z0-9_]|[.,-][0-9]| [0-9])"


def _shape(pattern: str) -> re.Pattern[str]:
    return re.compile(f"{_FREE}(?:{pattern}){_END}")


def chinese_identity(number: str) -> bool:
    """Check 18 characters, the last by ISO 7064 MOD 11-2 (GB 11643-1999)."""
    number = number.upper()
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17]


def steuer_id(number: str) -> bool:
    """Check 11 digits: one digit two or three times in ten, ISO 7064 MOD 11,10."""
    digits = _digits(number)
    counts = sorted(digits[:10].count(digit) for digit in set(digits[:10]))
    if counts[-1] not in (2, 3) or counts[-2] != 1:
        return False
    product = 10
    for digit in digits[:10]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def nir(number: str) -> bool:
    """Check 15 characters: the last two are 97 minus the rest modulo 97; 2A is 19, 2B is 18."""
    compact = re.sub(r"[ .-]", "", number)
    if len(compact) != 15:
        return False
    value = compact[:13].replace("2A", "19").replace("2B", "18")
    return value.isdigit() and 97 - int(value) % 97 == int(compact[13:])


def spanish_identity(number: str) -> bool:
    """Check a DNI or NIE: its letter is the number modulo 23 in a table."""
    compact = re.sub(r"[ .-]", "", number).upper()
    value = int(compact[:-1].translate(str.maketrans("XYZ", "012")))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[value % 23] == compact[-1]


# Values of the characters at odd places (decree of 12 March 1974): 0-9, then A-Z.
_FISCALE_ODD = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3,
         6, 8, 12, 14, 16, 10, 22, 25, 24, 23],
        strict=True,
    )
)  # fmt: skip


def codice_fiscale(number: str) -> bool:
    """Check 16 characters, the last by the table of the decree of 12 March 1974."""
    number = number.upper()
    total = 0
    for place, letter in enumerate(number[:15]):
        even = int(letter) if letter.isdigit() else ord(letter) - ord("A")
        total += even if place % 2 else _FISCALE_ODD[letter]
    return chr(ord("A") + total % 26) == number[15]


def aadhaar(number: str) -> bool:
    """Check 12 digits by Verhoeff's dihedral scheme."""
    state = 0
    for place, digit in enumerate(reversed(_digits(number))):
        state = _dihedral(state, _permuted(int(digit), place))
    return state == 0


def _dihedral(left: int, right: int) -> int:
    if left < 5:
        return (left + right) % 5 if right < 5 else 5 + (left + right) % 5
    return 5 + (left - right) % 5 if right < 5 else (left - right) % 5


def _permuted(digit: int, times: int) -> int:
    for _ in range(times % 8):
        digit = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]
    return digit


def cpf(number: str) -> bool:
    """Check 11 digits, the last two by weighted sums modulo 11."""
    digits = _digits(number)
    if len(set(digits)) == 1:
        return False
    for length in (9, 10):
        total = sum(int(digits[place]) * (length + 1 - place) for place in range(length))
        if total * 10 % 11 % 10 != int(digits[length]):
            return False
    return True


def _always(number: str) -> bool:
    return True


_NINO = (
    r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]"
    r"{s}[0-9]{{2}}{s}[0-9]{{2}}{s}[0-9]{{2}}{s}[A-D]"
)


@dataclass(frozen=True)
class _Identity:
    digits: int
    """The least number of digits in a run."""
    left: int
    """How far before the first digit of the run it may begin."""
    shape: re.Pattern[str]
    check: Callable[[str], bool] = _always
    word: re.Pattern[str] | None = None
    """What must stand in the characters before it, or None."""


_IDENTITIES = [
    _Identity(9, 0, _shape(r"(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}")),
    _Identity(
        9,
        0,
        _shape(r"(?!000|666|9)[0-9]{3} ?(?!00)[0-9]{2} ?(?!0000)[0-9]{4}"),
        word=re.compile(r"(?i)\bssn\b|social security"),
    ),
    _Identity(
        17,
        0,
        _shape(
            r"[1-8][0-9]{5}(?:18|19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])"
            r"[0-9]{3}[0-9Xx]"
        ),
        chinese_identity,
    ),
    _Identity(11, 0, _shape(r"[1-9][0-9]{10}|[1-9][0-9] [0-9]{3} [0-9]{3} [0-9]{3}"), steuer_id),
    _Identity(
        6,
        12,
        _shape(
            r"[12]([ .]?)[0-9]{2}\1(?:0[1-9]|1[0-2]|[2-9][0-9])\1(?:[0-9]{2}|2[AB])\1"
            r"[0-9]{3}\1[0-9]{3}[ .-]?[0-9]{2}"
        ),
        nir,
    ),
    _Identity(
        8, 0, _shape(r"(?:[0-9]{8}|[0-9]{2}\.[0-9]{3}\.[0-9]{3})[ -]?[A-Z]"), spanish_identity
    ),
    _Identity(7, 2, _shape(r"[XYZ][ -]?[0-9]{7}[ -]?[A-Z]"), spanish_identity),
    _Identity(6, 3, _shape(_NINO.format(s=" "))),
    _Identity(
        6,
        2,
        _shape(_NINO.format(s="")),
        word=re.compile(r"(?i)\bni(?:no)?\b|national insurance|insurance n"),
    ),
    _Identity(12, 0, _shape(r"[2-9][0-9]{3}([ -])[0-9]{4}\1[0-9]{4}"), aadhaar),
    _Identity(12, 0, _shape(r"[2-9][0-9]{11}"), aadhaar, re.compile(r"(?i)aadha+r|\buid|आधार")),
    _Identity(11, 0, _shape(r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}"), cpf),
    _Identity(11, 0, _shape(r"[0-9]{11}"), cpf, re.compile(r"(?i)\bcpf\b")),
]
_FISCALE = _Identity(
    6,
    6,
    _shape(r"[A-Za-z]{6}[0-9]{2}[A-EHLMPRSTa-ehlmprst][0-9]{2}[A-Za-z][0-9]{3}[A-Za-z]"),
    codice_fiscale,
)
_WORD_CHARS = 40


def find_national_ids(
    text: str, start: int, end: int, num_digits: int
) -> Iterator[tuple[int, int]]:
    """Yield the national identity numbers that `privacy.KINDS` lists."""
    # The letters within a codice fiscale end the pattern of a run: such a run is nothing else.
    for identity in (_FISCALE,) if text[start + 2].isalpha() else _IDENTITIES:
        if num_digits < identity.digits:
            continue
        for match in identity.shape.finditer(text, max(0, start - identity.left), end + 4):
            before = text[max(0, match.start() - _WORD_CHARS) : match.start()]
            if (identity.word is None or identity.word.search(before)) and identity.check(
                match.group()
            ):
                yield match.span()


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))
