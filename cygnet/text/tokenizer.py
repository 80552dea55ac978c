"""Byte-level BPE: any text to ids and back, without loss.

Qwen2's pre-tokenizer (digits one by one) reads the text, so that llama.cpp, which knows it by
name, gives the same ids. For training alone each Han character is set apart first: no entry is
spent on a pair of characters, see `docs/lab-book.md`.

Tokenizers of other makers are taken as they are where they are byte-level BPE (GPT-2's way:
Qwen, Llama 3, SmolLM), and refused by name else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from cygnet.errors import UserError
from cygnet.files import read_json, write_atomic, write_json
from cygnet.progress import say

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
END_OF_DOCUMENT, IM_START, IM_END = SPECIAL_TOKENS[:3]
CHUNK_TEXTS = 1000
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
_ENDS_OF_DOCUMENT = (END_OF_DOCUMENT, "<|end_of_text|>", "</s>")
"""Qwen's and ours, Llama 3's, and that of many others; the first that a tokenizer has is meant."""

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's, from the tokenizer.json of Qwen/Qwen2.5-0.5B."""

_TOKENIZER_FILE = "tokenizer.json"
_TEMPLATE_FILE = "chat_template.jinja"
_CONFIG_FILE = "tokenizer_config.json"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """Text to token ids and back. Control tokens spelt in a text are ordinary text, always.

    Attributes:
        chat_template: Jinja; empty where a foreign tokenizer has none.
        special_ids: control tokens and their ids.
        vocab_size: the highest id, plus one.
        eos_id: ends a document.
        im_end_id: ends a turn of a conversation.
        im_start_id: begins one, where the tokenizer speaks ChatML.
        config: what tokenizer_config.json says.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        chat_template: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._source = inner
        self._inner = _strict(inner)
        added = sorted(inner.get_added_tokens_decoder().items())
        self.special_ids = {token.content: index for index, token in added}
        self.vocab_size: int = max(inner.get_vocab().values()) + 1
        self.config = dict(config or self._own_config())
        ends = [token for token in _ENDS_OF_DOCUMENT if token in self.special_ids]
        named = self.named_tokens.get("eos_token")
        turn_end = IM_END if IM_END in self.special_ids else named
        if turn_end not in self.special_ids:
            raise UserError(
                f"tokenizer: has neither {IM_END} nor an eos_token among its control tokens, so "
                "that nothing could end an answer; train one with Cygnet"
            )
        self.im_end_id = self.special_ids[turn_end]
        self.im_start_id = self.special_ids.get(IM_START)
        self.eos_id = self.special_ids[ends[0]] if ends else self.im_end_id
        if chat_template is None:
            speaks_ours = {IM_START, IM_END} <= self.special_ids.keys()
            chat_template = default_chat_template() if speaks_ours else ""
        self.chat_template = chat_template

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Read a tokenizer folder.

        Raises:
            UserError: there is none, it cannot be read, or it is of a kind that Cygnet cannot
                take exactly.
        """
        path = Path(folder) / _TOKENIZER_FILE
        if not path.is_file():
            raise UserError(f"{folder}: no {_TOKENIZER_FILE}; give a tokenizer or model folder")
        try:
            text = path.read_text(encoding="utf-8")
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{path}: damaged ({error}); train the tokenizer again") from error
        if reason := _unsupported(json.loads(text)):
            raise UserError(f"{path}: {reason}")
        config = read_json(path.with_name(_CONFIG_FILE))
        in_config = config.pop("chat_template", None)
        if isinstance(in_config, list):  # of several named templates
            named = {entry.get("name"): entry.get("template") for entry in in_config}
            in_config = named.get("default")
        template = path.with_name(_TEMPLATE_FILE)
        if template.is_file():
            in_config = template.read_text(encoding="utf-8")
        return cls(inner, in_config, config)

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` to a folder.

        transformers' `AutoTokenizer` loads it, offline, with the same ids. Other files of the
        folder stay as they are.
        """
        write_atomic(Path(folder) / _TOKENIZER_FILE, self._source.to_str(pretty=True))
        if self.chat_template:
            write_atomic(Path(folder) / _TEMPLATE_FILE, self.chat_template)
        write_json(Path(folder) / _CONFIG_FILE, self.config)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text.

        A lone surrogate is no Unicode text (UTF-8 cannot hold it) and is read as U+FFFD.
        """
        return self._inner.encode(_unicode(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text; all cores work at it."""
        encoded = self._inner.encode_batch_fast([*map(_unicode, texts)], add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Return the text of ids; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: token ids.
            skip_special: leave control tokens out instead of spelling them.
        """
        table = self._bytes
        special = set(self.special_ids.values()) if skip_special else set()
        return b"".join(table[i] for i in ids if i not in special).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for; half a character is possible."""
        return self._bytes[token_id]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the tokenizer.json with sorted keys: equal if and only if the ids are."""
        canonical = json.dumps(self.description(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def vocabulary_hash(self) -> str:
        """SHA-256 of the entries in the order of their ids, whatever else the file says."""
        entries = sorted((index, token) for token, index in self._source.get_vocab().items())
        return hashlib.sha256(json.dumps(entries).encode()).hexdigest()

    def description(self) -> dict[str, Any]:
        """Return what tokenizer.json says."""
        return json.loads(self._source.to_str())

    @cached_property
    def named_tokens(self) -> dict[str, str]:
        """Control tokens under the names that templates use: `bos_token`, `eos_token`, ..."""
        found = {}
        for name, value in self.config.items():
            text = value.get("content") if isinstance(value, Mapping) else value
            if name.endswith("_token") and isinstance(text, str):
                found[name] = text
        return found

    @cached_property
    def begins_texts(self) -> bool:
        """Whether transformers and llama.cpp put a control token before each plain text.

        Cygnet does not: there, control tokens come from the chat template alone.
        """
        return len(self._source.encode("").ids) > 0

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Finds the control tokens of a text, the longest first; its group is the token."""
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @cached_property
    def control_beginning(self) -> re.Pattern[str]:
        """Finds each character that a control token may begin with."""
        first_characters = "".join(sorted({token[0] for token in self.special_ids}))
        return re.compile(f"([{re.escape(first_characters)}])")

    @cached_property
    def _bytes(self) -> list[bytes]:
        of_character = byte_of_character()
        table = [b""] * self.vocab_size
        added = self._inner.get_added_tokens_decoder()
        for token, index in self._inner.get_vocab().items():
            known = index not in added
            table[index] = bytes(of_character[c] for c in token) if known else token.encode()
        return table

    def _own_config(self) -> dict[str, Any]:
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": False,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "bos_token": None,
            "eos_token": IM_END,
            "pad_token": END_OF_DOCUMENT,
            "unk_token": None,
            "added_tokens_decoder": {
                str(index): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for token, index in self.special_ids.items()
            },
        }


def train_tokenizer(texts: Iterable[str], vocab_size: int = 6400) -> Tokenizer:
    """Learn a vocabulary: the control tokens (ids 0 to 8), the 256 bytes, then merges.

    The same texts in the same order give the same tokenizer. A small corpus may hold fewer pairs
    than asked for; the vocabulary is then smaller, which is said.

    Raises:
        UserError: `vocab_size` has no room for the bytes, or there is no text.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(f"vocab_size: {vocab_size} is under {MIN_VOCAB_SIZE} (256 bytes + control)")
    num_characters = 0

    def counted() -> Iterator[str]:
        nonlocal num_characters
        for text in texts:
            num_characters += len(text)
            yield _unicode(text)

    inner = tokenizers.Tokenizer(models.BPE())
    read = [
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    han = pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([han, *read])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    inner.train_from_iterator(counted(), trainer)
    inner.pre_tokenizer = pre_tokenizers.Sequence(read)
    inner.decoder = decoders.ByteLevel()
    if not num_characters:
        raise UserError("tokenizer: no text to learn from; give a file with text in it")
    if inner.get_vocab_size() < vocab_size:
        say(f"tokenizer: {inner.get_vocab_size()} entries, not {vocab_size}: the text is too short")
    return Tokenizer(inner)


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of up to `size` items, in order."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def default_chat_template() -> str:
    """Return the chat template that new tokenizers get."""
    return (Path(__file__).parent / _TEMPLATE_FILE).read_text(encoding="utf-8")


def _strict(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Return a tokenizer to which every control token that a text spells is ordinary text."""
    if not all(token.special for token in inner.get_added_tokens_decoder().values()):
        # Only what is marked as special can be switched off, and Qwen3 leaves <think> unmarked.
        values = json.loads(inner.to_str())
        for token in values["added_tokens"]:
            token["special"] = True
        inner = tokenizers.Tokenizer.from_str(json.dumps(values))
    inner.encode_special_tokens = True
    return inner


def _unsupported(values: Mapping[str, Any]) -> str | None:
    """Say why a tokenizer.json cannot be taken exactly, or None."""
    model, decoder = values.get("model") or {}, values.get("decoder") or {}
    if model.get("type") != "BPE":
        return f"a tokenizer of type {model.get('type')}; Cygnet reads byte-level BPE alone"
    if model.get("byte_fallback") or decoder.get("type") != "ByteLevel":
        return (
            "a BPE in SentencePiece's way (byte fallback, as in Llama 2, Mistral and Gemma); "
            "Cygnet reads byte-level BPE alone (as in Qwen, Llama 3 and SmolLM)"
        )
    for token in values.get("added_tokens") or []:
        spelt = token["content"]
        if any(token.get(name) for name in ("lstrip", "rstrip", "single_word")):
            return f"the control token {spelt!r} takes the spaces beside it away"
        if len(spelt) < 2 or not spelt.strip():
            return f"the added token {spelt!r} is ordinary text, which no mark can tell apart"
    return None


def _unicode(text: str) -> str:
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def byte_of_character() -> dict[str, int]:
    """Return the byte behind each of the 256 characters that byte-level BPE spells bytes with.

    Radford et al. 2019 (GPT-2, `bytes_to_unicode`): printable bytes stand for themselves, the
    others are moved up to U+0100 and on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(moved)}
