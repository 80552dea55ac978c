"""KTO (Ethayarajh et al. 2024): answers that are wanted or unwanted, each for itself.

How good an answer is depends on how far the model is from the reference at all: on z_0, the
divergence over answers to other prompts than their own. It is measured before each step, over the
whole batch and by all processes together, so that it is the same in every micro-batch.

Shapes: B rows, T positions, D = N documents of all rows, an answer each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cygnet.model.transformer import Transformer
from cygnet.stages.packed import documents_per_row, lay_out
from cygnet.stages.preference.answer_rows import (
    REFERENCE_ROWS,
    AnswerBatch,
    PackedAnswers,
    answer_log_probs,
    encode_answer,
    moved,
    spread_over_rows,
)
from cygnet.stages.preference.losses import kto_baseline, kto_loss
from cygnet.stages.preference.pair_stage import DpoStage
from cygnet.text.loader import Batch
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.parallel.group import gather, world

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LabelledBatch(AnswerBatch):
    """Rows of answers with labels, and what the loss needs to know of the whole batch."""

    desirable: Tensor
    """(B, most documents of a row) float32: 1 wanted, 0 not; NaN behind the last."""
    share: Tensor
    """(B,) float32: which share of the whole batch's answers is wanted."""
    baseline: Tensor
    """(B,) float32: z_0 of the whole batch."""
    BLANK: ClassVar[dict[str, float]] = {
        **AnswerBatch.BLANK, "desirable": math.nan, "share": 0, "baseline": 0,
    }  # fmt: skip


def as_answers(rows: Sequence[Row]) -> list[Row]:
    """Return rows {"prompt", "answer", "label"}; pairs become two of them."""
    answers: list[Row] = []
    for row in rows:
        if "label" in row:
            answers.append(row)
        else:
            kept = {name: value for name, value in row.items() if name != "chosen"}
            answers += [
                {**kept, "answer": row[side], "label": side == "chosen"}
                for side in ("chosen", "rejected")
            ]
    return answers


class LabelledRows(PackedAnswers):
    """Answers packed into rows, and beside each row the same with answers and prompts mismatched.

    Args:
        answers: rows {"prompt", "answer", "label"}.
        tokenizer: of the model.
        seq_len: positions in a row; longer answers are skipped and counted.

    Attributes:
        mismatched: (B, T) rows; row b holds the answers of row b, each to the prompt of another.
        desirable: (D,) float32, 1 or 0, in the order of the rows.
    """

    def __init__(self, answers: Sequence[Row], tokenizer: Tokenizer, seq_len: int) -> None:
        encoded = [[encode_answer(tokenizer, row["prompt"], row["answer"])] for row in answers]
        super().__init__(encoded, seq_len)
        self.desirable = torch.tensor(
            [float(answers[i]["label"]) for row in self.numbers for i in row]
        )
        self.mismatched = lay_out(
            [
                [
                    encode_answer(tokenizer, answers[i]["prompt"], answers[j]["answer"])
                    for i, j in mismatches(row, [answers[i]["prompt"] for i in row])
                ]
                for row in self.numbers
            ],
            seq_len,
        )


def mismatches(numbers: Sequence[int], prompts: Sequence[Any]) -> list[tuple[int, int]]:
    """Return (whose prompt, whose answer): a turn of the answers that leaves few with their prompt.

    Pairs that would be an answer to its own prompt, as both answers of a pair have one, are left
    out, so a row with a single prompt gives none.
    """
    count = len(numbers)
    turns = [
        [
            (numbers[at], numbers[(at + shift) % count])
            for at in range(count)
            if prompts[at] != prompts[(at + shift) % count]
        ]
        for shift in range(1, count)
    ]
    return max(turns, key=len, default=[])


def labelled_batch(rows: AnswerBatch, desirable: Tensor) -> LabelledBatch:
    """Put labels, (D,) in the order of the rows, beside rows of answers."""
    fields = {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)}
    return of_whole_batch(
        LabelledBatch(
            **fields,
            desirable=spread_over_rows(rows, desirable),
            share=torch.zeros(len(rows.tokens)),
            baseline=torch.zeros(len(rows.tokens)),
        ),
        baseline=0.0,
    )


def of_whole_batch(batch: LabelledBatch, baseline: float) -> LabelledBatch:
    """Return the batch with its own share of wanted answers and this z_0 in every row."""
    share = batch.desirable[~batch.desirable.isnan()].mean()
    return dataclasses.replace(
        batch,
        share=share.expand(len(batch.tokens)),
        baseline=torch.full((len(batch.tokens),), baseline),
    )


class KtoStage(DpoStage):
    """Packed answers with labels; an online stage, for z_0 depends on the model.

    Args:
        train, heldout: all answers, and the same rows with answers and prompts mismatched; the
            latter may hold none.
        arguments, named: as `DpoStage` takes them.
    """

    must_keep = False
    train: LabelledBatch
    heldout_pairs: LabelledBatch

    def __init__(
        self,
        train: tuple[LabelledBatch, AnswerBatch],
        heldout: tuple[LabelledBatch, AnswerBatch],
        *arguments: Any,
        **named: Any,
    ) -> None:
        super().__init__(train[0], heldout[0], *arguments, **named)
        self.mismatched, self.heldout_mismatched = train[1], heldout[1]
        self.baseline = 0.0

    def collect(self, number: int, policy: Callable[[], Transformer]) -> dict[str, float]:
        """Measure z_0 on the batch of the step, each process on its share of the rows."""
        rows = self.mismatched.take(torch.from_numpy(self._places(number)))
        each = -(-len(rows.tokens) // world().size)
        own = rows.rows(world().rank * each, (world().rank + 1) * each)
        found = gather(_ratios(policy(), own, self.vocab_size))
        self.baseline = kto_baseline(sum(ratio for ratio, _ in found), sum(n for _, n in found))
        return {"kl_baseline": self.baseline}

    def judge(self, policy: Callable[[], Transformer]) -> dict[str, float]:
        """Return nothing: `heldout` measures all there is."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return nothing: z_0 is measured anew before each step."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take nothing."""

    def batch(self, number: int) -> LabelledBatch:
        """Return the rows of one step, a function of the number and of what was last collected."""
        rows = self.train.take(torch.from_numpy(self._places(number)))
        return of_whole_batch(rows, self.baseline)

    def weight(self, batch: Batch) -> int:
        """Return the number of answers."""
        return int(documents_per_row(batch).sum())

    def loss(self, model: Transformer, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss of the answers, and summed metrics."""
        assert isinstance(rows, LabelledBatch)
        config = self.config
        log_probs, counts = answer_log_probs(model, rows, self.vocab_size)
        reference = rows.reference[~rows.reference.isnan()]
        wanted = rows.desirable[~rows.desirable.isnan()]
        per_row = documents_per_row(rows)
        losses, over_baseline = kto_loss(
            log_probs, reference, wanted > 0, rows.baseline.repeat_interleave(per_row),
            config.beta or 0.0, config.desirable_weight, config.undesirable_weight,
        )  # fmt: skip
        means = log_probs / counts
        total = losses.sum()
        if config.sft_weight:
            total = total - config.sft_weight * (means * wanted).sum()
        # The engine divides by the number of all answers; these are means over some of them, and
        # no number where there are none.
        share = rows.share.repeat_interleave(per_row)
        chosen, rejected = wanted / share, (1 - wanted) / (1 - share)
        reward = (config.beta or 0.0) * (log_probs - reference)
        metrics = {
            "preference_loss": losses,
            "accuracy": ((over_baseline > 0) == (wanted > 0)).float(),
            "margin": reward * (chosen - rejected),
            "chosen_log_prob": means * chosen,
            "rejected_log_prob": means * rejected,
            "chosen_reward": reward * chosen,
            "rejected_reward": reward * rejected,
            "chosen_length": counts * chosen,
            "rejected_length": counts * rejected,
            "kl": moved(log_probs, reference, counts),
        }
        return total, {name: value.detach().sum() for name, value in metrics.items()}

    def _heldout_rows(self, model: Transformer) -> LabelledBatch:
        if not len(self.heldout_pairs.tokens):
            return self.heldout_pairs
        baseline = kto_baseline(*_ratios(model, self.heldout_mismatched, self.vocab_size))
        return of_whole_batch(self.heldout_pairs, baseline)


@torch.no_grad()
def _ratios(model: Transformer, rows: AnswerBatch, vocab_size: int | None) -> tuple[float, int]:
    """Return the sum of log(model / reference) over all documents of rows, and their number."""
    total, count = 0.0, 0
    for start in range(0, len(rows.tokens), REFERENCE_ROWS):
        part = rows.rows(start, start + REFERENCE_ROWS).to(next(model.parameters()).device)
        log_probs, _ = answer_log_probs(model, part, vocab_size)
        total += float((log_probs - part.reference[~part.reference.isnan()]).sum())
        count += len(log_probs)
    return total, count
