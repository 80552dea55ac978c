"""`cygnet chat`: talk to a model of this machine or of a server, in the terminal or by a pipe."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from cygnet.errors import UserError, nearest, require
from cygnet.generate.conversation import Conversation, LocalModel, Pieces, Source
from cygnet.generate.sampling import Sampling
from cygnet.progress import say

HELP = """\
/reset            begin a new conversation
/system TEXT      set the system prompt and begin anew; without TEXT, take it away
/sampling         show how answers are drawn; `/sampling temperature=0.5 top_p=0.9` changes it
/help             this list
/quit             leave (also Ctrl-D)
Ctrl-C stops an answer. A line that ends with \\ goes on in the next."""
DIM, NOT_DIM = "\x1b[2m", "\x1b[22m"
_KINDS: dict[str, type] = {
    "temperature": float, "top_p": float, "top_k": int, "min_p": float,
    "repetition_penalty": float, "max_new_tokens": int, "seed": int,
}  # fmt: skip
"""What `/sampling` shows and changes."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Whom to talk to, and how."""

    run: tyro.conf.Positional[Path | None] = None
    """Run folder or model folder; of a whole run, the last stage's model is taken."""
    url: str | None = None
    """Instead, an OpenAI-compatible server's API, such as http://127.0.0.1:8000/v1."""
    model: str | None = None
    """With --url: the server's name of the model; needed where it has several."""
    api_key: str | None = None
    """With --url: its key; better in the environment variable CYGNET_API_KEY, since others can read
    command lines."""
    prompt: str | None = None
    """Answer this and stop."""
    system: str | None = None
    """System prompt."""
    yarn_factor: float | None = None
    """Stretch the model's context by so much with YaRN, without training; 4 is usual."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(
        temperature=0.7, top_p=0.9, seed=None
    )

    def __post_init__(self) -> None:
        if (self.run is None) == (self.url is None):
            raise UserError(
                "give a run or model folder, or --url with a server's address"
                + (", and not both" if self.run else "; see cygnet chat --help")
            )
        others = ("yarn_factor",) if self.url else ("model", "api_key")
        for name in others:
            if getattr(self, name) is not None:
                place = "a model folder, not with --url" if self.url else "--url"
                raise UserError(f"--{name} goes with {place}")


def chat(config: ChatConfig) -> None:
    """Answer one prompt, what comes through a pipe, or a person at the terminal.

    Raises:
        UserError: there is no such model or server, or a setting is out of its range.
    """
    source, name = _source(config)
    conversation = Conversation(source, config.sampling, config.system)
    if config.prompt is not None or not sys.stdin.isatty():
        text = config.prompt if config.prompt is not None else sys.stdin.read()
        if not text.strip():
            raise UserError("nothing to answer: give --prompt TEXT, or some text on standard input")
        _show(conversation.answer(text.strip()))
        return
    say(f"{printable(name)}: /help for commands, Ctrl-D to leave")
    if source.is_only_pretrained:
        say("this model was pretrained alone: it goes on from a text, and has not learnt to answer")
    _talk(conversation, _line_reader())


def _source(config: ChatConfig) -> tuple[Source, str]:
    """Return who answers, and its name."""
    if config.url is not None:
        from cygnet.generate.remote import KEY_VARIABLE, Server

        key = config.api_key or os.environ.get(KEY_VARIABLE)
        server = Server(config.url, config.model, key)
        return server, f"{server.model} of {server.url}"
    assert config.run is not None
    return LocalModel(config.run, config.yarn_factor), str(config.run)


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
    """Print one answer of a talk, which Ctrl-C stops."""
    with suppress(KeyboardInterrupt):
        _show(conversation.answer(text))
    print()


def _show(pieces: Pieces) -> None:
    """Print an answer as it comes, and what is thought before it dimmed, for people alone."""
    is_seen = sys.stdout.isatty()
    has_begun = is_dim = False
    try:
        for piece in pieces:
            if piece.reasoning and not is_seen:
                continue
            if bool(piece.reasoning) != is_dim:
                print(DIM if piece.reasoning else f"{NOT_DIM}\n\n", end="")
            has_begun, is_dim = True, bool(piece.reasoning)
            print(printable(piece.reasoning or piece.content), end="", flush=True)
    except KeyboardInterrupt:
        print(" …" if is_seen else "", end="")
        raise
    finally:
        pieces.close()
        if has_begun:
            print(NOT_DIM if is_dim else "", flush=True)


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
