"""Each preference loss is TRL's own code on the same log-probabilities."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from cygnet.stages.preference.losses import (
    dpo_loss,
    ipo_loss,
    kto_baseline,
    kto_loss,
    orpo_loss,
    simpo_loss,
)

PAIRS, PROMPT, LONGEST = 7, 3, 9
BETA = 0.3


def gathered(value: Any) -> Any:
    return value


ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"), gather_for_metrics=gathered, gather=gathered
)


class Answers:
    """Random log-probabilities of tokens, as a batch of TRL's and as sums and means."""

    def __init__(self, count: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(1, LONGEST + 1, (count,), generator=draw)
        at = torch.arange(PROMPT + LONGEST)
        self.mask = ((at >= PROMPT) & (at < PROMPT + self.lengths[:, None])).long()
        shape = (count, PROMPT + LONGEST - 1)
        every = -3 * torch.rand(shape, generator=draw, dtype=torch.float64)
        self.log_probs = every * self.mask[:, 1:]
        self.sums = self.log_probs.sum(1)
        self.means = self.sums / self.lengths
        self.reference = self.sums + torch.randn(count, generator=draw, dtype=torch.float64)

    def model(self, **_: Any) -> Any:
        return SimpleNamespace(
            log_probs=self.log_probs, entropy=self.log_probs, mean_logits=self.log_probs,
            is_top1=self.log_probs > -1,
        )  # fmt: skip


def shared(**settings: Any) -> Any:
    """What TRL's loss methods read of their trainer."""
    return SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=ACCELERATOR, aux_loss_enabled=False,
        precompute_ref_logps=True, beta=BETA, _metrics={"train": defaultdict(list)},
        _total_train_tokens=0, _tp_size=1, **settings,
    )  # fmt: skip


def of_dpo_trainer(answers: Answers, loss_type: str) -> Tensor:
    trainer = shared(
        ld_alpha=None, f_divergence_type="reverse_kl", loss_types=[loss_type], loss_weights=[1.0],
        label_smoothing=0.0, use_weighting=False,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.zeros_like(answers.mask),
        "attention_mask": torch.ones_like(answers.mask),
        "completion_mask": answers.mask,
        "ref_chosen_logps": answers.reference[:PAIRS],
        "ref_rejected_logps": answers.reference[PAIRS:],
    }
    return DPOTrainer._compute_loss(trainer, answers.model, inputs, False)


@pytest.fixture(params=range(3))
def answers(request: pytest.FixtureRequest) -> Answers:
    """The first half is chosen."""
    return Answers(2 * PAIRS, request.param)


def halves(values: Tensor) -> tuple[Tensor, Tensor]:
    return values[:PAIRS], values[PAIRS:]


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_dpo(answers: Answers) -> None:
    loss, _ = dpo_loss(*halves(answers.sums), *halves(answers.reference), BETA)
    same(loss.mean(), of_dpo_trainer(answers, "sigmoid"))


def test_length_normalised_dpo(answers: Answers) -> None:
    reference = answers.reference / answers.lengths
    loss, _ = dpo_loss(*halves(answers.means), *halves(reference), BETA)
    same(loss.mean(), of_dpo_trainer(answers, "sigmoid_norm"))


def test_length_normalised_ipo(answers: Answers) -> None:
    reference = answers.reference / answers.lengths
    loss, _ = ipo_loss(*halves(answers.means), *halves(reference), BETA)
    same(loss.mean(), of_dpo_trainer(answers, "ipo"))


def of_cpo_trainer(loss_type: str, chosen: Tensor, rejected: Tensor, **settings: Any) -> Tensor:
    trainer = SimpleNamespace(
        alpha=0.0, accelerator=ACCELERATOR, beta=BETA, loss_type=loss_type, **settings
    )
    return CPOTrainer.cpo_loss(trainer, chosen, rejected)[0]


def test_cdpo_and_ipo_of_whole_answers(answers: Answers) -> None:
    """TRL has both without a reference; the ratios to one take the place of what it is given."""
    both = (*halves(answers.sums), *halves(answers.reference))
    ratios = halves(answers.sums - answers.reference)
    smoothed = of_cpo_trainer("sigmoid", *ratios, label_smoothing=0.2)
    same(dpo_loss(*both, BETA, 0.2)[0], smoothed)
    same(ipo_loss(*both, BETA)[0], of_cpo_trainer("ipo", *ratios, label_smoothing=0.0))


def test_simpo(answers: Answers) -> None:
    loss, _ = simpo_loss(*halves(answers.means), BETA, 0.7)
    trl = of_cpo_trainer("simpo", *halves(answers.means), simpo_gamma=0.7, label_smoothing=0.0)
    same(loss, trl)


def test_orpo(answers: Answers) -> None:
    loss, log_odds = orpo_loss(*halves(answers.means), BETA)
    trainer = SimpleNamespace(beta=BETA, accelerator=ACCELERATOR)
    trl, _, _, _, mean_log_odds = ORPOTrainer.odds_ratio_loss(trainer, *halves(answers.means))
    same(loss, -trl)  # TRL subtracts it from the chosen answers' own loss
    same(log_odds.mean(), mean_log_odds)


def test_kto(answers: Answers) -> None:
    """TRL takes z_0 from mismatched answers, which here are other random ones."""
    mismatched = Answers(2 * PAIRS, 99)
    wanted = torch.rand(2 * PAIRS, generator=torch.Generator().manual_seed(1)) < 0.4
    trainer = shared(
        calculate_KL=True, loss_type="kto", desirable_weight=1.3, undesirable_weight=0.8,
        _compute_kl_logps=lambda model, batch: mismatched.sums,
    )  # fmt: skip
    ratios = mismatched.sums - mismatched.reference
    for sign in (1, -1):  # a mean above zero and one below
        inputs = {
            "input_ids": torch.zeros_like(answers.mask),
            "attention_mask": torch.ones_like(answers.mask),
            "completion_mask": answers.mask,
            "label": wanted,
            "ref_logps": answers.reference,
            "ref_KL_logps": mismatched.sums - sign * ratios,
        }
        trl = KTOTrainer._compute_loss(trainer, answers.model, inputs, False)
        z = kto_baseline(float((sign * ratios).sum()), len(ratios))
        loss, _ = kto_loss(
            answers.sums, answers.reference, wanted, torch.tensor(z).double(), BETA, 1.3, 0.8
        )
        same(loss.mean(), trl)
