"""The losses against references written from the papers, and against TRL's, in float64."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cygnet.stages.reinforcement.grpo_losses import (
    KINDS,
    LossName,
    group_advantages,
    importance_weights,
    k3_kl,
    overlong_penalty,
    policy_losses,
    token_shares,
)

LENGTHS = [7, 3, 12, 1, 5, 9]
LONGEST = 16
NAMES: tuple[LossName, ...] = tuple(KINDS)
CLIPS = {
    "grpo": (0.2, 0.2), "dr_grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "cispo": (1.0, 0.5),
    "gspo": (0.05, 0.08),
}  # fmt: skip
KL_COEF, CAP = 0.07, 1.3


class Drawn:
    """Random log-probabilities of six episodes, as rows of different lengths."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(scale: float) -> list[Tensor]:
            return [
                scale * torch.randn(n, generator=generator, dtype=torch.float64) for n in LENGTHS
            ]

        self.new = [(one - 2).requires_grad_() for one in draw(1)]
        self.old = [one.detach() + shift for one, shift in zip(self.new, draw(0.3), strict=True)]
        self.sampled = [one + shift for one, shift in zip(self.old, draw(0.3), strict=True)]
        self.reference = [
            one.detach() + shift for one, shift in zip(self.new, draw(0.4), strict=True)
        ]
        self.advantages = torch.randn(len(LENGTHS), generator=generator, dtype=torch.float64)

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.cat(torch.autograd.grad(loss, self.new))


def ours(name: LossName, drawn: Drawn, low: float, high: float) -> Tensor:
    kind, counts = KINDS[name], torch.tensor(LENGTHS)
    document = torch.arange(len(LENGTHS)).repeat_interleave(counts)
    new, old, sampled, reference = (
        torch.cat(part) for part in (drawn.new, drawn.old, drawn.sampled, drawn.reference)
    )
    losses, _ = policy_losses(kind, new, old, drawn.advantages[document], document, low, high)
    losses = losses * importance_weights(old, sampled, CAP) + KL_COEF * k3_kl(new, reference)
    return (losses * token_shares(kind, counts, LONGEST)[document].double()).sum()


def from_the_paper(name: LossName, drawn: Drawn, low: float, high: float) -> Tensor:
    """Answer by answer and token by token, as the equations are written."""
    episodes = []
    for at, length in enumerate(LENGTHS):
        ratio = torch.exp(drawn.new[at] - drawn.old[at])
        if name == "gspo":
            ratio = torch.exp((drawn.new[at] - drawn.old[at]).sum() / length).repeat(length)
        terms = []
        for t in range(length):
            advantage = drawn.advantages[at]
            if name == "cispo":
                weight = min(max(ratio[t].item(), 1 - low), 1 + high)
                objective = weight * advantage * drawn.new[at][t]
            else:
                bounded = torch.clip(ratio[t], 1 - low, 1 + high)
                objective = torch.minimum(ratio[t] * advantage, bounded * advantage)
            correction = min(float(torch.exp(drawn.old[at][t] - drawn.sampled[at][t])), CAP)
            likelier = torch.exp(drawn.reference[at][t] - drawn.new[at][t])
            kl = likelier - torch.log(likelier) - 1
            terms.append(correction * objective - KL_COEF * kl)
        episodes.append(torch.stack(terms))
    if name in ("dapo", "cispo"):
        return -torch.cat(episodes).sum() / sum(LENGTHS)
    if name == "dr_grpo":
        return -torch.cat(episodes).sum() / (len(LENGTHS) * LONGEST)
    return -torch.stack([terms.sum() / len(terms) for terms in episodes]).mean()


def trls(name: LossName, drawn: Drawn, low: float, high: float) -> Tensor:
    """What TRL's trainer computes from the same log-probabilities."""
    import trl

    def padded(rows: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    mask = padded([torch.ones(n, dtype=torch.float64) for n in LENGTHS])
    same = SimpleNamespace(
        gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1,
        gather_for_metrics=lambda x: x,
    )  # fmt: skip
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (padded(drawn.new), mask, None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level="sequence" if name == "gspo" else "token", beta=KL_COEF,
        loss_type="grpo" if name == "gspo" else name, epsilon_low=low,
        # TRL's bound of CISPO is the weight itself.
        epsilon_high=1 + high if name == "cispo" else high,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        use_vllm=True, vllm_importance_sampling_correction=True, accelerator=same,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST, _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip
    none = torch.zeros(len(LENGTHS), 0)
    inputs: dict[str, Any] = {
        "prompt_ids": none, "prompt_mask": none, "completion_ids": mask, "completion_mask": mask,
        "advantages": drawn.advantages, "old_per_token_logps": padded(drawn.old),
        "ref_per_token_logps": padded(drawn.reference),
        "importance_sampling_ratio": torch.exp(padded(drawn.old) - padded(drawn.sampled)).clamp(
            max=CAP
        ),
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    loss: Tensor = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss


@pytest.mark.parametrize("reference", [from_the_paper, trls], ids=["paper", "trl"])
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_and_its_gradient_are_those_of_the_reference(name: LossName, reference: Any) -> None:
    for seed in range(3):
        drawn = Drawn(seed)
        found, expected = (one(name, drawn, *CLIPS[name]) for one in (ours, reference))
        # Shares are float32.
        torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=1e-7)
        gradients = [drawn.gradient(loss) for loss in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_what_clipping_holds_has_no_gradient_but_in_cispo(name: LossName) -> None:
    drawn = Drawn(0)
    counts = torch.tensor(LENGTHS)
    document = torch.arange(len(LENGTHS)).repeat_interleave(counts)
    losses, is_clipped = policy_losses(
        KINDS[name], torch.cat(drawn.new), torch.cat(drawn.old), drawn.advantages[document],
        document, *CLIPS[name],
    )  # fmt: skip
    gradient = drawn.gradient(losses.sum())
    assert 0 < int(is_clipped.sum()) < len(document)
    assert bool((gradient[is_clipped] != 0).all()) == (name == "cispo")
    assert bool((gradient[~is_clipped] != 0).all())


def test_advantages_are_centred_and_a_group_of_equals_has_none() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    centred = group_advantages(rewards, by_std=False)
    torch.testing.assert_close(centred, rewards - 0.5)
    deviation = (((rewards - 0.5) ** 2).sum() / 4).sqrt()
    torch.testing.assert_close(group_advantages(rewards, by_std=True), centred / (deviation + 1e-4))
    assert not group_advantages(torch.full((3,), 0.1), by_std=True).any()


def test_the_penalty_of_length_grows_over_its_buffer() -> None:
    found = [overlong_penalty(length, 100, 20) for length in (1, 80, 85, 90, 100, 120)]
    assert found == [0, 0, -0.25, -0.5, -1, -1]
    assert overlong_penalty(100, 100, 0) == 0


def test_shares_make_the_mean_that_the_loss_is_named_for() -> None:
    counts = torch.tensor(LENGTHS)
    for name, total in (("grpo", 1.0), ("dapo", 1.0), ("gspo", 1.0), ("cispo", 1.0)):
        shares = token_shares(KINDS[name], counts, LONGEST)  # type: ignore[index]
        assert float((shares * counts).sum()) == pytest.approx(total)
    assert float(token_shares(KINDS["dr_grpo"], counts, LONGEST)[0]) == pytest.approx(1 / 96)
