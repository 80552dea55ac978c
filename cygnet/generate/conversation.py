"""What has been said so far, and who answers: a model of this machine, or a server's."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from cygnet.config import read_yaml
from cygnet.errors import UserError
from cygnet.generate.reading import Piece, Reader, opens_thinking
from cygnet.generate.sampling import Sampling
from cygnet.progress import say

MIN_ROOM_TOKENS = 16
"""An answer has at least this much of the context; old turns make room for half of it."""


Pieces = Generator[Piece, None, None]


class TooLong(UserError):
    """The messages do not fit the context."""


class Source(Protocol):
    """Who answers.

    Attributes:
        is_only_pretrained: it has not learnt to answer, and goes on from a message's text.
    """

    is_only_pretrained: bool

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
        turn if nothing was; what was thought is never kept. Of a conversation that outgrows the
        context, the oldest turns are left out, which is said.

        Raises:
            UserError: the message alone fills the context, or the source fails.
        """
        asked, first, pieces = self._begun([*self.messages, {"role": "user", "content": text}])
        said: list[str] = []
        try:
            with closing(pieces):
                for piece in chain(first, pieces):
                    said.append(piece.content)
                    yield piece
        finally:
            if any(said):
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
        from cygnet.export.huggingface import find_model, read_folder
        from cygnet.generate.engine import Engine

        folder = find_model(path)
        model, self.tokenizer = read_folder(folder, yarn_factor=yarn_factor)
        # One slot, which keeps the conversation: each turn reads only what is new.
        self.engine = Engine(model, self.tokenizer, num_slots=1)
        settings = folder.parent / "config.yaml"
        self.is_only_pretrained = (
            settings.exists() and read_yaml(settings).get("stage") == "pretrain"
        )

    def answer(self, messages: Sequence[dict[str, Any]], sampling: Sampling) -> Pieces:
        """See `Source.answer`.

        An answer has room for half of the context at least, unless a first message takes it.
        """
        from cygnet.generate.request import Request

        prompt = self._prompt(messages)
        context = self.engine.max_len
        is_first = not any(message["role"] == "assistant" for message in messages)
        room = min(sampling.max_new_tokens, MIN_ROOM_TOKENS if is_first else context // 2)
        if len(prompt) + room > context:
            raise TooLong(
                f"that is {len(prompt)} tokens, and the model's context holds {context}; say it "
                "shorter"
            )
        reader = Reader(opens_thinking(self.tokenizer, prompt))
        request = Request(prompt=prompt, sampling=sampling, mark_special=True)
        for event in self.engine.run(request):
            yield from reader.push(event.text)
        yield from reader.finish()

    def _prompt(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        from cygnet.text.chat import encode_chat

        if self.is_only_pretrained:
            return self.tokenizer.encode(messages[-1]["content"])
        return encode_chat(self.tokenizer, messages, add_generation_prompt=True).ids
