"""Vocabularies of other makers, as they are published, to measure ours against."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from cygnet.errors import UserError
from cygnet.progress import say
from cygnet.text.tokenizer import PATTERN, byte_of_character

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_ENDING}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    "gpt2": _GPT2, "r50k": _GPT2, "p50k": _GPT2, "cl100k": _CL100K, "o200k": _O200K,
    "qwen": PATTERN,
}  # fmt: skip
"""How the makers of rank files cut text before merging, by the beginning of the file's name
(tiktoken's `openai_public.py`; Qwen's `tokenization_qwen.py`)."""
KNOWN_FILES = (
    "tokenizer.json",
    "*.tiktoken",
    "tekken*.json",
    "claude.json",
    "*.model",
    "*.model.v*",
)
"""What is looked for in a folder."""
_SPACE = "\u2581"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A vocabulary that can be measured.

    Attributes:
        name: from its file's name.
        inner: what cuts text with it.
        num_entries: control tokens included where the file has them.
    """

    name: str
    inner: tokenizers.Tokenizer
    num_entries: int

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, without what the maker puts around it."""
        encoded = self.inner.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]


def vocabulary_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files given, and all those that the folders given hold.

    Raises:
        UserError: a path is not there, or a folder holds no vocabulary.
    """
    found: list[Path] = []
    for given in map(Path, paths):
        if not given.exists():
            raise UserError(f"{given}: not there; give a vocabulary's file, or a folder of some")
        files = [given]
        if given.is_dir():
            files = sorted({path for name in KNOWN_FILES for path in given.rglob(name)})
        if not files:
            raise UserError(f"{given}: no vocabulary there; these are known: {_known()}")
        found += files
    return list(dict.fromkeys(found))


def load_vocabulary(path: Path) -> Vocabulary:
    """Read a tokenizer.json, a tiktoken rank file, Mistral's tekken, Claude's, or a SentencePiece.

    Raises:
        UserError: it is none of them, or damaged.
    """
    try:
        if path.suffix == ".tiktoken":
            inner = _of_ranks(_read_ranks(path.read_bytes().splitlines()), _pattern_of(path))
        elif path.suffix == ".json":
            inner = _of_json(json.loads(path.read_bytes()), path)
        else:
            inner = _of_sentencepiece(path.read_bytes())
    except UserError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(
            f"{path}: no vocabulary that can be read ({error}); these are known: {_known()}"
        ) from error
    name = path.parent.resolve().name if path.name == "tokenizer.json" else path.name
    name = name.removesuffix(path.suffix) if path.suffix in (".tiktoken", ".json") else name
    return Vocabulary(name, inner, inner.get_vocab_size(with_added_tokens=True))


def _known() -> str:
    return ", ".join(KNOWN_FILES)


def _pattern_of(path: Path) -> str:
    for name, pattern in PATTERNS.items():
        if path.name.lower().startswith(name):
            return pattern
    say(f"{path.name}: how its maker cuts text is not known; it is cut as GPT-4's vocabulary is")
    return _CL100K


def _of_json(values: Mapping[str, Any], path: Path) -> tokenizers.Tokenizer:
    if "model" in values:
        inner = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        inner.no_padding()
        inner.no_truncation()
        return inner
    if (
        "bpe_ranks" in values
    ):  # lines of `! FIRST_RANK TOKEN TOKEN ...`, as JavaScript's tiktoken has
        ranks: dict[bytes, int] = {}
        for line in str(values["bpe_ranks"]).splitlines():
            _, first, *tokens = line.split()
            ranks |= {base64.b64decode(token): int(first) + i for i, token in enumerate(tokens)}
        return _of_ranks(ranks, values["pat_str"])
    config = values["config"]
    size = config["default_vocab_size"] - config["default_num_special_tokens"]
    entries = values["vocab"][:size]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in entries}
    return _of_ranks(ranks, config["pattern"])


def _read_ranks(lines: Iterable[bytes]) -> dict[bytes, int]:
    pairs = (line.split() for line in lines if line.strip())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _of_ranks(ranks: Mapping[bytes, int], pattern: str) -> tokenizers.Tokenizer:
    """Return a byte-level BPE that merges two tokens into one by the rank of the one.

    A word that is a token is taken whole, as tiktoken does.
    """
    character = {byte: letter for letter, byte in byte_of_character().items()}

    def spelt(token: bytes) -> str:
        return "".join(map(character.__getitem__, token))

    ordered = sorted(ranks, key=ranks.__getitem__)
    merges = [
        (spelt(token[:cut]), spelt(token[cut:]))
        for token in ordered
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    vocab = {spelt(token): number for number, token in enumerate(ordered)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return inner


def _of_sentencepiece(content: bytes) -> tokenizers.Tokenizer:
    """Return the BPE of a SentencePiece model (`sentencepiece_model.proto`), as of Llama 2.

    Raises:
        UserError: it is another kind of model.
    """
    fields = _protobuf(content)
    trainer = dict(_protobuf(next(value for key, value in fields if key == 2)))
    if trainer.get(3) != 2:
        raise UserError("a SentencePiece model that is no BPE; give its tokenizer.json")
    pieces = [dict(_protobuf(value)) for key, value in fields if key == 1]
    vocab = {piece[1].decode(): number for number, piece in enumerate(pieces)}
    merges = [
        (token[:cut], token[cut:])
        for token, number in vocab.items()
        if pieces[number].get(3, 1) == 1
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]  # a BPE's pieces are in the order in which they were merged
    unknown = next(number for number, piece in enumerate(pieces) if piece.get(3) == 2)
    model = models.BPE(
        vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True,
        unk_token=pieces[unknown][1].decode(),
    )  # fmt: skip
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    return inner


def _protobuf(content: bytes) -> list[tuple[int, Any]]:
    """Return the fields of a message: numbers, and what has a length as bytes."""
    fields: list[tuple[int, Any]] = []
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = content[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(content):
        key = number()
        kind = key & 7
        if kind == 0:
            fields.append((key >> 3, number()))
            continue
        length = {1: 8, 5: 4}.get(kind) or number()
        if kind not in (1, 2, 5) or at + length > len(content):
            raise ValueError("no protocol buffer")
        fields.append((key >> 3, content[at : at + length]))
        at += length
    return fields
