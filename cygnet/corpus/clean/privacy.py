"""Find personal data and secrets in a text, and mask them with typed placeholders.

What counts: anything shaped like an e-mail address (example.com too, Message-IDs too); phone
numbers; public IP addresses (not private, loopback or documentation ranges); the numbers and keys
of `privacy_numbers` and `privacy_keys`. Names and postal addresses are not looked for.

Cheap tests decide which detectors look at all: `@`, a run of digits, the beginnings of keys. The
detectors of numbers see only the surroundings of a run of digits, so that ordinary text costs
little more than one scan.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator

from cygnet.corpus.clean.privacy_keys import find_keys
from cygnet.corpus.clean.privacy_numbers import find_cards, find_ibans, find_national_ids
from cygnet.corpus.clean.privacy_phones import find_phones
from cygnet.errors import UserError, nearest

KINDS = {
    "key": "API keys, tokens, private keys, passwords given with their name",
    "email": "e-mail addresses",
    "iban": "international bank account numbers, with their check digits",
    "bank_card": "bank cards: prefix and length of a network, and the Luhn check",
    "national_id": (
        "US SSN, Chinese identity number, German Steuer-ID, French NIR, Spanish DNI and NIE, "
        "Italian codice fiscale, British NINO, Aadhaar, CPF; checked where they have a check digit"
    ),
    "ipv6": "public IPv6 addresses",
    "ipv4": "public IPv4 addresses",
    "phone": "phone numbers, international and national",
}
"""Every kind; where two claim the same characters, the one named first here has them."""

ALL = frozenset(KINDS)
AROUND = 512
"""Characters on either side of a placeholder that are searched again."""

# A run of digits as numbers are written: at least six digits, or the middle of a codice fiscale,
# or the four parts of an IPv4 address.
_DIGITS = re.compile(
    r"[0-9](?=[0-9A-Z ()./\u00a0\u2011\u2013（）-]{5})(?:"
    r"(?:[ ()./\u00a0\u2011\u2013（）-]{0,3}[0-9]){5,}"
    r"|[0-9][A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}"
    r"|[0-9]{0,2}(?:\.[0-9]{1,3}){3}"
    r")"
)
_DATE = re.compile(
    r"(?:1[5-9]|20)[0-9]{2}[-/.](?:0?[1-9]|1[0-2])[-/.](?:0?[1-9]|[12][0-9]|3[01])"
    r"|(?:0?[1-9]|[12][0-9]|3[01])[-/.](?:0?[1-9]|[12][0-9]|3[01])[-/.](?:(?:1[5-9]|20)[0-9]{2})"
    r"|(?:1[0-9]|20)[0-9]{2} ?[-/–] ?(?:1[0-9]|20)[0-9]{2}"
)

_NUMBERS: dict[str, Callable[[str, int, int, int], Iterator[tuple[int, int]]]] = {
    "iban": find_ibans,
    "bank_card": find_cards,
    "national_id": find_national_ids,
    "phone": find_phones,
}

# Chinese runs on into an address without a space, so of other scripts only Latin and Cyrillic.
_LETTERS = "A-Za-z0-9\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0400-\u04ff"
_LOCAL = re.compile(rf"(?<![{_LETTERS}_.+%@-])[{_LETTERS}_+%~&-][{_LETTERS}_.+%~&'-]{{0,63}}\Z")
_DOMAIN = re.compile(
    rf"(?:[{_LETTERS}](?:[{_LETTERS}_-]{{0,61}}[{_LETTERS}])?\.){{1,8}}"
    r"(?:xn--[a-z0-9-]{2,59}|[A-Za-z]{2,24}|рф)"
)
_FILE_SUFFIXES = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "gif",
        "webp",
        "svg",
        "avif",
        "ico",
        "css",
        "js",
        "mjs",
        "ts",
        "tsx",
        "jsx",
        "json",
        "html",
        "htm",
        "md",
        "txt",
        "zip",
        "gz",
        "tgz",
        "py",
        "java",
        "cpp",
        "exe",
        "dll",
        "so",
        "pdf",
        "service",
        "socket",
        "timer",
        "target",
        "conf",
    ]
)

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![\w.§-]){_OCTET}(?:\.{_OCTET}){{3}}(?![\w-]|\.[0-9])")
_VERSION_BEFORE = re.compile(
    r"(?i)(?:\b(?:v|ver|version|release|build|firmware|driver|section|sec|chapter|clause|article|"
    r"figure|table|appendix|part|no|nr|kapitel|abschnitt|ziffer|absatz|fassung|apartado|art|"
    r"requirement|theorem|lemma|update|upgraded?|revision)\b\.?|版本|版|第|节|章|条|§|[a-z]/|==|>=|"
    r"<=|~=)[ :=(]*\Z"
)
_NETWORK_NEAR = re.compile(
    r"(?i)\b(?:ip|ipv4|host|server|client|dns|nameserver|resolver|addr|address|ping|connect|"
    r"connected|connection|peer|gateway|router|remote|proxy|ssh|login|src|dst|traceroute|"
    r"serveur|adresse|servidor|dirección)\b|地址|服务器"
)
_SMALL_OCTET = 99

_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV6 = re.compile(
    r"[23][0-9A-Fa-f]{3}(?<![\w:.]....)(?:::?[0-9A-Fa-f]{1,4}){1,7}(?:::)?(?![\w:]|\.[0-9])"
)


def find(text: str, kinds: Collection[str] = ALL) -> list[tuple[str, int, int]]:
    """Return what is found as (kind, start, end), by start; no two overlap.

    Args:
        text: any text.
        kinds: names from `KINDS`.

    Raises:
        UserError: a kind that `KINDS` does not have.
    """
    if not ALL.issuperset(kinds):
        unknown = next(kind for kind in kinds if kind not in ALL)
        raise UserError(
            f"privacy: no kind of personal data is named {unknown!r}{nearest(unknown, KINDS)}; "
            f"choose from {', '.join(KINDS)}"
        )
    spans: list[tuple[str, int, int]] = []
    if "email" in kinds and "@" in text:
        spans += [("email", *span) for span in _find_emails(text)]
    if "key" in kinds:
        spans += [("key", *span) for span in find_keys(text)]
    if "ipv6" in kinds and _COLONS.search(text):
        spans += [("ipv6", *span) for span in _find_ipv6(text)]
    numbers = [kind for kind in _NUMBERS if kind in kinds]
    if numbers or "ipv4" in kinds:
        spans += _find_in_digits(text, numbers, "ipv4" in kinds)
    return _without_overlaps(spans) if spans else spans


def mask(text: str, kinds: Collection[str] = ALL) -> tuple[str, dict[str, int]]:
    """Return the text with `[EMAIL]`, `[PHONE]`... in place of what `find` finds, and the counts.

    A text in which nothing is found comes back as it is, the same object. What stands within
    `AROUND` of something masked is searched again, so `mask(mask(x)) == mask(x)`.

    Raises:
        UserError: a kind that `KINDS` does not have.
    """
    counts: Counter[str] = Counter()
    spans = find(text, kinds)
    while spans:
        parts, done, length = [], 0, 0
        windows: list[tuple[int, int]] = []
        for kind, start, end in spans:
            placeholder = f"[{kind.upper()}]"
            parts += [text[done:start], placeholder]
            length += start - done + len(placeholder)
            windows.append((length - len(placeholder) - AROUND, length + AROUND))
            done = end
            counts[kind] += 1
        text = "".join([*parts, text[done:]])
        # What is masked changes what stands around it, and nothing else.
        seen = [text[max(start, 0) : end] for start, end in _joined(windows)]
        spans = find(text, kinds) if any(find(window, kinds) for window in seen) else []
    return text, dict(counts)


def _joined(windows: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return sorted windows with those that overlap made one."""
    joined: list[tuple[int, int]] = []
    for start, end in windows:
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return joined


def _without_overlaps(spans: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    order = {kind: number for number, kind in enumerate(KINDS)}
    kept: list[tuple[str, int, int]] = []
    end_of_last = -1
    # Of spans that run into each other, a chain at a time, the kinds named first come first.
    for chain in _chains(sorted(set(spans), key=lambda span: span[1:])):
        taken: list[tuple[str, int, int]] = []
        for span in sorted(chain, key=lambda span: (order[span[0]], span[1], -span[2])):
            if all(span[2] <= start or end <= span[1] for _, start, end in taken):
                taken.append(span)
        kept += sorted(taken, key=lambda span: span[1])
        end_of_last = max(end_of_last, kept[-1][2])
    return kept


def _chains(spans: list[tuple[str, int, int]]) -> Iterator[list[tuple[str, int, int]]]:
    chain: list[tuple[str, int, int]] = []
    end = -1
    for span in spans:
        if chain and span[1] >= end:
            yield chain
            chain = []
        chain.append(span)
        end = max(end, span[2])
    if chain:
        yield chain


def _find_in_digits(text: str, kinds: list[str], ipv4: bool) -> Iterator[tuple[str, int, int]]:
    for run in _DIGITS.finditer(text):
        start, end = run.span()
        if _DATE.fullmatch(text, start, end):
            continue
        num_digits = sum(map(str.isdigit, run.group()))
        for kind in kinds:
            for span in _NUMBERS[kind](text, start, end, num_digits):
                yield kind, *span
        if ipv4 and run.group().count(".") > 2:
            for span in _find_ipv4(text, start, end):
                yield "ipv4", *span


def _find_emails(text: str) -> Iterator[tuple[int, int]]:
    at = text.find("@")
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1)
        local = _LOCAL.search(text, max(0, at - 65), at) if domain else None
        if domain and local and _is_address(local.group(), domain, text):
            yield local.start(), domain.end()
        at = text.find("@", at + 1)


def _is_address(local: str, domain: re.Match[str], text: str) -> bool:
    if local.endswith(".") or ".." in local:
        return False
    if domain.group().rsplit(".", 1)[1].lower() in _FILE_SUFFIXES:
        return False
    following = text[domain.end() : domain.end() + 1]
    return following != "@" and not (local == "git" and following in (":", "/"))


def _find_ipv4(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for match in _IPV4.finditer(text, start, end + 2):
        octets = [int(part) for part in match.group().split(".")]
        before = text[max(0, match.start() - 24) : match.start()]
        address = ipaddress.IPv4Address(match.group())
        if _VERSION_BEFORE.search(before) or address.is_multicast or not address.is_global:
            continue
        # 1.2.3.4 may be a section or a version: only its surroundings make it an address.
        near = before + text[match.end() : match.end() + 16]
        if max(octets) <= _SMALL_OCTET and not _NETWORK_NEAR.search(near):
            continue
        yield match.span()


def _find_ipv6(text: str) -> Iterator[tuple[int, int]]:
    # All public addresses lie in 2000::/3, so they begin with 2 or 3 and have four digits there.
    for match in _IPV6.finditer(text):
        try:
            address = ipaddress.IPv6Address(match.group())
        except ipaddress.AddressValueError:
            continue
        if address.is_global:
            yield match.span()
