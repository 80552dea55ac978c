"""Answers that keep to a JSON schema or a regular expression, through llguidance.

Before each token the library says which tokens the grammar allows; the others' logits become
minus infinity. docs/decisions.md says why llguidance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cygnet.errors import UserError, require
from cygnet.text.tokenizer import Tokenizer

WHITE_SPACE = r"(\n {0,32}| )?"
"""Between the parts of JSON; any at all would let a weak model write it for ever."""


class Grammars:
    """Makes grammars for one tokenizer.

    Raises:
        UserError: llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._library = require("llguidance", "serve")
        self.vocab_size = tokenizer.vocab_size
        self._special_ids = tokenizer.special_ids
        wrapped = self._library.TokenizerWrapper(_Vocabulary(tokenizer))
        ends = [tokenizer.im_end_id, tokenizer.eos_id]
        self._ends = sorted({*ends})
        self._tokenizer = self._library.LLTokenizer(wrapped, eos_token=self._ends)

    def json_schema(self, schema: Mapping[str, Any] | str) -> Grammar:
        """Return the grammar of all JSON that a schema allows, on one line or indented.

        Raises:
            UserError: it is no schema, or one that llguidance cannot follow.
        """
        make = partial(
            self._library.LLMatcher.grammar_from_json_schema,
            defaults={"whitespace_pattern": WHITE_SPACE},
        )
        return self._grammar(make, schema, "schema")

    def json_object(self) -> Grammar:
        """Return the grammar of any JSON object."""
        return self.json_schema({"type": "object"})

    def regex(self, pattern: str) -> Grammar:
        """Return the grammar of a regular expression, which the whole answer matches.

        Raises:
            UserError: the pattern is none that llguidance can follow.
        """
        return self._grammar(self._library.LLMatcher.grammar_from_regex, pattern, "pattern")

    def call(self, functions: Mapping[str, Mapping[str, Any]]) -> Grammar:
        """Return the grammar of a call of one of these functions, as chat templates spell it.

        Args:
            functions: the JSON schema of each one's arguments, by name.

        Raises:
            UserError: a schema that llguidance cannot follow, or the tokenizer has no tokens for
                calls.
        """
        ids = [self._special_ids.get(token) for token in ("<tool_call>", "</tool_call>")]
        if None in ids:
            raise UserError("tools: this model's tokenizer has no <tool_call>, so it calls nothing")
        either = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": schema},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name, schema in functions.items()
        ]
        # As templates write calls; any white space at all would let a weak model write it for ever.
        spacing = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        whole = either[0] if len(either) == 1 else {"anyOf": either}
        spelt = json.dumps({**whole, "x-guidance": spacing})
        lark = f'start: <[{ids[0]}]> "\\n" call "\\n" <[{ids[1]}]>\ncall: %json {spelt}'
        return self._grammar(self._library.LLMatcher.grammar_from_lark, lark, "tools")

    def _grammar(self, make: Any, source: Mapping[str, Any] | str, name: str) -> Grammar:
        text = source if isinstance(source, str) else json.dumps(source)
        try:
            compiled = make(text)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error
        grammar = Grammar(
            self._library, self._tokenizer, compiled, self.vocab_size, tuple(self._ends)
        )
        if problem := grammar.matcher().problem:
            raise UserError(f"{name}: {problem}")
        return grammar


@dataclass(frozen=True, eq=False)
class Grammar:
    """What answers must look like; each has a `matcher` of its own."""

    library: Any
    tokenizer: Any
    compiled: str
    vocab_size: int
    ends: tuple[int, ...]

    def matcher(self) -> Matcher:
        """Begin an answer."""
        return Matcher(self)


class Matcher:
    """Follows one answer."""

    def __init__(self, grammar: Grammar) -> None:
        self._inner = grammar.library.LLMatcher(grammar.tokenizer, grammar.compiled, log_level=0)
        self._grammar = grammar

    @property
    def problem(self) -> str | None:
        """Why the library gave up (a schema it cannot follow, a limit), in one line."""
        return " ".join(self._inner.get_error().split()) if self._inner.is_error() else None

    def allowed(self) -> Tensor:
        """Return which tokens may come next, (V,) bool; after a problem, the end alone."""
        mask = b"" if self.problem else self._inner.compute_bitmask()
        if self.problem:
            ended = torch.zeros(self._grammar.vocab_size, dtype=torch.bool)
            ended[list(self._grammar.ends)] = True
            return ended
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        return torch.from_numpy(bits[: self._grammar.vocab_size].astype(bool))

    def accept(self, token: int) -> None:
        """Take in the token that was chosen."""
        self._inner.consume_token(token)

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete and nothing can follow."""
        return self._inner.is_stopped()


class _Vocabulary:
    """A tokenizer in the form that llguidance reads (its `TokenizerWrapper`)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.im_end_id
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = list(tokenizer.special_ids.values())

    def __call__(self, text: bytes | str) -> list[int]:
        decoded = text.decode() if isinstance(text, bytes) else text
        return self._tokenizer.encode(decoded)
