"""Messages to tokens, and which of the tokens are the assistant's.

The Jinja template of the tokenizer's folder is the only place where control tokens come from. All
other text is marked before rendering (a guard character after every `<`), so that a control token
spelt in it does not look like one afterwards; the marks are taken out before it is encoded.
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
from cygnet.text.tokenizer import IM_END, IM_START, SPECIAL_TOKENS, Tokenizer

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]

_CONTROL = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")")
_HEADER = "assistant\n"
_GUARDS = range(0xF0000, 0xFFFFE)


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """A conversation as tokens; the lists have one entry a token."""

    ids: list[int]
    is_label: list[bool]
    """True for what the assistant writes, the closing `<|im_end|>` included."""


def encode_chat(
    tokenizer: Tokenizer,
    messages: Messages,
    tools: Tools | None = None,
    add_generation_prompt: bool = False,
) -> EncodedChat:
    """Encode one conversation.

    Of text without control tokens, the ids are those of transformers' `apply_chat_template`.

    Args:
        tokenizer: its chat template is used.
        messages: in OpenAI's form, see `cygnet.messages`.
        tools: function signatures (JSON schema) that the assistant may call.
        add_generation_prompt: end with the opening of an assistant's turn.

    Raises:
        UserError: an unknown role, or messages that the template cannot render.
    """
    return encode_chats(tokenizer, [messages], [tools], add_generation_prompt)[0]


def encode_chats(
    tokenizer: Tokenizer,
    conversations: Sequence[Messages],
    tools: Sequence[Tools | None] | None = None,
    add_generation_prompt: bool = False,
) -> list[EncodedChat]:
    """Encode many conversations at once, each as `encode_chat` does; `tools` has one entry each."""
    parts = [
        _parts(tokenizer.chat_template, messages, own_tools, add_generation_prompt)
        for messages, own_tools in zip(
            conversations, tools or [None] * len(conversations), strict=True
        )
    ]
    texts = {text for conversation in parts for text in conversation[::2]} | {_HEADER}
    ordered = sorted(texts)
    ids_of = dict(zip(ordered, tokenizer.encode_batch(ordered), strict=True))
    return [_assemble(conversation, ids_of, tokenizer.special_ids) for conversation in parts]


def render_chat(
    tokenizer: Tokenizer,
    messages: Messages,
    tools: Tools | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """Return the conversation as the template spells it; for people to read, not to encode."""
    return "".join(_parts(tokenizer.chat_template, messages, tools, add_generation_prompt))


def _parts(
    template: str, messages: Messages, tools: Tools | None, add_generation_prompt: bool
) -> list[str]:
    """Return text, control token, text, control token, ..., text."""
    if not messages:
        raise UserError("messages: empty; give at least one message")
    for i, message in enumerate(messages):
        if message.get("role") not in ROLES:
            raise UserError(f"messages[{i}].role: unknown role {message.get('role')!r}")
    guard = _unused_character([messages, tools])
    try:
        rendered = _compiled(template).render(
            messages=_guarded(messages, guard),
            tools=_guarded(tools, guard) if tools else None,
            add_generation_prompt=add_generation_prompt,
        )
    except (TemplateError, TypeError) as error:
        raise UserError(f"messages: the chat template cannot render them ({error})") from error
    return [part.replace(guard, "") for part in _CONTROL.split(rendered)]


def _assemble(
    parts: list[str], ids_of: Mapping[str, list[int]], special_ids: Mapping[str, int]
) -> EncodedChat:
    ids: list[int] = []
    is_label: list[bool] = []
    opened = by_assistant = False
    for i, part in enumerate(parts):
        if i % 2:
            ids.append(special_ids[part])
            is_label.append(by_assistant)
            opened = part == IM_START
            by_assistant = by_assistant and part != IM_END
            continue
        new = ids_of[part]
        skipped = 0
        if opened and part.startswith(_HEADER):
            # The template trims the assistant's text, so no token holds header and text both.
            skipped, by_assistant = len(ids_of[_HEADER]), True
        ids += new
        is_label += [by_assistant and j >= skipped for j in range(len(new))]
        opened = False
    return EncodedChat(ids, is_label)


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


def _guarded(value: Any, guard: str) -> Any:
    """Put the guard character after every `<` of every string, keys of objects included."""
    if isinstance(value, str):
        return value.replace("<", "<" + guard)
    if isinstance(value, Mapping):
        return {_guarded(key, guard): _guarded(item, guard) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_guarded(item, guard) for item in value]
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
