"""Messages to tokens, and which of the tokens are the assistant's.

The Jinja template of the tokenizer's folder is the only place where control tokens come from. All
other text is marked before rendering (a guard character after every `<`, or what else a control
token begins with), so that a control token spelt in it does not look like one afterwards; the
marks are taken out before it is encoded.

Where an assistant's turn begins and ends is found by rendering a probe, so that templates of other
makers work as ours does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cygnet.errors import UserError
from cygnet.messages import ROLES
from cygnet.text.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]

_GUARDS = range(0xF0000, 0xFFFFE)


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """A conversation as tokens; the lists have one entry a token."""

    ids: list[int]
    is_label: list[bool]
    """True for what the assistant writes, the closing `<|im_end|>` included."""


@dataclass(frozen=True, slots=True)
class Turns:
    """How a template marks the assistant's turns.

    Control tokens and the texts between them, as in `_parts`.
    """

    opening: tuple[str, ...]
    """Control token, text, ..., control token, text: what a generation prompt adds."""
    end: str
    """The control token that closes a turn."""


def encode_chat(
    tokenizer: Tokenizer,
    messages: Messages,
    tools: Tools | None = None,
    add_generation_prompt: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> EncodedChat:
    """Encode one conversation.

    Of text without control tokens, the ids are those of transformers' `apply_chat_template`.

    Args:
        tokenizer: its chat template is used.
        messages: in OpenAI's form, see `cygnet.messages`.
        tools: function signatures (JSON schema) that the assistant may call.
        add_generation_prompt: end with the opening of an assistant's turn.
        variables: what else the template is told, such as Qwen3's `enable_thinking`.

    Raises:
        UserError: an unknown role, or messages that the template cannot render.
    """
    return encode_chats(tokenizer, [messages], [tools], add_generation_prompt, variables)[0]


def encode_chats(
    tokenizer: Tokenizer,
    conversations: Sequence[Messages],
    tools: Sequence[Tools | None] | None = None,
    add_generation_prompt: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> list[EncodedChat]:
    """Encode many conversations at once, each as `encode_chat` does; `tools` has one entry each."""
    parts = [
        _parts(tokenizer, messages, own_tools, add_generation_prompt, variables)
        for messages, own_tools in zip(
            conversations, tools or [None] * len(conversations), strict=True
        )
    ]
    ordered = sorted({text for conversation in parts for text in conversation[::2]})
    ids_of = dict(zip(ordered, tokenizer.encode_batch(ordered), strict=True))
    return [_assemble(tokenizer, conversation, ids_of) for conversation in parts]


def render_chat(
    tokenizer: Tokenizer,
    messages: Messages,
    tools: Tools | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """Return the conversation as the template spells it; for people to read, not to encode."""
    return "".join(_parts(tokenizer, messages, tools, add_generation_prompt))


@lru_cache(maxsize=8)
def find_turns(tokenizer: Tokenizer) -> Turns | None:
    """Return how the tokenizer's template marks the assistant's turns.

    None where it marks them with ordinary text, which a user could spell: labels cannot be told
    from it, and conversations are then no data for training.
    """
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    try:
        asked, prompt, whole = (
            _parts(tokenizer, messages, None, add_prompt)
            for messages, add_prompt in (
                ([question], False), ([question], True), ([question, answer], False)
            )
        )  # fmt: skip
    except UserError:
        return None
    before, opening = "".join(asked), "".join(prompt)
    closing = [i for i, part in enumerate(whole) if not i % 2 and part.endswith("b")]
    if not opening.startswith(before) or not closing or closing[-1] + 1 == len(whole):
        return None
    added = tokenizer.control_pattern.split(opening.removeprefix(before))
    return Turns(tuple(added[1:]), whole[closing[-1] + 1]) if len(added) > 1 else None


def _parts(
    tokenizer: Tokenizer,
    messages: Messages,
    tools: Tools | None,
    add_generation_prompt: bool,
    variables: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return text, control token, text, control token, ..., text."""
    if not tokenizer.chat_template:
        raise UserError(
            "messages: this model's tokenizer has no chat template; put a chat_template.jinja into "
            "its folder, or go on from plain text"
        )
    if not messages:
        raise UserError("messages: empty; give at least one message")
    for i, message in enumerate(messages):
        if message.get("role") not in ROLES:
            raise UserError(f"messages[{i}].role: unknown role {message.get('role')!r}")
    guard = _unused_character([messages, tools, variables])
    begins = tokenizer.control_beginning
    try:
        rendered = _compiled(tokenizer.chat_template).render(
            # What a request says stands first, so that it can take the place of nothing else.
            _guarded(variables or {}, begins, guard) | tokenizer.named_tokens,
            messages=_guarded(messages, begins, guard),
            tools=_guarded(tools, begins, guard) if tools else None,
            add_generation_prompt=add_generation_prompt,
        )
    except (TemplateError, TypeError) as error:
        raise UserError(f"messages: the chat template cannot render them ({error})") from error
    return [part.replace(guard, "") for part in tokenizer.control_pattern.split(rendered)]


def _assemble(
    tokenizer: Tokenizer, parts: list[str], ids_of: Mapping[str, list[int]]
) -> EncodedChat:
    turns = find_turns(tokenizer)
    ids: list[int] = []
    is_label: list[bool] = []
    by_assistant, header_part = False, -1
    for i, part in enumerate(parts):
        if i % 2:
            ids.append(tokenizer.special_ids[part])
            is_label.append(by_assistant)
            if turns and not by_assistant and _opens(parts, i, turns.opening):
                header_part = i + len(turns.opening) - 1
            by_assistant = by_assistant and turns is not None and part != turns.end
            continue
        new = ids_of[part]
        skipped = 0
        if turns and i == header_part:
            skipped, by_assistant = _num_tokens(tokenizer, new, turns.opening[-1]), True
        ids += new
        is_label += [by_assistant and j >= skipped for j in range(len(new))]
    return EncodedChat(ids, is_label)


def _opens(parts: Sequence[str], start: int, opening: Sequence[str]) -> bool:
    found = parts[start : start + len(opening)]
    return list(found[:-1]) == list(opening[:-1]) and found[-1].startswith(opening[-1])


def _num_tokens(tokenizer: Tokenizer, ids: Sequence[int], header: str) -> int:
    """Return how many tokens hold the header; one that holds text behind it too counts."""
    left, count = len(header.encode()), 0
    while left > 0:
        left -= len(tokenizer.token_bytes(ids[count]))
        count += 1
    return count


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    return environment.from_string(template)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _guarded(value: Any, begins: re.Pattern[str], guard: str) -> Any:
    """Put the guard behind each character of every string that a control token may begin with."""
    if isinstance(value, str):
        return begins.sub(rf"\1{guard}", value)
    if isinstance(value, Mapping):
        return {
            _guarded(key, begins, guard): _guarded(item, begins, guard)
            for key, item in value.items()
        }
    if isinstance(value, Sequence):
        return [_guarded(item, begins, guard) for item in value]
    return value


def _unused_character(value: Any) -> str:
    """Return a private-use character that occurs nowhere in the value."""
    used: set[str] = set()

    def collect(item: Any) -> None:
        if isinstance(item, str):
            used.update(set(item) if not item.isascii() else ())
        elif isinstance(item, Mapping):
            for key, inner in item.items():
                collect(key)
                collect(inner)
        elif isinstance(item, Sequence):
            for inner in item:
                collect(inner)

    collect(value)
    return next(chr(code) for code in _GUARDS if chr(code) not in used)
