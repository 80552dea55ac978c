"""What has been said so far, and who answers: a model of this machine, or a server's."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cygnet.errors import UserError
from cygnet.generate.sampling import Sampling
from cygnet.progress import say

MIN_ROOM_TOKENS = 16
"""An answer has at least this much of the context; old turns make room for half of it."""
THINK, END_THINK = "<think>", "</think>"
"""Control tokens around what a model thinks before it answers."""


class Piece(NamedTuple):
    """A part of an answer, as it comes."""

    text: str
    is_reasoning: bool = False
    """What the model thinks before it answers; it is no part of the conversation."""


Pieces = Generator[Piece, None, None]


class TooLong(UserError):
    """The messages do not fit the context."""


class Source(Protocol):
    """Who answers."""

    def answer(self, messages: Sequence[dict[str, Any]], sampling: Sampling) -> Pieces:
        """Yield the answer to messages (`cygnet.messages`) piece by piece; closed, it stops.

        Raises:
            TooLong: before the first piece, if the messages leave no room for an answer.
            UserError: it cannot be answered, or not to its end.
        """


class Conversation:
    """What has been said to a source of answers.

    Args:
        source: who answers.
        sampling: how answers are drawn.
        system: system prompt.
    """

    def __init__(self, source: Source, sampling: Sampling, system: str | None = None) -> None:
        self.source = source
        self.sampling = sampling
        self.system = system
        self.messages: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.messages = []

    def answer(self, text: str) -> Pieces:
        """Yield the answer piece by piece; afterwards it is part of the conversation.

        Of an answer that is not taken to its end, what was said so far is kept, and nothing of the
        turn if nothing was. Of a conversation that outgrows the context, the oldest turns are left
        out, which is said.

        Raises:
            UserError: the message alone fills the context, or the source fails.
        """
        asked, first, pieces = self._begun([*self.messages, {"role": "user", "content": text}])
        said: list[str] = []
        try:
            with closing(pieces):
                for piece in chain(first, pieces):
                    if not piece.is_reasoning:
                        said.append(piece.text)
                    yield piece
        finally:
            if said:
                self.messages = [*asked, {"role": "assistant", "content": "".join(said)}]

    def _begun(
        self, messages: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], list[Piece], Pieces]:
        """Return those of the messages that fit the context, and the answer to them, begun."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        kept = messages
        while True:
            pieces = self.source.answer([*system, *kept], self.sampling)
            try:
                first = [*islice(pieces, 1)]
            except TooLong:
                if len(kept) == 1:
                    raise
                kept = kept[2:]
                continue
            if left_out := len(messages) - len(kept):
                say(f"(the oldest {left_out} messages no longer fit the context and are left out)")
            return kept, first, pieces


class LocalModel:
    """A model in this process.

    Args:
        path: run or model folder.
        yarn_factor: stretch its context by so much (`cygnet.model.rope.yarn_config`).

    Raises:
        UserError: there is no model that Cygnet can run.
    """

    def __init__(self, path: Path, yarn_factor: float | None = None) -> None:
        from cygnet.export.huggingface import load_folder
        from cygnet.generate.engine import Engine

        model, self.tokenizer = load_folder(path, yarn_factor=yarn_factor)
        # One slot, which keeps the conversation: each turn reads only what is new.
        self.engine = Engine(model, self.tokenizer, num_slots=1)

    def answer(self, messages: Sequence[dict[str, Any]], sampling: Sampling) -> Pieces:
        """See `Source.answer`; an answer has half of the context's room, unless a first message
        takes it."""
        from cygnet.generate.request import Request
        from cygnet.text.chat import encode_chat

        prompt = encode_chat(self.tokenizer, messages, add_generation_prompt=True).ids
        context = self.engine.max_len
        is_first = not any(message["role"] == "assistant" for message in messages)
        room = min(sampling.max_new_tokens, MIN_ROOM_TOKENS if is_first else context // 2)
        if len(prompt) + room > context:
            raise TooLong(
                f"that is {len(prompt)} tokens, and the model's context holds {context}; say it "
                "shorter"
            )
        special = self.tokenizer.special_ids
        think, answer = special.get(THINK), special.get(END_THINK)
        marks = [token for token in prompt if token in (think, answer)]
        is_reasoning = bool(marks) and marks[-1] == think  # a template may open it
        begins = is_reasoning
        for event in self.engine.run(Request(prompt=prompt, sampling=sampling)):
            if think in event.token_ids or answer in event.token_ids:
                is_reasoning, begins = answer not in event.token_ids, True
            # Templates put empty lines around what is thought.
            if text := event.text.lstrip("\n") if begins else event.text:
                begins = False
                yield Piece(text, is_reasoning)
