"""Rows of conversations to token ids with labels, and an account of what became of each row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from typing import Any, Literal

import numpy as np

from cygnet.errors import UserError
from cygnet.messages import (
    Message,
    parse_messages,
    parse_tools,
    validate,
    why_no_conversation,
)
from cygnet.text.chat import EncodedChat, encode_chat, encode_chats
from cygnet.text.pieces import INDEX, Piece, json_lines
from cygnet.text.shards import OTHER_KINDS, token_dtype
from cygnet.text.tokenizer import CHUNK_TEXTS, Tokenizer, chunks

LossOn = Literal["assistant", "all", "last"]
"""Which tokens of a conversation are learnt: what the assistant writes, every one behind the first,
or the assistant's last turn."""

NAMED_ROWS = 20
"""Rows with a problem that a summary names; all are counted."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a row was read: in the person's own file, where that is known, or in a derived one."""

    name: str
    is_own: bool


@dataclass(slots=True)
class ConversationSummary:
    """What became of the rows of a conversation file."""

    num_rows: int = 0
    num_used: int = 0
    num_tokens: int = 0
    num_labels: int = 0
    num_cut: int = 0
    """Longer than the context: the last turns were left out."""
    num_too_long: int = 0
    """Skipped: even the first answer does not fit the context."""
    num_invalid: int = 0
    """Skipped: no conversation, or one that `messages.validate` refuses."""
    num_without_label: int = 0
    """Skipped: nothing in it to learn."""
    num_left_out: int = 0
    """Rows of a source whose weight is below 1 that this draw passed over."""
    labels_of: dict[str, int] = field(default_factory=dict)
    """`num_labels` of each kind of data."""
    problems: list[str] = field(default_factory=list)
    """The first 20 rows that were cut or skipped: the person's file:line where it is known, else
    that of the file read, and why."""

    num_own_named: int = 0
    """Of them, those of the person's own files; they come first."""

    def note(self, where: _Place, why: str) -> None:
        """Name a row, while there is room."""
        if where.is_own:
            self.problems.insert(self.num_own_named, f"{where.name}: {why}")
            self.num_own_named = min(self.num_own_named + 1, NAMED_ROWS)
        else:
            self.problems.append(f"{where.name}: {why}")
        del self.problems[NAMED_ROWS:]

    def add(self, following: ConversationSummary) -> None:
        """Take up what became of the rows behind these."""
        for name in (entry.name for entry in fields(self) if entry.type == "int"):
            setattr(self, name, getattr(self, name) + getattr(following, name))
        for kind, count in following.labels_of.items():
            self.labels_of[kind] = self.labels_of.get(kind, 0) + count
        own, other = self.num_own_named - following.num_own_named, following.num_own_named
        named = [*self.problems[:own], *following.problems[:other]]
        self.problems = [*named, *self.problems[own:], *following.problems[other:]][:NAMED_ROWS]
        self.num_own_named = min(len(named), NAMED_ROWS)

    def report(self) -> str:
        """Return one line of what was cut or skipped, or an empty string."""
        found = {
            "cut to the context": self.num_cut,
            "longer than the context": self.num_too_long,
            "invalid": self.num_invalid,
            "without an answer": self.num_without_label,
        }
        told = ", ".join(f"{count} {what}" for what, count in found.items() if count)
        if not told:
            return ""
        return f"{self.num_used} of {self.num_rows} rows used; {told}; first: {self.problems[0]}"


class ConversationEncoder:
    """Rows of one conversation file to documents with labels, and what became of them."""

    def __init__(self, name: str, tokenizer: Tokenizer, max_seq_len: int, loss_on: LossOn) -> None:
        self._name, self._tokenizer = name, tokenizer
        self._max_seq_len, self._loss_on = max_seq_len, loss_on
        self._dtype = token_dtype(tokenizer.vocab_size)
        self.summary = ConversationSummary()

    def encode(self, piece: Piece) -> dict[str, bytes]:
        """Return what is kept of a piece: tokens, labels, and an index with the summary."""
        self.summary = ConversationSummary()
        tokens: list[bytes] = []
        labels: list[bytes] = []
        lengths: list[int] = []
        kinds: list[str] = []
        for chunk in chunks(
            enumerate(json_lines(piece, self._name), piece.first_line), CHUNK_TEXTS
        ):
            for ids, is_label, kind in self._documents(chunk):
                tokens.append(np.array(ids, self._dtype).tobytes())
                labels.append(bytes(is_label))
                lengths.append(len(ids))
                kinds.append(kind)
        index = {"lengths": lengths, "kinds": kinds, "summary": asdict(self.summary)}
        return {
            "tokens": b"".join(tokens),
            "labels": b"".join(labels),
            INDEX: json.dumps(index).encode(),
        }

    def _documents(
        self, chunk: Sequence[tuple[int, dict[str, Any]]]
    ) -> list[tuple[list[int], list[bool], str]]:
        """Return ids, labels and kind of what can be learnt of some numbered rows."""
        usable = [read for line, row in chunk if (read := self._read(line, row)) is not None]
        chats = encode_chats(
            self._tokenizer, [row.messages for row in usable], [row.tools for row in usable]
        )
        found = []
        for row, chat in zip(usable, chats, strict=True):
            fitting = self._fit(row, chat)
            if fitting is not None and (document := self._labelled(row, fitting)):
                found += [document] * row.copies
        return found

    def _read(self, line: int, row: dict[str, Any]) -> _Conversation | None:
        self.summary.num_rows += 1
        source = row.get("source")
        where = _Place(source or f"{self._name}:{line}", bool(source))
        try:
            read = _conversation(where, row)
        except UserError as error:
            self.summary.num_invalid += 1
            self.summary.note(where, str(error))
            return None
        self.summary.num_left_out += not read.copies
        return read if read.copies else None

    def _labelled(
        self, row: _Conversation, chat: EncodedChat
    ) -> tuple[list[int], list[bool], str] | None:
        """Return the document of a conversation, or None if nothing in it is learnt."""
        is_label = _labels(chat, self._loss_on, row.messages)
        summary, num_labels = self.summary, sum(is_label) * row.copies
        if not num_labels:
            summary.num_without_label += 1
            summary.note(row.where, "nothing in it is said by the assistant")
            return None
        summary.num_used += 1
        summary.num_tokens += len(is_label) * row.copies
        summary.num_labels += num_labels
        summary.labels_of[row.kind] = summary.labels_of.get(row.kind, 0) + num_labels
        return [*chat.ids, self._tokenizer.eos_id], is_label, row.kind

    def _fit(self, row: _Conversation, chat: EncodedChat) -> EncodedChat | None:
        """Return the longest beginning that ends with an answer and fits, or None.

        The ids and `<|endoftext|>` after them fill as many positions as there are ids.
        """
        messages, num_tokens, kept = row.messages, len(chat.ids), len(row.messages)
        while len(chat.ids) > self._max_seq_len:
            kept -= 1
            while kept and messages[kept - 1]["role"] != "assistant":
                kept -= 1
            if not kept:
                self.summary.num_too_long += 1
                why = f"{num_tokens} tokens, but the context holds {self._max_seq_len}"
                self.summary.note(row.where, why)
                return None
            chat = encode_chat(self._tokenizer, messages[:kept], row.tools)
        if kept < len(messages):
            self.summary.num_cut += 1
            self.summary.note(row.where, f"{num_tokens} tokens: cut to the first {kept} messages")
        return chat


@dataclass(frozen=True, slots=True)
class _Conversation:
    """A row that the chat template can render."""

    where: _Place
    messages: list[Message]
    tools: list[Any] | None
    kind: str
    copies: int
    """How often it is written."""


def _conversation(where: _Place, row: Mapping[str, Any]) -> _Conversation:
    messages = parse_messages(row)
    if messages is None:
        why = (
            why_no_conversation(row)
            or f"no conversation; its fields are {', '.join(row) or 'none'}"
        )
        raise UserError(why)
    validate(messages)
    kind = str(row.get("group") or row.get("kind") or OTHER_KINDS)
    return _Conversation(where, messages, parse_tools(row), kind, _copies(row, messages))


def _copies(row: Mapping[str, Any], messages: list[Message]) -> int:
    """Return the row's weight as a whole number: of 2.3, 3 in three of ten rows, else 2."""
    whole, rest = divmod(float(row.get("weight", 1)), 1)
    digest = hashlib.sha256(json.dumps(messages, default=str).encode()).digest()
    return int(whole) + (int.from_bytes(digest[:8], "big") / 2**64 < rest)


def _labels(chat: EncodedChat, loss_on: LossOn, messages: Sequence[Message]) -> list[bool]:
    """Return which tokens of a conversation, and of `<|endoftext|>` behind it, are learnt.

    The first token is behind none, so it is never learnt. Of a message of weight 0 none is, but
    where all are learnt.
    """
    if loss_on == "all":
        return [False] + [True] * len(chat.ids)
    is_label = [*chat.is_label, False]
    answers = (message for message in messages if message["role"] == "assistant")
    silent = {at for at, answer in enumerate(answers) if answer.get("weight") == 0}
    if loss_on == "assistant" and not silent:
        return is_label
    turns = [
        [number for number, _ in turn]
        for learnt, turn in groupby(enumerate(is_label), key=lambda pair: pair[1])
        if learnt
    ]  # one for each answer, but for those that were cut off
    for at, turn in enumerate(turns):
        if at in silent or (loss_on == "last" and at < len(turns) - 1):
            is_label[turn[0] : turn[-1] + 1] = [False] * len(turn)
    return is_label
