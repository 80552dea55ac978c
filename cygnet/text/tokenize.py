"""Clean documents and conversations to token shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cygnet.errors import UserError
from cygnet.files import folder_atomic, read_jsonl, sha256_file
from cygnet.messages import (
    Message,
    parse_messages,
    parse_tools,
    validate,
    why_no_conversation,
)
from cygnet.progress import say, track
from cygnet.text.chat import EncodedChat, encode_chat, encode_chats
from cygnet.text.shards import (
    OTHER_KINDS,
    SHARD_TOKENS,
    ShardWriter,
    recorded_source,
    token_dtype,
    write_shards,
)
from cygnet.text.tokenizer import CHUNK_TEXTS, Tokenizer, chunks

LossOn = Literal["assistant", "all", "last"]
"""Which tokens of a conversation are learnt: what the assistant writes, every one behind the first,
or the assistant's last turn."""

NAMED_ROWS = 20
"""Rows with a problem that a summary names; all are counted."""


class NothingToLearnError(UserError):
    """Not one row of a file can be used."""


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of whole documents: `<|endoftext|>`, the text, `<|endoftext|>`.

    The first one is what the first token is learnt from, so that a model can begin a document and
    pay for each byte of it.
    """
    eos = tokenizer.eos_id
    return [[eos, *ids, eos] for ids in tokenizer.encode_batch(texts)]


def tokenize_documents(documents: Path, tokenizer: Tokenizer, out: Path) -> None:
    """Write the `text` of clean documents to a shard folder, unless it holds just them.

    The documents go in the order of their `id`, a hash, so that domains mix. Memory holds their
    lengths and ids alone.

    Raises:
        UserError: there is no document with text.
    """
    source = _source(documents)
    if recorded_source(out, tokenizer.hash, source) is not None:
        return
    dtype = token_dtype(tokenizer.vocab_size)
    keys: list[int] = []
    lengths: list[int] = []
    with folder_atomic(out) as folder:
        unsorted = folder / "unsorted"
        with open(unsorted, "wb") as file:
            rows = (row for row in track(read_jsonl(documents), "tokens") if row["text"])
            for chunk in chunks(rows, CHUNK_TEXTS):
                encoded = encode_documents(tokenizer, [row["text"] for row in chunk])
                keys += [int(row["id"], 16) for row in chunk]
                lengths += map(len, encoded)
                file.write(np.concatenate([np.array(ids, dtype) for ids in encoded]).tobytes())
        if not lengths:
            raise UserError(f"{documents}: no document with text; give more text")
        tokens = np.memmap(unsorted, dtype, mode="r").view(np.ndarray)
        writer = ShardWriter(folder, tokenizer.vocab_size, False, SHARD_TOKENS)
        _append_sorted(writer, tokens, np.array(keys, np.uint64), np.array(lengths, np.int64))
        unsorted.unlink()
        writer.finish(tokenizer.hash, source)


def _append_sorted(
    writer: ShardWriter,
    tokens: NDArray[Any],
    keys: NDArray[np.uint64],
    lengths: NDArray[np.int64],
) -> None:
    order = np.argsort(keys, kind="stable")
    starts = np.cumsum(lengths) - lengths
    for first in range(0, len(order), CHUNK_TEXTS):
        chosen = order[first : first + CHUNK_TEXTS]
        spans = [tokens[starts[i] : starts[i] + lengths[i]] for i in chosen.tolist()]
        writer.append(np.concatenate(spans), lengths[chosen])


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


def tokenize_conversations(
    conversations: Path,
    tokenizer: Tokenizer,
    out: Path,
    max_seq_len: int,
    loss_on: LossOn = "assistant",
) -> ConversationSummary:
    """Write conversations, each ended by `<|endoftext|>`, to a shard folder with labels.

    Nothing is done where the folder holds just them. Rows are JSON objects that
    `cygnet.messages.parse_messages` reads, with `tools` beside them where wanted. What was cut or
    skipped is said, and is also in the manifest, under `source`.

    Args:
        conversations: JSON lines. A row's `source` says where it was read first, its `group`, or
            else `kind`, of what kind its document is, its `weight` how often it is written (1.5:
            once or twice, by a hash of its messages).
        tokenizer: of the model to be trained.
        out: folder, replaced if it is there.
        max_seq_len: positions in a row; a longer conversation loses its last turns.
        loss_on: which tokens are labels.

    Raises:
        NothingToLearnError: not one row can be used.
    """
    encoding = _Encoding(conversations.name, tokenizer, max_seq_len, loss_on)
    summary = encoding.summary
    source = _source(conversations) | {"max_seq_len": max_seq_len, "loss_on": loss_on}
    recorded = recorded_source(out, tokenizer.hash, source)
    if recorded is not None:
        return ConversationSummary(**recorded["summary"])

    def encoded() -> Any:
        numbered = enumerate(track(read_jsonl(conversations), "tokens"), start=1)
        for chunk in chunks(numbered, CHUNK_TEXTS):
            yield from encoding.documents(chunk)
        if not summary.num_used:
            first = summary.problems[0] if summary.problems else "it is empty"
            raise NothingToLearnError(f"{conversations}: no row can be learnt from; {first}")
        source["summary"] = asdict(summary)

    write_shards(
        out, encoded(), tokenizer.hash, tokenizer.vocab_size, source,
        has_labels=True, has_kinds=True,
    )  # fmt: skip
    if report := summary.report():
        say(f"{conversations.name}: {report}")
    return summary


class _Encoding:
    """Rows of one conversation file to documents with labels, and what became of them."""

    def __init__(self, name: str, tokenizer: Tokenizer, max_seq_len: int, loss_on: LossOn) -> None:
        self._name, self._tokenizer = name, tokenizer
        self._max_seq_len, self._loss_on = max_seq_len, loss_on
        self.summary = ConversationSummary()

    def documents(
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


def _source(path: Path) -> dict[str, Any]:
    return {"file": path.name, "sha256": sha256_file(path)}
