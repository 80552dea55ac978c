"""What a model answers to a few fixed prompts while it trains.

Every process computes alike, whole rows in each forward pass and no cache: so the same few lines
serve a model that is whole and one that is cut in any way. An answer is greedy and its length
fixed, and no random number is drawn: training goes on as if nothing had been asked.

Shapes: B prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from cygnet.model.transformer import Transformer
from cygnet.text.shards import ShardReader
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.stage import Call

NUM_PROMPTS = 4
OPENING_TOKENS = 16
"""What is given of a document that has no labels."""
ANSWER_TOKENS = 32
MAX_PROMPT_TOKENS = 96
"""Longer ones are passed over: with every token of an answer the prompt is computed again."""


class Prompts:
    """A few prompts, and how a model is asked to go on from them.

    Args:
        tokenizer: of the model.
        candidates: prompts as ids, of which the first few that are short enough are taken.
        room: tokens that a prompt and its answer may have together.
    """

    def __init__(
        self, tokenizer: Tokenizer, candidates: Iterable[Sequence[int]], room: int
    ) -> None:
        self.tokenizer = tokenizer
        longest = min(MAX_PROMPT_TOKENS, room - 1)
        self.prompts: list[list[int]] = []
        for ids in candidates:
            if 0 < len(ids) <= longest:
                self.prompts.append(list(ids))
            if len(self.prompts) == NUM_PROMPTS:
                break
        self.num_new = min(ANSWER_TOKENS, room - max(map(len, self.prompts), default=0))

    def answered(self, call: Call) -> list[dict[str, Any]]:
        """Return rows {"prompt", "answer"}; all processes of a run must ask alike.

        Args:
            call: returns `function(model, *arguments)`, the same in every process.
        """
        if not self.prompts:
            return []
        width = max(map(len, self.prompts)) + self.num_new
        tokens_BT = torch.zeros(len(self.prompts), width, dtype=torch.int64)
        for row, prompt in enumerate(self.prompts):
            tokens_BT[row, : len(prompt)] = torch.tensor(prompt)
        ends_B = torch.tensor([len(prompt) for prompt in self.prompts])
        rows_B = torch.arange(len(self.prompts))
        for _ in range(self.num_new):
            # What lies behind a row's end is later than it, and so unseen.
            given_BT = tokens_BT[:, : int(ends_B.max())]
            chosen = call(likeliest_tokens, given_BT, ends_B - 1, self.tokenizer.vocab_size)
            tokens_BT[rows_B, ends_B] = torch.tensor(chosen)
            ends_B += 1
        return [
            {
                "prompt": self.tokenizer.decode(prompt),
                "answer": self._text(tokens_BT[row, len(prompt) : int(ends_B[row])].tolist()),
            }
            for row, prompt in enumerate(self.prompts)
        ]

    def _text(self, ids: list[int]) -> str:
        ends = (self.tokenizer.im_end_id, self.tokenizer.eos_id)
        length = next((at for at, token in enumerate(ids) if token in ends), len(ids))
        return self.tokenizer.decode(ids[:length])


def likeliest_tokens(
    model: Transformer, tokens_BT: Tensor, last_B: Tensor, vocab_size: int
) -> list[int]:
    """Return the likeliest token behind position `last_B` of each row.

    Args:
        model: may be cut; a part of it gives numbers of the right shape and no meaning.
        tokens_BT: (B, T) int64.
        last_B: (B,) int64 positions.
        vocab_size: of the tokenizer; a model may have more outputs.
    """
    tokens_BT = tokens_BT.to(next(model.parameters()).device)
    positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
    hidden_BTD = model(tokens_BT, positions_BT, torch.zeros_like(tokens_BT))
    rows_B = torch.arange(len(tokens_BT), device=tokens_BT.device)
    logits_BV = model.logits(hidden_BTD[rows_B, last_B.to(tokens_BT.device)])
    return logits_BV[:, :vocab_size].argmax(-1).tolist()


def held_out_prompts(tokenizer: Tokenizer, heldout: ShardReader | None, room: int) -> Prompts:
    """Return prompts from documents that lie evenly over held-out shards.

    Of a conversation all is given that comes before the assistant's first word, of a text without
    labels the beginning.

    Args:
        tokenizer: of the shards.
        heldout: none gives no prompts.
        room: see `Prompts`.
    """
    if heldout is None:
        return Prompts(tokenizer, [], room)
    count = heldout.num_documents
    # The first of each quarter, then the second of each, and so on.
    order = sorted(range(count), key=lambda number: number * NUM_PROMPTS % count)
    return Prompts(tokenizer, (_opening(tokenizer, heldout, number) for number in order), room)


def _opening(tokenizer: Tokenizer, reader: ShardReader, number: int) -> list[int]:
    ids, is_label = reader.document(number)
    if is_label is not None:
        first = int(is_label.argmax())
        return [] if not is_label[first] else ids[:first].tolist()
    given: list[int] = ids[: min(OPENING_TOKENS, len(ids) // 2)].tolist()
    while given and tokenizer.decode(given).endswith("\ufffd"):
        given.pop()  # half a character
    return given
