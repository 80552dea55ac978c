"""Conversations: the shapes that data sets keep them in, and the one shape that Cygnet works with.

A message is OpenAI's: `role` (system, user, assistant, tool) and `content`, and where there is
cause `reasoning_content`, `tool_calls`, `tool_call_id`, `name`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from cygnet.errors import UserError, nearest

Message: TypeAlias = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")

_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function": "tool",
    "observation": "tool",
    "developer": "system",
}
_CARRIED = ("reasoning_content", "tool_calls", "tool_call_id", "name")
_LISTS = ("messages", "conversations", "conversation")
_QUESTIONS = ("instruction", "prompt", "question", "query")
_ANSWERS = ("output", "response", "answer", "completion")


def parse_messages(row: Mapping[str, Any]) -> list[Message] | None:
    """Return the conversation in a row of a data set, or None if the row is none.

    Recognised are OpenAI's `messages`, ShareGPT's `conversations` (`from`, `value`), Alpaca
    (`instruction`, `input`, `output`), Dolly (`context`, `response`) and pairs such as `prompt`
    and `response`; each also with `system` beside it, those without a list with `history`. An
    assistant's content that opens with `<think>` is parted into `reasoning_content` and `content`.
    The result is not checked: see `validate`.

    Raises:
        UserError: a message holds content that is no text.
    """
    for name in _LISTS:
        turns = row.get(name)
        if isinstance(turns, list) and all(_is_turn(turn) for turn in turns):
            messages = [_message(turn, f"{name}[{i}]") for i, turn in enumerate(turns)]
            has_own = bool(messages) and messages[0]["role"] == "system"
            return messages if has_own else [*_exchange(row.get("system"), []), *messages]
    question, answer = _first_text(row, _QUESTIONS), _first_text(row, _ANSWERS)
    if question is None or answer is None:
        return None
    if "instruction" in row:
        beside = (row.get(name) for name in ("input", "context"))
        parts = [question, *(part for part in beside if isinstance(part, str))]
        question = "\n\n".join(part for part in parts if part.strip())
    return _exchange(row.get("system"), [*_history(row), (question, answer)])


def parse_tools(row: Mapping[str, Any]) -> list[Any] | None:
    """Return the function signatures beside a conversation, or None if there are none.

    Recognised are a list under `tools` and, as ShareGPT has it, its JSON in a string.

    Raises:
        UserError: `tools` is something else.
    """
    tools = row.get("tools") or None
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) or None
        except json.JSONDecodeError as error:
            raise UserError(f"tools: text that is not JSON ({error.msg})") from error
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UserError("tools: a list of function signatures (JSON objects) wanted")
    return tools


def why_no_conversation(row: Mapping[str, Any]) -> str | None:
    """Say what is wrong with a row that has a conversation's field and yet is none, or return None.

    For rows that `parse_messages` does not know and that have no other use.
    """
    for name in _LISTS:
        turns = row.get(name)
        if turns is None:
            continue
        wanted = 'a list such as [{"role": "user", "content": "..."}, ...] is wanted'
        if not isinstance(turns, list):
            return f"{name}: {type(turns).__name__} given, {wanted}"
        wrong = next((i for i, turn in enumerate(turns) if not _is_turn(turn)), None)
        if wrong is not None:
            return f"{name}[{wrong}]: no role; {wanted}"
    if "chosen" in row and "rejected" in row:
        return "a preference pair, which cygnet dpo and cygnet reward learn from"
    given = [
        next((name for name in names if name in row), None) for names in (_QUESTIONS, _ANSWERS)
    ]
    if None in given:
        return None
    wrong_name = next((name for name in given if not isinstance(row[str(name)], str)), None)
    return wrong_name and f"{wrong_name}: {type(row[wrong_name]).__name__} given, a text is wanted"


def validate(messages: Sequence[Mapping[str, Any]], needs_answer: bool = True) -> None:
    """Check that the messages are a conversation that the chat template can render.

    Args:
        messages: in OpenAI's form.
        needs_answer: false for a prompt, which may have no assistant yet.

    Raises:
        UserError: names the message by its index, the field, and what to do.
    """
    if not messages:
        raise UserError("messages: empty; give at least one message")
    previous = ""
    for i, message in enumerate(messages):
        role, where = message.get("role"), f"messages[{i}]"
        if role not in ROLES:
            raise UserError(
                f"{where}.role: unknown role {role!r}{nearest(str(role), ROLES)}; "
                f"use one of {', '.join(ROLES)}"
            )
        if role == "system" and i:
            raise UserError(f"{where}.role: a system message stands first or nowhere; move it")
        if role == "assistant" and previous == "assistant":
            raise UserError(f"{where}.role: two assistant messages in a row; join or drop one")
        if role == "tool" and not (
            previous == "tool" or (previous == "assistant" and messages[i - 1].get("tool_calls"))
        ):
            raise UserError(f"{where}.role: a tool message must follow the call that it answers")
        _validate_content(message, where, needs_answer)
        previous = str(role)
    if needs_answer and not any(message["role"] == "assistant" for message in messages):
        raise UserError("messages: no assistant message; there is nothing to learn from")


def _validate_content(message: Mapping[str, Any], where: str, needs_answer: bool) -> None:
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        raise UserError(f"{where}.content: {type(content).__name__} given, text wanted")
    reasoning = message.get("reasoning_content")
    if reasoning is not None and not isinstance(reasoning, str):
        raise UserError(f"{where}.reasoning_content: {type(reasoning).__name__} given, text wanted")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise UserError(f"{where}.tool_calls: {type(calls).__name__} given, a list wanted")
    for i, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UserError(f"{where}.tool_calls[{i}]: no function name; give name and arguments")
        if "arguments" not in function:
            raise UserError(f"{where}.tool_calls[{i}]: no arguments; give an object, if empty")
    # A model may have had nothing to say: that is history, and nothing to learn from.
    is_empty = message["role"] == "assistant" and not calls and not (content or "").strip()
    if needs_answer and is_empty:
        raise UserError(f"{where}.content: empty answer; fill it or drop the conversation")
    if message["role"] == "user" and content is None:
        raise UserError(f"{where}.content: missing; give the user's text")


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, Mapping) and ("role" in turn or "from" in turn)


def _message(turn: Mapping[str, Any], where: str) -> Message:
    role = turn.get("role", turn.get("from"))
    if isinstance(role, str):
        role = _ALIASES.get(role.strip().lower(), role.strip().lower())
    content = _text(turn.get("content", turn.get("value")), where)
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": [_call(content, where)]}
    message: Message = {"role": role, "content": content}
    message |= {name: turn[name] for name in _CARRIED if turn.get(name)}
    if role == "assistant" and turn.get("weight") == 0:
        message["weight"] = 0  # OpenAI's word for an answer that is not to be learnt
    if role == "assistant" and isinstance(turn.get("function_call"), Mapping):
        # As OpenAI had it before there were several calls.
        message["tool_calls"] = [{"type": "function", "function": dict(turn["function_call"])}]
    if role == "assistant" and not message.get("reasoning_content"):
        message |= _part_reasoning(content)
    return message


def _text(content: Any, where: str) -> str:
    """Return content as text: a string as it is, a list of text parts joined, None as nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "".join(texts)
    raise UserError(f"{where}.content: holds {type(content).__name__}; only text can be read")


def _call(content: str, where: str) -> dict[str, Any]:
    try:
        call = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}.value: a function call that is not JSON ({error.msg})") from error
    return {"type": "function", "function": call}


def _part_reasoning(content: str) -> Message:
    opened = content.lstrip()
    if not opened.startswith("<think>") or "</think>" not in opened:
        return {}
    reasoning, _, answer = opened.removeprefix("<think>").partition("</think>")
    parted: Message = {"content": answer.strip()}
    if reasoning.strip():
        parted["reasoning_content"] = reasoning.strip()
    return parted


def _history(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    history = row.get("history")
    return [
        (str(turn[0]), str(turn[1]))
        for turn in (history if isinstance(history, list) else [])
        if isinstance(turn, Sequence) and len(turn) == 2
    ]


def _exchange(system: Any, turns: Sequence[tuple[str, str]]) -> list[Message]:
    messages: list[Message] = []
    if isinstance(system, str) and system.strip():
        messages.append({"role": "system", "content": system})
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer} | _part_reasoning(answer))
    return messages


def _first_text(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((row[name] for name in names if isinstance(row.get(name), str)), None)
