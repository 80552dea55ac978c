"""Clean documents and conversations to token shards, by all cores, from where a kill left off."""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet import __version__
from cygnet.errors import UserError
from cygnet.files import folder_atomic, sha256_file, sha256_text
from cygnet.hashing import mixed
from cygnet.progress import say
from cygnet.text.conversation_rows import ConversationEncoder, ConversationSummary, LossOn
from cygnet.text.pieces import (
    INDEX,
    Piece,
    PieceEncoder,
    Work,
    encode_pieces,
    json_lines,
    sweep_up,
    working,
)
from cygnet.text.shards import SHARD_TOKENS, ShardWriter, map_file, recorded_source, token_dtype
from cygnet.text.tokenizer import CHUNK_TEXTS, Tokenizer

__all__ = [
    "ConversationSummary",
    "LossOn",
    "NothingToLearnError",
    "encode_documents",
    "make_encoder",
    "tokenize_conversations",
    "tokenize_documents",
]

CHUNK_CHARACTERS = 2**20
"""Of texts encoded at once: the library needs some hundred bytes a token meanwhile."""
CHUNK_TOKENS = 2**22
"""Of documents put in order at once."""
MAX_COPIES = 2**16 - 1
_INDEX_ROW = np.dtype([("key", "<u8"), ("length", "<i8"), ("copies", "<i4")])


class NothingToLearnError(UserError):
    """Not one row of a file can be used."""


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of whole documents: `<|endoftext|>`, the text, `<|endoftext|>`.

    The first one is what the first token is learnt from, so that a model can begin a document and
    pay for each byte of it.
    """
    eos = tokenizer.eos_id
    return [[eos, *ids, eos] for ids in tokenizer.encode_batch(texts)]


def tokenize_documents(
    documents: Path, tokenizer: Tokenizer, out: Path, num_workers: int | None = None
) -> None:
    """Write the `text` of clean documents to a shard folder, unless it holds just them.

    The documents go in the order of their `id`, a hash, so that domains mix. One with `copies`,
    a whole number, is written so many times, each in a place of its own. Memory holds their lengths
    and ids alone. A start after a kill goes on with what was finished; the result is the same,
    byte for byte, however often that happens and whatever the number of workers.

    Args:
        documents: JSON lines.
        tokenizer: of the model to be trained.
        out: folder, replaced if it is there.
        num_workers: processes; none takes one for each core that this process may use.

    Raises:
        UserError: there is no document with text, or `copies` is no number of copies.
    """
    source = _source(documents)
    if recorded_source(out, tokenizer.hash, source) is not None:
        sweep_up(out)
        return
    job = _job("documents", source, tokenizer)
    with working(out, tokenizer, job) as work:
        num_pieces = encode_pieces(documents, work, make_encoder(tokenizer, job), num_workers)
        indices = [np.load(work.path(number, INDEX)) for number in range(num_pieces)]
        if not sum(int(index["copies"].sum()) for index in indices):
            raise UserError(f"{documents}: no document with text; give more text")
        dtype = token_dtype(tokenizer.vocab_size)
        with folder_atomic(out) as folder:
            writer = ShardWriter(folder, tokenizer.vocab_size, False, SHARD_TOKENS)
            _append_sorted(writer, work, indices, dtype)
            writer.finish(tokenizer.hash, source)


class DocumentEncoder:
    """Clean documents of a piece to tokens, in the order of their ids."""

    def __init__(self, name: str, tokenizer: Tokenizer) -> None:
        self._name, self._tokenizer = name, tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)

    def encode(self, piece: Piece) -> dict[str, bytes]:
        """Return tokens, and an index with id, length and copies of each document."""
        tokens: list[bytes] = []
        index: list[tuple[int, int, int]] = []
        eos = np.array([self._tokenizer.eos_id], self._dtype).tobytes()
        for texts, described in self._chunks(piece):
            encoded = self._tokenizer.encode_batch(texts)
            for ids, (key, copies) in zip(encoded, described, strict=True):
                # array() reads a list of numbers in half the time that NumPy takes.
                content = array(self._dtype.char, ids).tobytes()
                tokens.append(b"".join((eos, content, eos)))
                index.append((key, len(ids) + 2, copies))
        rows = np.array(index, _INDEX_ROW)
        order = np.argsort(rows["key"], kind="stable")
        file = io.BytesIO()
        np.save(file, rows[order], allow_pickle=False)
        content = b"".join(tokens[i] for i in order.tolist())
        return {"tokens": content, INDEX: file.getvalue()}

    def _chunks(self, piece: Piece) -> Iterator[tuple[list[str], list[tuple[int, int]]]]:
        """Yield texts, with key and copies of each."""
        texts: list[str] = []
        described: list[tuple[int, int]] = []
        num_characters = 0
        for line, row in enumerate(json_lines(piece, self._name), piece.first_line):
            copies = row.get("copies", 1)
            if type(copies) is not int or not 0 <= copies <= MAX_COPIES:
                raise UserError(
                    f"{self._name}:{line}: copies is {copies!r}; give a whole number from 0 to "
                    f"{MAX_COPIES}"
                )
            if not row["text"] or not copies:
                continue
            texts.append(row["text"])
            described.append((int(row["id"], 16), copies))
            num_characters += len(row["text"])
            if len(texts) == CHUNK_TEXTS or num_characters >= CHUNK_CHARACTERS:
                yield texts, described
                texts, described, num_characters = [], [], 0
        if texts:
            yield texts, described


def _append_sorted(
    writer: ShardWriter, work: Work, indices: Sequence[NDArray[Any]], dtype: np.dtype[Any]
) -> None:
    """Append the documents of all pieces in the order of their keys.

    In each piece they lie in that order, so that every file is read from front to back.
    """
    rows = np.concatenate(indices)
    piece_of = np.repeat(np.arange(len(indices)), [len(index) for index in indices])
    begins = np.concatenate([np.cumsum(index["length"]) - index["length"] for index in indices])
    tokens = [map_file(work.path(number, "tokens"), dtype) for number in range(len(indices))]
    document = np.repeat(np.arange(len(rows)), rows["copies"])
    order = document[np.argsort(_keys(rows), kind="stable")]
    for chosen in _spans(order, rows["length"]):
        found = zip(piece_of[chosen].tolist(), begins[chosen].tolist(), strict=True)
        lengths = rows["length"][chosen]
        spans = [
            tokens[piece][begin : begin + length]
            for (piece, begin), length in zip(found, lengths.tolist(), strict=True)
        ]
        writer.append(np.concatenate(spans), lengths)


def _keys(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """Return where each copy of each document goes: the first by its id, others by a hash of it.

    The hash is that of splitmix64 (Steele et al. 2014, "Fast splittable pseudorandom number
    generators"), so that the copies of a document are spread over the corpus.
    """
    copies = rows["copies"].astype(np.int64)
    key = np.repeat(rows["key"], copies)
    number = np.arange(len(key)) - np.repeat(np.cumsum(copies) - copies, copies)
    stepped = key + number.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.where(number == 0, key, mixed(stepped))


def _spans(order: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Cut an order of documents where 1,000 of them, or 4 M tokens, are together."""
    for first in range(0, len(order), CHUNK_TEXTS):
        chosen = order[first : first + CHUNK_TEXTS]
        number = (np.cumsum(lengths[chosen]) - 1) // CHUNK_TOKENS
        yield from np.split(chosen, np.flatnonzero(np.diff(number)) + 1)


def tokenize_conversations(
    conversations: Path,
    tokenizer: Tokenizer,
    out: Path,
    max_seq_len: int,
    loss_on: LossOn = "assistant",
    num_workers: int | None = None,
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
        num_workers: as in `tokenize_documents`.

    Raises:
        NothingToLearnError: not one row can be used.
    """
    source = _source(conversations) | {"max_seq_len": max_seq_len, "loss_on": loss_on}
    recorded = recorded_source(out, tokenizer.hash, source)
    if recorded is not None:
        sweep_up(out)
        return ConversationSummary(**recorded["summary"])
    job = _job("conversations", source, tokenizer)
    summary = ConversationSummary()
    with working(out, tokenizer, job) as work:
        num_pieces = encode_pieces(conversations, work, make_encoder(tokenizer, job), num_workers)
        with folder_atomic(out) as folder:
            writer = ShardWriter(folder, tokenizer.vocab_size, True, SHARD_TOKENS, has_kinds=True)
            for number in range(num_pieces):
                summary.add(_append_conversations(writer, work, number, tokenizer))
            if not summary.num_used:
                first = summary.problems[0] if summary.problems else "it is empty"
                raise NothingToLearnError(f"{conversations}: no row can be learnt from; {first}")
            writer.finish(tokenizer.hash, source | {"summary": asdict(summary)})
    if report := summary.report():
        say(f"{conversations.name}: {report}")
    return summary


def _append_conversations(
    writer: ShardWriter, work: Work, number: int, tokenizer: Tokenizer
) -> ConversationSummary:
    index = json.loads(work.path(number, INDEX).read_bytes())
    tokens = np.fromfile(work.path(number, "tokens"), token_dtype(tokenizer.vocab_size))
    labels = np.fromfile(work.path(number, "labels"), np.uint8)
    begin = 0
    for length, kind in zip(index["lengths"], index["kinds"], strict=True):
        span = slice(begin, begin + length)
        writer.append(tokens[span], np.array([length], np.int64), labels[span], kind)
        begin += length
    return ConversationSummary(**index["summary"])


def make_encoder(tokenizer: Tokenizer, job: Mapping[str, Any]) -> PieceEncoder:
    """Return what encodes the pieces of a job of `tokenize_documents` or `..._conversations`."""
    source = job["source"]
    if job["rows"] == "documents":
        return DocumentEncoder(source["file"], tokenizer)
    return ConversationEncoder(source["file"], tokenizer, source["max_seq_len"], source["loss_on"])


def _job(rows: str, source: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "rows": rows,
        "source": dict(source),
        "tokenizer": tokenizer.hash,
        "chat_template": sha256_text(tokenizer.chat_template),
        "version": __version__,
    }


def _source(path: Path) -> dict[str, Any]:
    return {"file": path.name, "sha256": sha256_file(path)}
