"""Keys, tokens and passwords: by the beginnings that their issuers gave them, or by their name."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

MIN_ENTROPY_BITS = 2.5
"""A character, over the characters of a value that stands behind `password=` or the like."""
MIN_VALUE, MAX_VALUE = 6, 200


def _known(mark: str, rest: str, end: str = "(?![A-Za-z0-9_-])") -> tuple[str, re.Pattern[str]]:
    # The mark comes first, the look behind it after: so the search is for a plain string.
    mark_pattern = re.escape(mark)
    return mark, re.compile(f"{mark_pattern}(?<![A-Za-z0-9_]{mark_pattern}){rest}{end}")


# What a text must hold, and the pattern that begins with it.
_KNOWN = [
    _known("AKIA", "[A-Z2-7]{16}"),  # Amazon
    _known("ASIA", "[A-Z2-7]{16}"),
    *(_known(f"gh{kind}_", "[A-Za-z0-9]{36,251}") for kind in "pousr"),  # GitHub
    _known("github_pat_", "[A-Za-z0-9_]{60,90}"),
    _known("glpat-", "[A-Za-z0-9_-]{20,200}"),  # GitLab
    _known("AIza", "[A-Za-z0-9_-]{35}"),  # Google
    _known("xox", "[abeoprs]-[A-Za-z0-9-]{20,200}"),  # Slack
    _known("xapp-", "[A-Za-z0-9-]{20,200}"),
    _known("hooks.slack.com/services/", r"[A-Z0-9/]{18,60}/\w{20,60}"),
    _known(
        "sk-", "(?=[A-Za-z_-]{0,64}[0-9])[A-Za-z0-9_-]{20,200}"
    ),  # OpenAI and those who followed
    *(
        _known(f"{kind}k_{mode}_", "[A-Za-z0-9]{16,200}")
        for kind in "srp"
        for mode in ("live", "test")
    ),
    _known("hf_", "[A-Za-z]{30,40}"),  # Hugging Face
    _known("npm_", "[A-Za-z0-9]{36}"),
    _known("pypi-", "[A-Za-z0-9_-]{50,400}"),
    _known("SG.", r"[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),  # SendGrid
    _known("eyJ", r"[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,8000}\.[A-Za-z0-9_-]{8,2000}"),  # JWT
    _known(
        "-----BEGIN ",
        r"(?:[A-Z]+ ){0,3}PRIVATE KEY-----(?:(?!-----)[\s\S]){1,20000}"
        r"-----END (?:[A-Z]+ ){0,3}PRIVATE KEY-----",
        "",
    ),
]
_BEARER = re.compile(
    r"earer (?P<value>(?=[A-Za-z._~+/-]{0,64}[0-9])[A-Za-z0-9._~+/-]{16,2000}={0,2})"
)
# All but a few of them hold a long word behind one of the signs that part their beginnings.
_LONG_WORD = re.compile(r"[_/-][A-Za-z0-9][A-Za-z0-9_-]{15}")
_MARK = re.compile("|".join(re.escape(mark) for mark, _ in _KNOWN))
_MARK_CHARS = 32
_WITHOUT_SIGN = ("AKIA", "ASIA", "AIza", ".eyJ", "SG.", "PRIVATE KEY-----")

_URL_PASSWORD = re.compile(r"://[^\s:/@]{1,64}:(?P<value>[^\s:/@\[\]<>]{4,64})(?=@)")

# A value that could be a secret behind a sign or, where a text speaks of passwords, behind "is".
_VALUE = (
    r"(?P<quote>[\"'`“]?)(?P<value>(?=[^\s\"'`“”<>\[\]{}，。；、]{0,199}[0-9!@#$%^&*?+~])"
    r"[^\s\"'`“”<>\[\]{}，。；、]{6,200})"
)
_ASSIGNED = re.compile(r"[=:：]>?\s{0,3}" + _VALUE)
_SPOKEN_OF = ("assw", "de passe", "contraseña", "clave es", "密码", "口令")
_SPOKEN = re.compile(r"\s(?:is|ist|lautet|est|es|IS)\s{1,2}:?|[是为]\s?")
_SPOKEN_CHARS = 32
_SPOKEN_VALUE = re.compile(_VALUE)
_NAME = re.compile(
    r"(?i)(?:password|passwd|passwort|passphrase|passcode|pwd|secret|token|api[_-]?key"
    r"|access[_-]?key|mot de passe|contraseña|clave|密码|口令|密钥)"
    r"(?:[_-]?[a-z0-9]{1,12}){0,3}[\"']?\s{0,3}:?\Z"
)
_NEXT_FIELD = re.compile(r";|&[A-Za-z_.-]+=")
_NAME_PARTS = ("pass", "key", "token", "secret", "pwd", "clave", "contraseña", "密", "口令")
_NAME_CHARS = 48
_STAND_INS = re.compile(
    r"(?i)(?:pass(?:wor[dt]|wd)?$|secret$|token$|x{4,}|\*{3,}|\.{3}|your|change.?me|example|"
    r"placeholder|redacted|dummy|none|null|true|false|undefined|env[.:(]|process\.|self\.|this\.|"
    r"config\.|os\.|https?:|file:|\$|%|@|/)"
)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z_0-9]*(?:(?:\.|->|::)[A-Za-z_][A-Za-z_0-9]*)+")


def find_keys(text: str) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of keys and tokens; of `password=...`, the value alone."""
    if _may_hold_known(text):
        for mark, pattern in _KNOWN:
            if mark in text:
                for match in pattern.finditer(text):
                    yield match.span()
    for match in _BEARER.finditer(text):
        yield match.span("value")
    if "@" in text and "://" in text:
        for match in _URL_PASSWORD.finditer(text):
            if not _STAND_INS.match(match["value"]):
                yield match.span("value")
    for match in _ASSIGNED.finditer(text):
        yield from _named(match, match.start(), spoken=False)
    for mark in _SPOKEN_OF[:1] if text.isascii() else _SPOKEN_OF:
        at = text.find(mark)
        while at >= 0:
            verb = _SPOKEN.search(text, at, at + _SPOKEN_CHARS)
            if verb and (value := _SPOKEN_VALUE.match(text, verb.end())):
                yield from _named(value, verb.start(), spoken=True)
            at = text.find(mark, at + 1)


def _may_hold_known(text: str) -> bool:
    for mark in _WITHOUT_SIGN:
        if mark in text:
            return True
    for match in _LONG_WORD.finditer(text):
        if _MARK.search(text, max(0, match.start() - _MARK_CHARS), match.end()):
            return True
    return False


def _named(match: re.Match[str], name_end: int, spoken: bool) -> Iterator[tuple[int, int]]:
    text = match.string
    before = text[max(0, name_end - _NAME_CHARS) : name_end]
    lower = before.lower()
    if any(part in lower for part in _NAME_PARTS) and _NAME.search(before):
        start, end = match.span("value")
        if not match["quote"]:
            value = _NEXT_FIELD.split(match["value"], maxsplit=1)[0]
            end = start + len(value.rstrip(".,;:!?)）"))
        following = text[match.end() : match.end() + 1]
        if _is_secret(text[start:end], bool(match["quote"]), spoken, following):
            yield start, end


def _is_secret(value: str, quoted: bool, spoken: bool, following: str) -> bool:
    if len(value) < MIN_VALUE or "(" in value or following in ("(", "[", "{", "<"):
        return False
    if _STAND_INS.match(value) or _IDENTIFIER.fullmatch(value) or entropy(value) < MIN_ENTROPY_BITS:
        return False
    has_digit = any(map(str.isdigit, value))
    has_letter = re.search("[A-Za-z]", value) is not None
    if not has_digit:
        return quoted and has_letter and not re.sub(r"[_.:/-]", "", value).isalpha()
    return has_letter or quoted or spoken


def entropy(text: str) -> float:
    """Return Shannon's entropy of the characters of a text, in bits a character."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)
