"""Speculative decoding (Leviathan et al. 2023, Fast Inference from Transformers, algorithm 1).

A small draft model proposes tokens one by one and the model judges all of them in one step. What
comes out has exactly the model's own distribution, and at temperature 0 exactly its text.

Shapes: R rows, G proposals, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cygnet.generate.row import Row
from cygnet.generate.runner import Part, Runner
from cygnet.generate.sampling import Columns, pick, probabilities

DRAWS_PER_TOKEN = 3
"""Random numbers that a token takes: one to propose it, one to judge it, one to replace it."""


class Speculation:
    """A draft model beside the model.

    Args:
        draft: of the same vocabulary, its slots laid out as the model's.
        num_proposals: tokens that it proposes in each step.
        num_outputs: ids that may be chosen.
    """

    def __init__(self, draft: Runner, num_proposals: int, num_outputs: int) -> None:
        self.draft = draft
        self.num_proposals = num_proposals
        self._num_outputs = num_outputs

    def read(self, rows: Sequence[Row], room: int) -> None:
        """Let the draft model read what the model has read of each row, `room` tokens at most."""
        parts = []
        for row in rows:
            slot = row.slot
            tokens = row.tokens[slot.draft_filled : slot.num_filled][:room]
            if tokens:
                parts.append(Part(slot.index, slot.draft_filled, tokens))
                slot.draft_filled += len(tokens)
                room -= len(tokens)
        if parts:
            self.draft.prefill(parts)

    def propose(self, rows: Sequence[Row], columns: Columns) -> tuple[list[list[int]], Tensor]:
        """Let the draft model go on from each row, which stands in the slot of its index.

        Returns:
            The proposals, R rows of G, and the distributions they were drawn from, (R, G, V).
        """
        parts = [
            Part(row.slot.index, row.slot.draft_filled, row.tokens[row.slot.draft_filled :])
            for row in rows
        ]
        logits_RV = self.draft.prefill(parts)[:, : self._num_outputs]
        proposals: list[list[int]] = [[] for _ in rows]
        distributions = []
        for index in range(self.num_proposals):
            distribution_RV = probabilities(logits_RV, columns)
            distributions.append(distribution_RV)
            chosen = pick(distribution_RV, _draws(rows, index, 0)).tolist()
            for own, token in zip(proposals, chosen, strict=True):
                own.append(token)
            if index + 1 < self.num_proposals:
                starts = [len(row.tokens) + index for row in rows]
                logits_RV = self.draft.decode([[token] for token in chosen], starts)[:, 0]
                logits_RV = logits_RV[:, : self._num_outputs]
        for row in rows:
            row.slot.draft_filled = len(row.tokens) + self.num_proposals - 1
        return proposals, torch.stack(distributions, dim=1)

    def judge(
        self,
        rows: Sequence[Row],
        columns: Columns,
        proposals: Sequence[Sequence[int]],
        proposed_RGV: Tensor,
        logits_RGV: Tensor,
    ) -> list[list[int]]:
        """Return each row's next tokens: the proposals that hold, and one of the model's own.

        Args:
            rows, columns: as in `propose`.
            proposals, proposed_RGV: what it returned.
            logits_RGV: the model's, (R, G + 1, V): behind the last token and behind each proposal.
        """
        G = self.num_proposals
        own_RGV = torch.stack(
            [probabilities(logits_RGV[:, index], columns) for index in range(G + 1)], dim=1
        )
        replaced_RGV = (own_RGV[:, :G] - proposed_RGV).clamp(min=0)
        # Where the two are equal nothing is left, and nothing is ever refused.
        replaced_RGV = torch.cat([replaced_RGV, own_RGV[:, G:]], dim=1)
        replacements = [
            pick(replaced_RGV[:, index], _draws(rows, index, 2)).tolist() for index in range(G + 1)
        ]
        ids_RG1 = torch.tensor(proposals, device=logits_RGV.device)[..., None]
        ratio_RG = (own_RGV[:, :G].gather(2, ids_RG1) / proposed_RGV.gather(2, ids_RG1)).squeeze(2)
        judged = torch.stack([_draws(rows, index, 1) for index in range(G)], dim=1)
        is_held = (judged.to(ratio_RG.device) < ratio_RG).tolist()
        found = []
        for place, (own, held) in enumerate(zip(proposals, is_held, strict=True)):
            num_held = held.index(False) if False in held else G
            found.append([*own[:num_held], replacements[num_held][place]])
        return found


def _draws(rows: Sequence[Row], offset: int, which: int) -> Tensor:
    """Return each row's random number for its `offset`-th token from now, (R,) float64."""
    found = []
    for row in rows:
        at = DRAWS_PER_TOKEN * (len(row.answer.token_ids) + offset) + which
        # Beyond the answer's longest length nothing is kept, so that any number does.
        found.append(row.draws[at] if at < len(row.draws) else 0.5)
    return torch.tensor(found, dtype=torch.float64)
