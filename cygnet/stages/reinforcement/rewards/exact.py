"""Answers that are right or wrong: numbers, letters, JSON."""

from __future__ import annotations

import json
import re
from typing import Any

from cygnet.corpus.numbers import last_number, numbers_in
from cygnet.errors import require
from cygnet.stages.reinforcement.rewards.fields import Row, needed

_TERM = r"\d{1,15}(?:,\d{3})*"
_SUM = re.compile(
    r"(?<![\d.)+\-*/×])(?<!\d,)(?<![+\-*/×] )"  # not in the middle of another expression
    rf"(?P<terms>{_TERM}(?:\s*\+\s*{_TERM})+)\s*=\s*(?P<total>{_TERM})"
    r"(?!\d|\.\d|\s*[+\-*/×])"
)
_LETTERS = re.compile(r"[^\W\d_]")
RIGHT_NUMBER_OTHER_SCRIPT = 0.5
SHARE_LETTERS = 0.2
SHARE_JSON, SHARE_VALID, SHARE_FIELDS = 0.1, 0.3, 0.2


def arithmetic(answer: str, row: Row) -> float:
    """Return 1 if the answer's last number is `row["answer"]`, written as `row["script"]` says.

    `script` is `digits`, `words` or `chinese`; without it any will do, and a right number written
    otherwise gives 0.5. A right number is worth nothing beside working that contradicts it: a sum
    that is false ("4+6=9"), or another number in digits at the end of what follows the last sum.
    Such an answer is right by chance, and learning from it spoils the working.

    Raises:
        KeyError: the row has no `answer`.
    """
    right = int(needed(row, "answer", "arithmetic"))
    found = last_number(answer)
    if found is None or found[0] != right or _contradicts(answer, right):
        return 0.0
    script = found[1]
    return 1.0 if row.get("script", script) == script else RIGHT_NUMBER_OTHER_SCRIPT


def _contradicts(answer: str, right: int) -> bool:
    """Return whether a sum of an answer is false, or the last digits behind the sums are another
    number."""
    end = len(answer)
    for stated in _SUM.finditer(answer):
        terms = stated["terms"].replace(",", "").split("+")
        if sum(map(int, terms)) != int(stated["total"].replace(",", "")):
            return True
        end = stated.end()
    behind = [number for number, script in numbers_in(answer[end:]) if script == "digits"]
    return bool(behind) and behind[-1] != right


def spelling(answer: str, row: Row) -> float:
    """Return whether the answer is right about the letters of a word.

    `row["answer"]` is a number (how often a letter occurs: as `arithmetic`), or the letters as
    text, such as `s-w-a-n`: then the last line of the answer must have these letters, one by one;
    a wrong line gives up to 0.2, for the letters that are right at their places.

    Raises:
        KeyError: the row has no `answer`.
    """
    right = needed(row, "answer", "spelling")
    if isinstance(right, int):
        return arithmetic(answer, row)
    lines = answer.strip().splitlines()
    letters = _LETTERS.findall(lines[-1].lower()) if lines else []
    wanted = _LETTERS.findall(str(right).lower())
    if letters == wanted:
        return 1.0
    same = sum(a == b for a, b in zip(letters, wanted, strict=False))
    return SHARE_LETTERS * same / max(len(letters), len(wanted), 1)


def json_schema(answer: str, row: Row) -> float:
    """Return from 0 to 1 how far the answer is JSON that `row["schema"]` allows.

    0.1 for JSON, 0.4 for valid JSON. Where the row has `answer`, valid JSON that equals it gives 1,
    and each field that does a share of 0.2; without `answer` valid JSON gives 1.

    Raises:
        KeyError: the row has no `schema`.
        ValueError: the schema is none.
    """
    schema = needed(row, "schema", "json_schema")
    value, is_json = _parsed(answer)
    if not is_json:
        return 0.0
    library = require("jsonschema_rs", "rl")
    reward = SHARE_JSON + SHARE_VALID * library.is_valid(schema, value)
    if "answer" not in row:
        return 1.0 if reward > SHARE_JSON else reward
    right = row["answer"]
    if value == right and reward > SHARE_JSON:
        return 1.0
    if isinstance(value, dict) and isinstance(right, dict) and right:
        same = sum(name in value and value[name] == right[name] for name in right)
        reward += SHARE_FIELDS * same / len(right)
    return reward


def _parsed(answer: str) -> tuple[Any, bool]:
    text = answer.strip()
    if text.startswith("```"):
        text = text.strip("`").removeprefix("json").strip()
    try:
        return json.loads(text), True
    except (ValueError, RecursionError):
        return None, False
