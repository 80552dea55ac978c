"""What a model's probabilities say: bits per byte, likelihood of answers, preference.

Each function returns one entry per document, conversation or pair, so that a figure can be given
with its interval (`cygnet.evals.bootstrap`). The same inputs give the same figures, and a
sequence scores the same whatever it is batched with.

Shapes: B rows, T tokens, D hidden width, M counted positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cygnet.model.transformer import Transformer
from cygnet.progress import progress
from cygnet.text.chat import encode_chat, encode_chats
from cygnet.text.loader import IGNORE
from cygnet.text.tokenize import encode_documents

if TYPE_CHECKING:
    from cygnet.text.tokenizer import Tokenizer

BATCH_TOKENS = 8192
"""Tokens, padding included, that go through the model at once."""
CHUNK_POSITIONS = 128
"""Positions whose logits are held at once: few enough to stay in the processor's cache."""
Messages = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Scored:
    """A token sequence; `counted[i]` asks for log p(ids[i] | ids before it). The first is given."""

    ids: list[int]
    counted: list[bool]


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """Log-likelihood (nats, at most 0) of the assistant's tokens of one conversation."""

    log_likelihood: float
    num_tokens: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class PreferenceScore:
    """Log-likelihood in nats of both answers of a pair, each with its number of tokens."""

    chosen: AnswerScore
    rejected: AnswerScore

    @property
    def margin(self) -> float:
        """How much more likely the chosen answer is, in nats per token of each."""
        return _mean(self.chosen) - _mean(self.rejected)


@torch.no_grad()
def log_likelihoods(
    model: Transformer, sequences: Sequence[Scored], title: str = "scoring"
) -> list[float]:
    """Return the summed log-probability (nats) of each sequence's counted tokens.

    Sequences of similar length share a right-padded batch; attention is causal, so padding is
    never seen. Activations are of the model's compute dtype, the softmax is float32.

    Args:
        model: its context must hold each sequence.
        sequences: what to score.
        title: shown by the progress bar.
    """
    device = model.output_weight.device
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i].ids), i))
    totals = [0.0] * len(sequences)
    with progress(title, sum(len(s.ids) for s in sequences)) as advance:
        for batch in _batches(order, sequences):
            tokens_BT, labels_BT = _padded([sequences[i] for i in batch])
            hidden_BTD = model(tokens_BT.to(device))
            row_M, _ = (labels_BT != IGNORE).nonzero(as_tuple=True)
            wanted = (labels_BT != IGNORE).to(device)
            log_probs_M = _log_probs(model, hidden_BTD[wanted], labels_BT.to(device)[wanted])
            sums = torch.zeros(len(batch), dtype=torch.float64)
            sums.index_add_(0, row_M, log_probs_M.double().cpu())
            for i, value in zip(batch, sums.tolist(), strict=True):
                totals[i] = value
            advance(sum(len(sequences[i].ids) for i in batch))
    return totals


def bits_per_byte(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    context: int | None = None,
    title: str = "bits per byte",
) -> list[tuple[float, int]]:
    """Return (bits, UTF-8 bytes) of each document.

    A document is its text's tokens and the end-of-document token. The end-of-document token also
    stands before it as the start context, so that every byte and the end are paid for, and the
    bits are what a lossless compressor with this model would write. A document longer than the
    context is cut into windows; each begins with the last token of the window before, as given,
    so that no token is left out or counted twice.

    Args:
        model: any model of the tokenizer's vocabulary.
        tokenizer: the one that the model was trained with.
        texts: documents.
        context: tokens in a window; none takes the longest that the model is declared for.
        title: shown by the progress bar.
    """
    window = min(context or model.config.max_position, model.config.max_position)
    pieces: list[Scored] = []
    owners: list[int] = []
    for number, whole in enumerate(encode_documents(tokenizer, texts)):
        for start in range(0, len(whole) - 1, window):
            piece = whole[start : start + window + 1]
            pieces.append(Scored(piece, [False] + [True] * (len(piece) - 1)))
            owners.append(number)
    bits = [0.0] * len(texts)
    for owner, nats in zip(owners, log_likelihoods(model, pieces, title), strict=True):
        bits[owner] -= nats / math.log(2)
    return [(b, len(text.encode("utf-8", "replace"))) for b, text in zip(bits, texts, strict=True)]


def answer_log_likelihood(
    model: Transformer,
    tokenizer: Tokenizer,
    conversations: Sequence[Messages],
    title: str = "answers",
) -> list[AnswerScore]:
    """Return the log-likelihood of what the assistant says in each conversation.

    Counted are the tokens of its answers and the closing token of each; bytes are those of the
    answers. What lies beyond the model's context is left out, tokens and bytes alike.
    """
    sequences = [
        _cut(model, chat.ids, chat.is_label) for chat in encode_chats(tokenizer, conversations)
    ]
    return _answer_scores(model, tokenizer, sequences, title)


def preference(
    model: Transformer,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[Messages, str, str]],
    title: str = "preference",
) -> list[PreferenceScore]:
    """Return how likely the model finds both answers of each pair, given the prompt.

    Args:
        model: any model of the tokenizer's vocabulary.
        tokenizer: the one that the model was trained with.
        pairs: (prompt messages, chosen answer, rejected answer).
        title: shown by the progress bar.
    """
    sequences = []
    for prompt, chosen, rejected in pairs:
        num_prompt_tokens = len(encode_chat(tokenizer, prompt, add_generation_prompt=True).ids)
        for answer in (chosen, rejected):
            chat = encode_chat(tokenizer, [*prompt, {"role": "assistant", "content": answer}])
            counted = [label and i >= num_prompt_tokens for i, label in enumerate(chat.is_label)]
            sequences.append(_cut(model, chat.ids, counted))
    scores = _answer_scores(model, tokenizer, sequences, title)
    return [PreferenceScore(*both) for both in zip(scores[::2], scores[1::2], strict=True)]


def _answer_scores(
    model: Transformer, tokenizer: Tokenizer, sequences: Sequence[Scored], title: str
) -> list[AnswerScore]:
    scores = []
    for sequence, value in zip(sequences, log_likelihoods(model, sequences, title), strict=True):
        counted = [i for i, wanted in zip(sequence.ids, sequence.counted, strict=True) if wanted]
        spelt = [i for i in counted if i != tokenizer.im_end_id]
        num_bytes = sum(len(tokenizer.token_bytes(i)) for i in spelt)
        scores.append(AnswerScore(value, len(counted), num_bytes))
    return scores


def _cut(model: Transformer, ids: Sequence[int], counted: Sequence[bool]) -> Scored:
    end = model.config.max_position + 1
    return Scored(list(ids[:end]), list(counted[:end]))


def _mean(score: AnswerScore) -> float:
    return score.log_likelihood / max(score.num_tokens, 1)


def _batches(order: Sequence[int], sequences: Sequence[Scored]) -> list[list[int]]:
    """Group the ordered (short to long) sequences so that none exceeds BATCH_TOKENS padded."""
    batches: list[list[int]] = []
    for i in order:
        longest = len(sequences[i].ids)
        if not batches or (len(batches[-1]) + 1) * longest > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(i)
    return batches


def _padded(sequences: Sequence[Scored]) -> tuple[Tensor, Tensor]:
    """Return tokens (B, T) and next-token labels (B, T), both int64, on the CPU."""
    num_tokens = max(max(len(s.ids) for s in sequences) - 1, 1)
    tokens_BT = torch.zeros(len(sequences), num_tokens, dtype=torch.int64)
    labels_BT = torch.full_like(tokens_BT, IGNORE)
    for row, sequence in enumerate(sequences):
        ids = torch.tensor(sequence.ids, dtype=torch.int64)
        counted = torch.tensor(sequence.counted, dtype=torch.bool)
        tokens_BT[row, : len(ids) - 1] = ids[:-1]
        labels_BT[row, : len(ids) - 1] = torch.where(counted[1:], ids[1:], IGNORE)
    return tokens_BT, labels_BT


def _log_probs(model: Transformer, hidden_MD: Tensor, labels_M: Tensor) -> Tensor:
    parts = [
        -F.cross_entropy(model.logits(hidden), labels, reduction="none")
        for hidden, labels in zip(
            hidden_MD.split(CHUNK_POSITIONS), labels_M.split(CHUNK_POSITIONS), strict=True
        )
    ]
    return torch.cat(parts)
