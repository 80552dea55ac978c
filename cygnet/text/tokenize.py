"""Clean documents and conversations to token shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.errors import UserError
from cygnet.files import folder_atomic, read_jsonl, sha256_file
from cygnet.messages import Message, parse_messages, validate, why_no_conversation
from cygnet.progress import say, track
from cygnet.text.chat import EncodedChat, encode_chat, encode_chats
from cygnet.text.shards import SHARD_TOKENS, ShardWriter, recorded_source, token_dtype, write_shards
from cygnet.text.tokenizer import CHUNK_TEXTS, Tokenizer, chunks

NAMED_ROWS = 20
"""Rows with a problem that a summary names; all are counted."""


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
    conversations: Path, tokenizer: Tokenizer, out: Path, max_seq_len: int
) -> ConversationSummary:
    """Write conversations, each ended by `<|endoftext|>`, to a shard folder with labels.

    Nothing is done where the folder holds just them. The labels are what the assistant writes (see
    `encode_chat`). Rows are JSON objects that `cygnet.messages.parse_messages` reads, with `tools`
    beside them where wanted. What was cut or skipped is said, and is also in the manifest, under
    `source`.

    Args:
        conversations: JSON lines; a row's `source` says where it was read first.
        tokenizer: of the model to be trained.
        out: folder, replaced if it is there.
        max_seq_len: positions in a row; a longer conversation loses its last turns.

    Raises:
        UserError: not one row can be used.
    """
    summary = ConversationSummary()
    source = _source(conversations) | {"max_seq_len": max_seq_len}
    recorded = recorded_source(out, tokenizer.hash, source)
    if recorded is not None:
        return ConversationSummary(**recorded["summary"])

    def encoded() -> Any:
        numbered = enumerate(track(read_jsonl(conversations), "tokens"), start=1)
        for chunk in chunks(numbered, CHUNK_TEXTS):
            yield from _encode_chunk(chunk, conversations.name, tokenizer, max_seq_len, summary)
        if not summary.num_used:
            first = summary.problems[0] if summary.problems else "it is empty"
            raise UserError(f"{conversations}: no row can be learnt from; {first}")
        source["summary"] = asdict(summary)

    write_shards(out, encoded(), tokenizer.hash, tokenizer.vocab_size, source, has_labels=True)
    if report := summary.report():
        say(f"{conversations.name}: {report}")
    return summary


def _encode_chunk(
    chunk: Sequence[tuple[int, dict[str, Any]]],
    name: str,
    tokenizer: Tokenizer,
    max_seq_len: int,
    summary: ConversationSummary,
) -> list[tuple[list[int], list[bool]]]:
    usable: list[tuple[_Place, list[Message], Any]] = []
    for line, row in chunk:
        summary.num_rows += 1
        source = row.get("source")
        where = _Place(source or f"{name}:{line}", bool(source))
        try:
            usable.append((where, _conversation(row), row.get("tools") or None))
        except UserError as error:
            summary.num_invalid += 1
            summary.note(where, str(error))
    chats = encode_chats(tokenizer, [m for _, m, _ in usable], [t for _, _, t in usable])
    documents = []
    for (where, messages, tools), chat in zip(usable, chats, strict=True):
        fitting = _fit(where, messages, tools, chat, tokenizer, max_seq_len, summary)
        if fitting is None:
            continue
        if not any(fitting.is_label):
            summary.num_without_label += 1
            summary.note(where, "nothing in it is said by the assistant")
            continue
        documents.append(([*fitting.ids, tokenizer.eos_id], [*fitting.is_label, False]))
        summary.num_used += 1
        summary.num_tokens += len(fitting.ids) + 1
        summary.num_labels += sum(fitting.is_label)
    return documents


def _conversation(row: Mapping[str, Any]) -> list[Message]:
    messages = parse_messages(row)
    if messages is None:
        why = (
            why_no_conversation(row)
            or f"no conversation; its fields are {', '.join(row) or 'none'}"
        )
        raise UserError(why)
    validate(messages)
    return messages


def _fit(
    where: _Place,
    messages: list[Message],
    tools: Any,
    chat: EncodedChat,
    tokenizer: Tokenizer,
    max_seq_len: int,
    summary: ConversationSummary,
) -> EncodedChat | None:
    """Return the longest beginning that ends with an answer and fits, or None.

    The ids and `<|endoftext|>` after them fill as many positions as there are ids.
    """
    num_tokens, kept = len(chat.ids), len(messages)
    while len(chat.ids) > max_seq_len:
        kept -= 1
        while kept and messages[kept - 1]["role"] != "assistant":
            kept -= 1
        if not kept:
            summary.num_too_long += 1
            summary.note(where, f"{num_tokens} tokens, but the context holds {max_seq_len}")
            return None
        chat = encode_chat(tokenizer, messages[:kept], tools)
    if kept < len(messages):
        summary.num_cut += 1
        summary.note(where, f"{num_tokens} tokens: cut to the first {kept} messages")
    return chat


def _source(path: Path) -> dict[str, Any]:
    return {"file": path.name, "sha256": sha256_file(path)}
