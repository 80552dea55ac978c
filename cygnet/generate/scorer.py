"""What a reward model thinks of conversations.

Shapes: B conversations, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from cygnet.errors import UserError
from cygnet.export.architecture import read_notes
from cygnet.export.huggingface import find_model, load_scorer
from cygnet.messages import Message
from cygnet.model.scoring import ScoringTransformer
from cygnet.text.chat import encode_chat
from cygnet.text.tokenizer import Tokenizer

TOKENS_AT_ONCE = 8192


class Scorer:
    """A reward model with its tokenizer.

    Args:
        model: gives each token a score; that of a conversation's last token counts.
        tokenizer: of the model.
        max_tokens: longer conversations lose their first turns; none takes the model's context.

    Raises:
        UserError: `max_tokens` is longer than the model's context.
    """

    def __init__(
        self, model: ScoringTransformer, tokenizer: Tokenizer, max_tokens: int | None = None
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_tokens = max_tokens or model.config.max_position
        if self.max_tokens > model.config.max_position:
            raise UserError(
                f"{max_tokens} tokens a conversation: the model's context has only "
                f"{model.config.max_position}"
            )

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Scorer:
        """Load a folder of `cygnet reward`; it reads as many tokens as it learnt with.

        Raises:
            UserError: it is no reward model.
        """
        model, tokenizer = load_scorer(folder)
        learnt = read_notes(find_model(folder)).get("reward", {})
        return cls(model.to(device), tokenizer, learnt.get("max_tokens"))

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Return a score for each conversation; more is better.

        Raises:
            UserError: a conversation cannot be rendered, or not even its last turn fits.
        """
        scores: list[float] = []
        for number, score in enumerate(self.scores_of_readable(conversations)):
            if score is None:
                raise UserError(
                    f"conversation {number}: its last turn alone is longer than the "
                    f"{self.max_tokens} tokens that the reward model reads"
                )
            scores.append(score)
        return scores

    def scores_of_readable(self, conversations: Sequence[Sequence[Message]]) -> list[float | None]:
        """Return a score for each conversation; none where not even its last turn fits."""
        encoded = [fitting_ids(self.tokenizer, chat, self.max_tokens) for chat in conversations]
        found = iter(self.scores_of_ids([ids for ids in encoded if ids is not None]))
        return [None if ids is None else next(found) for ids in encoded]

    @torch.no_grad()
    def scores_of_ids(self, encoded: Sequence[Sequence[int]]) -> list[float]:
        """Return a score for each list of ids, read at its last."""
        device = self.model.output_weight.device
        found = [0.0] * len(encoded)
        for places in _alike(encoded):
            lengths = torch.tensor([len(encoded[place]) for place in places])
            tokens_BT = torch.zeros(len(places), int(lengths.max()), dtype=torch.int64)
            for row, place in enumerate(places):
                tokens_BT[row, : len(encoded[place])] = torch.tensor(encoded[place])
            # Nothing looks ahead, so what pads a row behind its end changes nothing before it.
            hidden = self.model(tokens_BT.to(device))
            last = hidden[torch.arange(len(places)), lengths.to(device) - 1]
            for place, score in zip(places, self.model.scores(last).tolist(), strict=True):
                found[place] = score
        return found


def fitting_ids(
    tokenizer: Tokenizer, messages: Sequence[Message], max_tokens: int
) -> list[int] | None:
    """Return a conversation's ids as the template renders it; none if its last turn is too long.

    A longer one loses as many of its first turns as it must; what is kept begins with a user's
    message, behind the system's if there is one.
    """
    ids = encode_chat(tokenizer, messages).ids
    if len(ids) <= max_tokens:
        return ids
    system = list(messages[:1]) if messages[0]["role"] == "system" else []
    starts = [
        place
        for place, message in enumerate(messages)
        if message["role"] == "user" and place > len(system)
    ]
    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        kept = [*system, *messages[starts[middle] :]]
        if len(encode_chat(tokenizer, kept).ids) <= max_tokens:
            high = middle
        else:
            low = middle + 1
    if low == len(starts):
        return None
    return encode_chat(tokenizer, [*system, *messages[starts[low] :]]).ids


def _alike(encoded: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return places in groups of about one length, so that little is padded."""
    groups: list[list[int]] = []
    for place in sorted(range(len(encoded)), key=lambda place: len(encoded[place])):
        if groups and (len(groups[-1]) + 1) * len(encoded[place]) <= TOKENS_AT_ONCE:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups
