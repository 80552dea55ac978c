"""Whole numbers in words, English and Chinese, written and read back."""

from __future__ import annotations

import re
from typing import Literal

Script = Literal["digits", "words", "chinese"]
LARGEST = 9999

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_HAN = "零一二三四五六七八九"
_HAN_UNITS = ("", "十", "百", "千")


def in_words(number: int) -> str:
    """Return a number from 0 to 9999 in English: `eighty-two`, `one hundred and five`."""
    assert 0 <= number <= LARGEST
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_ONES[hundreds]} hundred" + (f" and {in_words(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    joint = " and " if 0 < rest < 100 else " "
    return f"{_ONES[thousands]} thousand" + (f"{joint}{in_words(rest)}" if rest else "")


def in_chinese(number: int) -> str:
    """Return a number from 0 to 9999 in Chinese: `八十二`, `一百零五`."""
    assert 0 <= number <= LARGEST
    if number < 10:
        return _HAN[number]
    digits = [int(digit) for digit in str(number)]
    parts: list[str] = []
    for place, digit in zip(range(len(digits) - 1, -1, -1), digits, strict=True):
        if digit:
            parts.append(_HAN[digit] + _HAN_UNITS[place])
        elif parts and parts[-1] != "零":
            parts.append("零")
    text = "".join(parts).rstrip("零")
    return text.removeprefix("一") if text.startswith("一十") else text


_VALUES = {in_words(number): number for number in range(LARGEST + 1)}
_CHINESE_VALUES = {in_chinese(number): number for number in range(LARGEST + 1)}
_WORD = "|".join([*_ONES, *filter(None, _TENS), "hundred", "thousand"])
_NUMBER = re.compile(
    rf"(?P<digits>(?<![A-Za-z0-9_.])-?\d{{1,15}}(?:,\d{{3}})*(?![A-Za-z0-9_]|\.\d))"
    rf"|(?P<words>(?<![A-Za-z])(?:{_WORD})(?:(?:[ -]and)?[ -](?:{_WORD}))*(?![A-Za-z]))"
    rf"|(?P<chinese>[{_HAN}十百千]+)",
    re.IGNORECASE,
)


def numbers_in(text: str) -> list[tuple[int, Script]]:
    """Return the whole numbers of a text in their order, and how each is written.

    Digits may be parted by commas at each thousand; words and Chinese numerals are read up to 9999,
    in the one way in which `in_words` and `in_chinese` write them (case aside).
    """
    found = (_value(match) for match in _NUMBER.finditer(text))
    return [value for value in found if value is not None]


def last_number(text: str) -> tuple[int, Script] | None:
    """Return the last of `numbers_in`, or None if there is none."""
    found = numbers_in(text)
    return found[-1] if found else None


def _value(match: re.Match[str]) -> tuple[int, Script] | None:
    if digits := match["digits"]:
        return int(digits.replace(",", "")), "digits"
    if words := match["words"]:
        number = _VALUES.get(words.lower())
        return None if number is None else (number, "words")
    number = _CHINESE_VALUES.get(match["chinese"])
    return None if number is None else (number, "chinese")
