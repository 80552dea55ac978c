"""The text of an answer, parted as it comes into reasoning, content and tool calls.

The engine marks control tokens (`Request.mark_special`), so that a `<tool_call>` which a model
spells in ordinary letters, say because a user asked for it, is text and calls nothing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cygnet.generate.text import CONTROL_MARK
from cygnet.text.tokenizer import Tokenizer

THINK, THINK_END = "<think>", "</think>"
CALL, CALL_END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Call:
    """A function that the model calls."""

    id: str
    name: str
    arguments: str
    """JSON."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What came, in order: one of the three."""

    content: str = ""
    reasoning: str = ""
    call: Call | None = None


class Reader:
    """Reads one answer.

    Args:
        thinks: the prompt opened `<think>` already.
        reads_calls: there are tools; without, what stands between the tokens of a call is content.

    Attributes:
        num_calls: calls so far.
    """

    def __init__(self, thinks: bool = False, reads_calls: bool = False) -> None:
        self.num_calls = 0
        self._reads_calls = reads_calls
        self._part: Literal["content", "reasoning", "call"] = "reasoning" if thinks else "content"
        self._begins = thinks  # white space at the beginning of a part is left out
        self._space = ""  # white space that is part of the text only if more text follows
        self._held = ""  # the text of a call

    def push(self, text: str) -> list[Piece]:
        """Take in new text and return what is certain now."""
        pieces: list[Piece] = []
        # Marks stand before and behind each control token, which comes in one push.
        for index, part in enumerate(text.split(CONTROL_MARK)):
            pieces += self._control(part) if index % 2 else self._text(part)
        return pieces

    def finish(self) -> list[Piece]:
        """Return what was held back; the answer ends here."""
        if self._part == "call":
            return self._uncalled("")
        if self._part == "content" and self._space:
            return [Piece(content=self._space)]
        return []

    def _text(self, text: str) -> list[Piece]:
        if self._part == "call":
            self._held += text
            return []
        if self._begins:
            text = text.lstrip()
            self._begins = not text
        if not text:
            return []
        text = self._space + text
        self._space = ""
        if self._part == "reasoning" or self._reads_calls:
            certain = text.rstrip()
            text, self._space = certain, text[len(certain) :]
        if not text:
            return []
        return [Piece(reasoning=text) if self._part == "reasoning" else Piece(content=text)]

    def _control(self, token: str) -> list[Piece]:
        if self._part == "call":
            return self._called() if token == CALL_END else []
        if token == THINK and self._part == "content":
            self._enter("reasoning")
        elif token == THINK_END and self._part == "reasoning":
            self._enter("content")
        elif token == CALL and self._reads_calls:
            self._enter("call")
        return []

    def _enter(self, part: Literal["content", "reasoning", "call"]) -> None:
        self._part, self._begins, self._space, self._held = part, True, "", ""

    def _called(self) -> list[Piece]:
        try:
            values = json.loads(self._held)
            name, arguments = values["name"], values.get("arguments", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return self._uncalled(CALL_END)
        if not isinstance(name, str) or not isinstance(arguments, dict | str):
            return self._uncalled(CALL_END)
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        self.num_calls += 1
        self._enter("content")
        return [Piece(call=Call(f"call_{uuid.uuid4().hex[:24]}", name, arguments))]

    def _uncalled(self, end: str) -> list[Piece]:
        """Give a call that cannot be read as it was written, so that nothing is lost."""
        text = f"{CALL}{self._held}{end}"
        self._enter("content")
        return [Piece(content=text)]


def opens_thinking(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Return whether the template's opening of the answer has a `<think>` that is not closed."""
    think, end = tokenizer.special_ids.get(THINK), tokenizer.special_ids.get(THINK_END)
    last = next((token for token in reversed(prompt[-8:]) if token in (think, end)), None)
    return think is not None and last == think
