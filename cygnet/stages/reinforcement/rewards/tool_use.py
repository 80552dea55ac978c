"""Did the model get its answer by way of a tool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cygnet.corpus.numbers import last_number
from cygnet.stages.reinforcement.rewards.fields import Row, needed

SHARE_CALL, SHARE_RESULT = 0.1, 0.4
"""Of the reward: a call that a tool could answer; a result that holds the right answer."""


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
    if isinstance(right, bool) or not isinstance(right, int | float):
        wanted = right if isinstance(right, str) else json.dumps(right)
        return wanted.casefold() in text.casefold()
    if isinstance(right, int):
        found = last_number(text)
        return found is not None and found[0] == right
    return f"{right:g}" in text.replace(",", "").split()
