"""Did the model get its answer by way of a tool."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from cygnet.corpus.numbers import last_number
from cygnet.stages.reinforcement.rewards.fields import Row, needed

SHARE_CALL, SHARE_RESULT = 0.1, 0.4
"""Of the reward: a call that a tool could answer; a result that holds the right answer."""
_DECIMAL = re.compile(
    r"(?<![A-Za-z0-9_.])(?:(?<![)\]])[-−])?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][+-]?\d+)?(?![A-Za-z0-9_])"
)
_SAME_DIGITS = 6
"""As many digits of a broken float must be the same; the tools of our own write no more."""


def tool_use(answer: str, row: Row) -> float:
    """Return 1 if the last answer has `row["answer"]` and a tool gave it.

    0.1 for a call that a tool answered without an error, 0.5 where a tool's result holds the right
    answer. A right answer without a tool that gave it counts as none: it was guessed. With
    `row["tool"]`, only calls of that tool count.

    Reads the conversation in `row["messages"]`, which the judge puts there.

    Raises:
        KeyError: the row has no `answer`.
    """
    right = needed(row, "answer", "tool_use")
    results = _results(row.get("messages") or [], row.get("tool"))
    if not results:
        return 0.0
    if not any(_holds(result, right) for result in results):
        return SHARE_CALL
    return 1.0 if _holds(answer, right) else SHARE_CALL + SHARE_RESULT


def _results(messages: list[Mapping[str, Any]], tool: str | None) -> list[str]:
    """Return what tools answered, errors left out."""
    names = {
        call.get("id"): call.get("function", call).get("name")
        for message in messages
        for call in message.get("tool_calls") or []
    }
    return [
        str(message.get("content"))
        for message in messages
        if message.get("role") == "tool"
        and not str(message.get("content")).startswith("Error")
        and (tool is None or names.get(message.get("tool_call_id")) == tool)
    ]


def _holds(text: str, right: Any) -> bool:
    """Return whether a text ends with a number, or holds a text, that is the right one."""
    wanted = right if isinstance(right, str) else json.dumps(right)
    if isinstance(right, bool) or not _DECIMAL.fullmatch(wanted.strip()):
        return wanted.casefold() in text.casefold()
    number = _decimal(wanted.strip())
    is_whole = number == number.to_integral_value()
    found = _last_decimal(text, in_words=is_whole)
    if found is None or is_whole or not isinstance(right, float):
        return found == number
    return f"{float(found):.{_SAME_DIGITS}g}" == f"{right:.{_SAME_DIGITS}g}"


def _last_decimal(text: str, in_words: bool) -> Decimal | None:
    """Return the last number of a text, its decimals included; whole ones may stand in words."""
    matches = list(_DECIMAL.finditer(text))
    rest = text[matches[-1].end() :] if matches else text
    if in_words and (found := last_number(rest)) is not None:
        return Decimal(found[0])
    return _decimal(matches[-1][0]) if matches else None


def _decimal(written: str) -> Decimal:
    return Decimal(written.replace(",", "").replace("−", "-"))
