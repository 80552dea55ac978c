"""`cygnet chat`: talk to a model in the terminal, or through a pipe."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from cygnet.config import read_yaml
from cygnet.errors import UserError, nearest, require
from cygnet.generate.sampling import Sampling
from cygnet.progress import say

HELP = """\
/reset            begin a new conversation
/system TEXT      set the system prompt and begin anew; without TEXT, take it away
/sampling         show how answers are drawn; `/sampling temperature=0.5 top_p=0.9` changes it
/help             this list
/quit             leave (also Ctrl-D)
Ctrl-C stops an answer. A line that ends with \\ goes on in the next."""
MIN_ROOM_TOKENS = 16
"""An answer has at least this much of the context; old turns make room for half of it."""
_KINDS: dict[str, type] = {
    "temperature": float, "top_p": float, "top_k": int, "min_p": float,
    "repetition_penalty": float, "max_new_tokens": int, "seed": int,
}  # fmt: skip
"""What `/sampling` shows and changes."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """How to talk to a model."""

    model: tyro.conf.Positional[Path]
    """Run folder or model folder; of a whole run, the last stage's model is taken."""
    prompt: str | None = None
    """Answer this and stop."""
    system: str | None = None
    """System prompt."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(
        temperature=0.7, top_p=0.9, seed=None
    )


def chat(config: ChatConfig) -> None:
    """Answer one prompt, what comes through a pipe, or a person at the terminal.

    Raises:
        UserError: there is no model, or a setting is out of its range.
    """
    conversation = Conversation(config.model, config.sampling, config.system)
    if config.prompt is not None or not sys.stdin.isatty():
        text = config.prompt if config.prompt is not None else sys.stdin.read()
        if not text.strip():
            raise UserError("nothing to answer: give --prompt TEXT, or some text on standard input")
        for piece in conversation.answer(text.strip()):
            print(printable(piece), end="", flush=True)
        print()
        return
    say(f"{config.model}: /help for commands, Ctrl-D to leave")
    if _only_pretrained(config.model):
        say("this model was pretrained alone: it goes on from a text, and has not learnt to answer")
    _talk(conversation, _line_reader())


def _only_pretrained(path: Path) -> bool:
    from cygnet.export.huggingface import find_model

    settings = find_model(path).parent / "config.yaml"
    return settings.exists() and read_yaml(settings).get("stage") == "pretrain"


class Conversation:
    """A model, and what has been said so far.

    Args:
        path: run or model folder.
        sampling: how answers are drawn.
        system: system prompt.
    """

    def __init__(self, path: Path, sampling: Sampling, system: str | None = None) -> None:
        from cygnet.export.huggingface import load_folder
        from cygnet.generate.engine import Engine

        model, self.tokenizer = load_folder(path)
        # One slot, which keeps the conversation: each turn reads only what is new.
        self.engine = Engine(model, self.tokenizer, num_slots=1)
        self.sampling = sampling
        self.system = system
        self.messages: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.messages = []

    def answer(self, text: str) -> Iterator[str]:
        """Yield the answer piece by piece; afterwards it is part of the conversation.

        Of an answer that is not taken to its end, what was said so far is kept, and nothing of the
        turn if nothing was. Of a conversation that outgrows the context, the oldest turns are left
        out, which is said.

        Raises:
            UserError: the message alone fills the context; the conversation stays as it was.
        """
        from cygnet.generate.request import Request

        asked = [*self.messages, {"role": "user", "content": text}]
        prompt, left_out = self._fitting(asked)
        if left_out:
            say(f"(the oldest {left_out} messages no longer fit the context and are left out)")
            asked = asked[left_out:]
        said: list[str] = []
        try:
            for event in self.engine.run(Request(prompt=prompt, sampling=self.sampling)):
                if event.text:
                    said.append(event.text)
                    yield event.text
        finally:
            if said:
                self.messages = [*asked, {"role": "assistant", "content": "".join(said)}]

    def _fitting(self, messages: list[dict[str, Any]]) -> tuple[list[int], int]:
        """Return the prompt's ids, and how many of the oldest messages were left out."""
        from cygnet.text.chat import encode_chat

        context = self.engine.max_len
        room = min(self.sampling.max_new_tokens, context // 2)
        system = [{"role": "system", "content": self.system}] if self.system else []
        for left_out in range(0, len(messages), 2):
            kept = [*system, *messages[left_out:]]
            ids = encode_chat(self.tokenizer, kept, add_generation_prompt=True).ids
            if len(ids) + room <= context:
                return ids, left_out
        if len(ids) + MIN_ROOM_TOKENS <= context:
            return ids, left_out
        raise UserError(
            f"that is {len(ids)} tokens, and the model's context holds {context}; say it shorter"
        )


def _line_reader() -> Callable[[], str | None]:
    """Return what gives the person's lines, and None at their end.

    With editing and history where prompt_toolkit is installed.
    """
    try:
        session: Any = require("prompt_toolkit", "chat").PromptSession()
        ask = session.prompt
    except UserError:
        ask = input

    def read() -> str | None:
        lines: list[str] = []
        try:
            while (line := ask("... " if lines else "> ")).endswith("\\"):
                lines.append(line[:-1])
        except EOFError:
            return None
        return "\n".join([*lines, line])

    return read


def _talk(conversation: Conversation, read: Callable[[], str | None]) -> None:
    while True:
        try:
            line = read()
            if line is None or line.strip() == "/quit":
                return
            if line.startswith("/"):
                _command(conversation, line.strip())
            elif line.strip():
                _print_answer(conversation, line.strip())
        except KeyboardInterrupt:
            say("(Ctrl-D or /quit leaves)")
        except UserError as error:
            say(f"{error} (arrow up brings the line back)")


def _print_answer(conversation: Conversation, text: str) -> None:
    try:
        for piece in conversation.answer(text):
            print(printable(piece), end="", flush=True)
    except KeyboardInterrupt:
        print(" …", end="")
    print("\n")


def printable(text: str) -> str:
    """Return text without control characters, which a model may write and a terminal obeys."""
    return _CONTROL.sub("\ufffd", text) if sys.stdout.isatty() else text


def _command(conversation: Conversation, line: str) -> None:
    name, _, rest = line.partition(" ")
    commands = {"/reset", "/system", "/sampling", "/help", "/quit"}
    if name not in commands:
        raise UserError(f"no command {name}{nearest(name, commands)}; /help lists them")
    if name == "/help":
        print(HELP)
    elif name == "/reset":
        conversation.reset()
        print("(a new conversation)")
    elif name == "/system":
        conversation.system = rest.strip() or None
        conversation.reset()
        print(f"(a new conversation; system prompt: {conversation.system or 'none'})")
    else:
        conversation.sampling = changed_sampling(conversation.sampling, rest)
        print("  ".join(f"{name}={getattr(conversation.sampling, name)}" for name in _KINDS))


def changed_sampling(sampling: Sampling, assignments: str) -> Sampling:
    """Return the settings with assignments applied: `temperature=0.5 top_p 0.9`.

    Raises:
        UserError: an unknown name, no value, or one that is no number or out of its range.
    """
    values: dict[str, Any] = {}
    words = iter(assignments.replace("=", " ").split())
    for name in words:
        if name not in _KINDS:
            known = ", ".join(_KINDS)
            raise UserError(f"no setting {name!r}{nearest(name, _KINDS)}; there are {known}")
        value = next(words, None)
        if value is None:
            raise UserError(f"{name}: give a value, such as {name}={getattr(Sampling(), name)}")
        try:
            values[name] = None if (name, value) == ("seed", "none") else _KINDS[name](value)
        except ValueError as error:
            wanted = "a whole number" if _KINDS[name] is int else "a number"
            raise UserError(f"{name}: {value!r} is not {wanted}") from error
    return dataclasses.replace(sampling, **values)
