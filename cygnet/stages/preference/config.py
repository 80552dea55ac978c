"""Which preference loss is taken, and its settings."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from cygnet.errors import UserError

Loss = Literal["dpo", "cdpo", "ipo", "simpo", "orpo", "kto"]


@dataclass(frozen=True)
class Usual:
    """What a loss takes where nothing is asked for."""

    beta: float
    sft_weight: float
    label_smoothing: float = 0.0


USUAL: dict[str, Usual] = {
    "dpo": Usual(0.1, 0.0),
    "cdpo": Usual(0.1, 0.0, 0.1),
    "ipo": Usual(0.1, 0.0),
    "simpo": Usual(2.0, 0.0),
    "orpo": Usual(0.1, 1.0),
    "kto": Usual(0.1, 0.0),
}
HAVE_SMOOTHING = ("dpo", "cdpo")
OF_MEANS = ("simpo", "orpo")
"""Losses that are of mean log-probabilities in any case."""


@dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """The preference loss.

    Raises:
        UserError: a value is out of its range, or the loss has no such setting.
    """

    loss: Loss = "dpo"
    """dpo; cdpo (some preferences may be wrong); ipo (no more than a set distance); simpo (mean
    log-probabilities, no reference); orpo (odds beside the chosen answers' own loss, no
    reference); kto (answers each with a label, or pairs taken apart)."""
    beta: float | None = None
    """How strongly the model is held to the reference: larger holds it closer. Of orpo the weight
    of the odds. None takes what is usual: 0.1, and 2 for simpo."""
    label_smoothing: float | None = None
    """Share of pairs whose preference may be wrong (cDPO, Mitchell 2023); none takes 0, and 0.1
    for cdpo."""
    simpo_gamma: float = 1.0
    """By how much simpo wants the chosen answer's reward to be the larger."""
    length_normalize: bool = False
    """Take log-probabilities per token in dpo, cdpo and ipo, so that length is no reward; beta
    must then be larger, such as 5. simpo and orpo always do."""
    reference: Literal["cached", "none"] = "cached"
    """Compute what the starting model gives each answer once and keep it, or do without: dpo, cdpo
    and ipo then take zeros, and simpo and orpo, which have no reference, do not report `kl`."""
    desirable_weight: float = 1.0
    """Weight of wanted answers in kto."""
    undesirable_weight: float = 1.0
    """Weight of unwanted answers in kto."""
    sft_weight: float | None = None
    """Weight of the chosen answers' own loss per token beside the preference (RPO, Pang et al.
    2024), which keeps them from becoming unlikely together with the rejected ones. None takes 0;
    for orpo 1, as its loss has that term."""

    def __post_init__(self) -> None:
        usual = self.resolved() if None in self._optional else self
        _, smoothing, _ = usual._optional
        for name in ("beta", "desirable_weight", "undesirable_weight"):
            if not 0 < getattr(usual, name) < math.inf:
                raise UserError(
                    f"preference: {name} is {getattr(usual, name)}; give a number above zero"
                )
        for name in ("sft_weight", "simpo_gamma"):
            if not 0 <= getattr(usual, name) < math.inf:
                raise UserError(f"preference: {name} is {getattr(usual, name)}; give zero or more")
        if smoothing is None or not 0 <= smoothing < 0.5:
            raise UserError(
                f"preference: label_smoothing is {smoothing}; give a number from 0 to below 0.5"
            )
        if smoothing and self.loss not in HAVE_SMOOTHING:
            raise UserError(f"preference: --loss {self.loss} has no label_smoothing; take cdpo")
        if self.loss == "kto" and (self.length_normalize or self.reference == "none"):
            raise UserError(
                "preference: --loss kto measures whole answers against a reference; leave out "
                "--length_normalize and --reference none"
            )

    @property
    def _optional(self) -> tuple[float | None, float | None, float | None]:
        return self.beta, self.label_smoothing, self.sft_weight

    def resolved(self) -> DpoConfig:
        """Return the settings with what is usual for the loss in every place left open."""
        given = zip(("beta", "label_smoothing", "sft_weight"), self._optional, strict=True)
        usual = USUAL[self.loss]
        open_places = {name: getattr(usual, name) for name, value in given if value is None}
        return dataclasses.replace(self, **open_places)
