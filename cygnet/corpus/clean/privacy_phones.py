"""Phone numbers: international, and national where the shape or a word before it tells one.

The shapes follow the national numbering plans (ITU-T E.164 and its lists); a number without
separators is taken only with a word such as "phone" before it or, for Chinese mobiles, among
Chinese characters, since byte counts and identifiers look the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cygnet.han import HAN

MIN_DIGITS, MAX_DIGITS = 7, 15

_FREE = r"(?<![A-Za-z0-9_.+=#$€£¥/\\*-])(?<![0-9][ ,:])(?<!\([0-9])"
_END = r"(?![A-Za-z0-9_]|[.,:/-][0-9]|[ \u00a0]?[%€$£¥°]|[ \u00a0][0-9])"
_DASHES = "\u2011\u2013-"  # last in a class

# Digits of the national number by calling code; of the others, 6 to 12.
_NATIONAL_DIGITS = {
    "1": (10, 10), "7": (10, 10), "20": (8, 10), "27": (9, 9), "30": (10, 10), "31": (9, 9),
    "32": (8, 9), "33": (9, 9), "34": (9, 9), "36": (8, 9), "39": (8, 11), "40": (9, 9),
    "41": (9, 9), "43": (7, 13), "44": (9, 10), "45": (8, 8), "46": (7, 10), "47": (8, 8),
    "48": (9, 9), "49": (6, 12), "51": (8, 9), "52": (10, 10), "54": (10, 11), "55": (10, 11),
    "56": (9, 9), "57": (8, 10), "58": (10, 10), "60": (8, 10), "61": (9, 9), "62": (8, 12),
    "63": (8, 10), "64": (8, 10), "65": (8, 8), "66": (8, 9), "81": (9, 10), "82": (8, 11),
    "84": (9, 10), "86": (10, 11), "90": (10, 10), "91": (10, 10), "92": (9, 10), "93": (9, 9),
    "94": (9, 9), "95": (8, 10), "98": (10, 10), "351": (9, 9), "352": (6, 11), "353": (8, 9),
    "358": (6, 11), "380": (9, 9), "420": (9, 9), "852": (8, 8), "853": (8, 8), "886": (8, 9),
    "966": (8, 9), "971": (8, 9), "972": (8, 9),
}  # fmt: skip
_UNASSIGNED = re.compile(
    r"0|21[0479]|28|29[2-6]|38[48]|42[2-9]|69[3-9]|80[1-79]|83|85[14-9]|89|97[89]|99[179]"
)

_INTERNATIONAL = re.compile(
    r"(?<![A-Za-z0-9_.+=*/^(-])(?:(?:\(?\+|＋)[ ]?[1-9]|(?<![0-9] )00[ ]?[1-9])[0-9]{0,3}\)?"
    r"(?:[ \u00a0./\u2011\u2013-]{0,2}(?:\([0-9]{1,5}\)|[0-9])){5,16}" + _END
)
_DECIMAL = re.compile(r"\+[0-9]+\.[0-9]+")

_SHAPES = re.compile(
    _FREE
    + "(?:"
    + "|".join(
        [
            # North America: area and exchange begin with 2-9
            r"(?:1[ .-])?(?:\([2-9][0-9]{2}\)[ ]?[2-9][0-9]{2}[ .-]"
            r"|[2-9][0-9]{2}([.-])[2-9][0-9]{2}\1)[0-9]{4}",
            # Chinese mobile in groups
            r"1(?:3[0-9]|4[5-9]|5[0-35-9]|6[2567]|7[0-8]|8[0-9]|9[0-35-9])([ -])[0-9]{4}\2[0-9]{4}",
            # Chinese landline, and the 400 numbers
            rf"(?:[(（]0[0-9]{{2,3}}[)）][ ]?|0(?:10|2[0-9]|[3-9][0-9]{{2}})[{_DASHES}])"
            rf"[2-9][0-9]{{2,3}}[ -]?[0-9]{{4}}(?:[{_DASHES}][0-9]{{1,5}})?",
            r"[48]00-(?:[0-9]{3}-[0-9]{4}|[0-9]{4}-[0-9]{3}|[0-9]{7})",
            # France: five pairs; Spain: three and three pairs
            r"0[1-9]([ .\u00a0-])[0-9]{2}(?:\3[0-9]{2}){3}",
            r"[6-9][0-9]{2}([ .-])[0-9]{2}(?:\4[0-9]{2}){2}",
            # Russia, Brazil, India
            r"8[ -]?\(?[3489][0-9]{2}\)?[ -]?[0-9]{3}[ -][0-9]{2}[ -]?[0-9]{2}",
            r"\([1-9]{2}\)[ ]?9?[0-9]{4}-[0-9]{4}",
            r"[6-9][0-9]{4} [0-9]{5}",
            # a trunk 0: Germany, Britain, Italy, Japan, Korea, Australia...
            r"(?:\(0[1-9][0-9]{1,4}\)[ ]?"
            rf"|(?:0[1-9](?=.[0-9]{{3}})|0[1-9][0-9]{{1,4}})(?:[ ]?[/{_DASHES}][ ]?|[ \u00a0]))"
            rf"[0-9]{{2,8}}(?:[ \u00a0{_DASHES}][0-9]{{1,6}}){{0,4}}",
        ]
    )
    + ")"
    + _END
)
# Without separators: mobile, or area code and landline
_CHINESE = re.compile(
    r"(?<![A-Za-z0-9_.+=#/-])(?:(?:86[ -]?)?"
    r"1(?:3[0-9]|4[5-9]|5[0-35-9]|6[2567]|7[0-8]|8[0-9]|9[0-35-9])[0-9]{8}"
    r"|0(?:10|2[0-9]|[3-9][0-9]{2})[2-9][0-9]{6,7})"
    r"(?![ ]?(?:字节|[元个人次美万亿比]))" + _END
)
_EXTENDED = re.compile(r"0[0-9]{2,3}-[2-9][0-9]{6,7}-[0-9]{1,5}")
# American postcodes (ZIP+4), and three-digit octal numbers in a row
_NO_NATIONAL = re.compile(r"0[0-9]{4}-[0-9]{4}|0[0-9]{2}( [0-9]{3}){1,3}")
_HAN = re.compile(f"[{HAN}]")
_TRUNK_DIGITS = (9, 12)

_WORD_BEFORE = re.compile(
    r"(?i)(?:\b(?:tele?ph?one?s?|tele?fono?|phone|mobile?|cell(?:phone|ular)?|tel|fax|telefax|"
    r"whatsapp|handy|mobil|mobilnummer|telefonnummer|rufnummer|durchwahl|hotline|contact|"
    r"t[ée]l(?:[ée]phone)?|portable|tel[ée]fono|m[óo]vil|celular|cellulare|telefone|"
    r"ring|call|text|sms|dial|anrufen|appele[rz]|ll[aá]m[ae]\w*|reach \w+|kontakt)"
    r"(?:[ .]?(?:no|nr|num|number|nummer|numéro|número|n°|us|me|him|her|back|now|at|on|unter|au|al|"
    r"is|ist|est|es|line|home|work|office|direct))*|手机号?码?|电话号?码?|电话|座机|热线|传真|"
    r"联系方式|致电|拨打|来电|微信|[☎📞📱℡])"
    r"[ \t.:：=#)）\"'>—–-]{0,5}(?P<sign>[+＋]?[(（]?)\Z"
)
WORD_CHARS = 32
_NUMBER = re.compile(
    r"[0-9][0-9 \u00a0()（）./\u2011\u2013-]{5,22}[0-9](?![0-9A-Za-z_]|[.:-][0-9])"
)
# Words before a number that is no phone number, whatever its shape.
_OTHER_NUMBER = re.compile(
    r"(?i)(?:\b(?:art(?:icle|ikel)?|part|teile?|order|bestell|item|serial|model|invoice|ref|lot|isbn|"
    r"issn|rechnungs?|kunden|auftrags?|sku|case|patent|version|commande|pedido|factura|zip|plz)"
    r"[ .:#-]{0,3}(?:nr|no|n°|num|number|nummer)?|订单号?|编号|型号|批号)[ .:：#=-]{0,3}\Z"
)
_DATE_LIKE = re.compile(
    r"(?:1[89]|20)[0-9]{2}[-/.][0-9]{1,2}[-/.][0-9]{1,2}.*|[0-9]{1,2}[./-][0-9]{1,2}[./-](?:19|20)[0-9]{2}.*"
    r"|(?:19|20)[0-9]{2}[ –/-]+(?:19|20)[0-9]{2}"
)


def find_phones(text: str, start: int, end: int, num_digits: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the phone numbers in a run of digits, the `+` and brackets included.

    The arguments are those of the finders in `privacy_numbers`.
    """
    if num_digits < MIN_DIGITS:
        return
    left = max(0, start - 3)
    run = text[left:end]
    if "+" in run or "＋" in run or "00" in run:
        for match in _INTERNATIONAL.finditer(text, left, end + 3):
            if _is_international(match.group()):
                yield match.span()
    for match in _SHAPES.finditer(text, max(0, start - 1), end + 3):
        before = text[max(0, match.start() - 24) : match.start()]
        if _is_national(match.group()) and not _OTHER_NUMBER.search(before):
            yield match.span()
    if num_digits >= 10:
        for match in _CHINESE.finditer(text, start, end + 3):
            around = text[max(0, match.start() - 20) : match.end() + 12]
            if _HAN.search(around):
                yield match.span()
    number = _NUMBER.match(text, start, end + 3)
    if not number or _count(number.group()) > MAX_DIGITS or _DATE_LIKE.fullmatch(number.group()):
        return
    if word := _WORD_BEFORE.search(text, max(0, start - WORD_CHARS), start):
        yield word.start("sign"), number.end()


def _is_international(number: str) -> bool:
    if _DECIMAL.fullmatch(number):
        return False
    digits = "".join(filter(str.isdigit, number.replace("(0)", "")))
    digits = digits.removeprefix("00") if "+" not in number and "＋" not in number else digits
    if not MIN_DIGITS <= len(digits) <= MAX_DIGITS or _UNASSIGNED.match(digits):
        return False
    for length in (1, 2, 3):
        if bounds := _NATIONAL_DIGITS.get(digits[:length]):
            return bounds[0] <= len(digits) - length <= bounds[1]
    return len(digits) >= 9


def _is_national(number: str) -> bool:
    if _NO_NATIONAL.fullmatch(number):
        return False
    if _EXTENDED.fullmatch(number):
        return True
    if number[0] == "0" or number.startswith("(0"):
        return _TRUNK_DIGITS[0] <= _count(number) <= _TRUNK_DIGITS[1]
    return True


def _count(number: str) -> int:
    return sum(map(str.isdigit, number))
