"""The losses of distillation, each against a reference written from its paper."""

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cygnet.errors import UserError
from cygnet.stages.distillation import losses as distill_losses
from cygnet.stages.distillation.losses import (
    DistillLossConfig,
    distillation_gradient,
    divergence_gradient,
    linear_distillation,
)
from cygnet.text.loader import IGNORE

SETTINGS = [
    {"divergence": kind, "temperature": temperature, "top_k": top_k, "jsd_beta": beta}
    for kind, temperature, top_k in itertools.product(
        ("forward_kl", "reverse_kl", "jsd"), (1.0, 2.5), (0, 1, 5)
    )
    for beta in ((0.1, 0.7) if kind == "jsd" else (0.5,))
]


def random(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def grouped(probs: list[float], top: list[int]) -> list[float]:
    return [*(probs[at] for at in top), 1 - sum(probs[at] for at in top)]


def reference(teacher: Tensor, student: Tensor, settings: dict[str, Any]) -> list[float]:
    """Each position's divergence in plain numbers, as the papers write it."""
    found = []
    for z, y in zip(teacher.tolist(), student.tolist(), strict=True):
        p, q = (
            [math.exp(x / settings["temperature"]) for x in logits] for logits in (z, y)
        )  # fmt: skip
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        if settings["top_k"]:
            top = sorted(range(len(p)), key=lambda at: -p[at])[: settings["top_k"]]
            p, q = grouped(p, top), grouped(q, top)
        beta = settings["jsd_beta"]
        m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        found.append(
            {
                "forward_kl": kl(p, q),
                "reverse_kl": kl(q, p),
                "jsd": beta * kl(p, m) + (1 - beta) * kl(q, m),
            }[settings["divergence"]]
        )
    return found


@pytest.mark.parametrize("settings", SETTINGS)
def test_equals_the_papers(settings: dict[str, Any]) -> None:
    teacher, student = random(7, 13), random(7, 13, seed=1)
    losses, _ = divergence_gradient(teacher, student, DistillLossConfig(**settings))
    scaled = [settings["temperature"] ** 2 * d for d in reference(teacher, student, settings)]
    assert losses.tolist() == pytest.approx(scaled, abs=1e-10, rel=1e-10)


@pytest.mark.parametrize("settings", SETTINGS)
def test_gradient_is_the_slope_of_the_loss(settings: dict[str, Any]) -> None:
    teacher, student = random(3, 9), random(3, 9, seed=1)
    config = DistillLossConfig(**settings)
    _, gradient = divergence_gradient(teacher, student, config)
    step = 1e-6
    for row, column in itertools.product(range(3), range(9)):
        moved = [student.clone(), student.clone()]
        for sign, logits in zip((1, -1), moved, strict=True):
            logits[row, column] += sign * step
        up, down = (divergence_gradient(teacher, logits, config)[0].sum() for logits in moved)
        assert float(gradient[row, column]) == pytest.approx(
            float(up - down) / (2 * step), abs=1e-7
        )


@pytest.mark.parametrize(("kind", "beta"), [("forward_kl", 0), ("reverse_kl", 1), ("jsd", 0.3)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equals_trl(kind: Any, beta: float, temperature: float) -> None:
    """TRL does not multiply by the temperature's square."""
    from trl.experimental.gkd import GKDTrainer

    teacher, student = random(4, 6, 11), random(4, 6, 11, seed=1).requires_grad_()
    labels = torch.arange(24).view(4, 6)
    labels[:, ::2] = IGNORE
    theirs = GKDTrainer.generalized_jsd_loss(
        student, teacher, labels, beta, temperature, reduction="sum"
    )
    theirs.backward()
    own_beta = beta if kind == "jsd" else 0.5
    config = DistillLossConfig(divergence=kind, jsd_beta=own_beta, temperature=temperature)
    counted = (labels != IGNORE).flatten()
    ours, gradient = divergence_gradient(
        teacher.flatten(0, 1), student.detach().flatten(0, 1), config
    )
    assert float(ours[counted].sum() / temperature**2) == pytest.approx(theirs.item(), rel=1e-5)
    expected = student.grad.flatten(0, 1)[counted]
    torch.testing.assert_close(gradient[counted] / temperature**2, expected, rtol=1e-5, atol=1e-8)


def test_top_k_bounds_from_below_and_reaches_the_whole() -> None:
    teacher, student = random(20, 30), random(20, 30, seed=1)
    found = [
        divergence_gradient(teacher, student, DistillLossConfig(top_k=k))[0] for k in (1, 4, 29, 0)
    ]
    for less, more in itertools.pairwise(found):
        assert (less <= more + 1e-12).all()
    torch.testing.assert_close(found[2], found[3])
    assert (found[0] < found[1]).all()


@pytest.mark.parametrize("settings", SETTINGS[::3])
def test_equal_models_have_no_loss_and_no_gradient(settings: dict[str, Any]) -> None:
    logits = random(5, 12)
    losses, gradient = divergence_gradient(logits, logits, DistillLossConfig(**settings))
    assert losses.abs().max() < 1e-12 and gradient.abs().max() < 1e-12


def mixed(hidden: Tensor, weight: Tensor, teacher: Tensor, labels: Tensor, alpha: Tensor) -> Tensor:
    """Cross-entropy and forward KL at temperature 2, by torch's own functions."""
    counted = labels != IGNORE
    logits, alpha = (hidden @ weight.T)[counted], alpha[counted]
    cross_entropy = F.cross_entropy(logits, labels[counted], reduction="none")
    apart = F.kl_div(
        (logits / 2).log_softmax(-1), (teacher[counted] / 2).log_softmax(-1),
        reduction="none", log_target=True,
    ).sum(-1)  # fmt: skip
    return (alpha * cross_entropy + (1 - alpha) * 4 * apart).sum()


@pytest.mark.parametrize("chunk", [4, 1000])
def test_chunked_loss_and_gradients_equal_torchs(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill_losses, "DISTILLED_POSITIONS", chunk)
    hidden, weight = random(10, 6, seed=2).requires_grad_(), random(15, 6, seed=3).requires_grad_()
    teacher_hidden, teacher_weight = random(10, 8, seed=4), random(15, 8, seed=5)
    labels = torch.arange(10)
    labels[[0, 7]] = IGNORE
    alpha = torch.linspace(0, 1, 10, dtype=torch.float64)
    kernel = partial(distillation_gradient, config=DistillLossConfig(temperature=2, alpha=0.5))
    loss, others = linear_distillation(
        hidden, weight, teacher_hidden, teacher_weight, labels, alpha, kernel
    )
    (3 * loss).backward()
    given = [tensor.detach().clone().requires_grad_() for tensor in (hidden, weight)]
    expected = mixed(*given, teacher_hidden @ teacher_weight.T, labels, alpha)
    (3 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for mine, theirs in zip((hidden, weight), given, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-8, atol=1e-10)
    only_text = mixed(*given, teacher_hidden @ teacher_weight.T, labels, torch.ones_like(alpha))
    assert float(others[1]) == pytest.approx(only_text.item(), rel=1e-10)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"divergence": "forward"}, "forward_kl"),
        ({"jsd_beta": 0.0}, "between 0 and 1"),
        ({"temperature": 0.0}, "above zero"),
        ({"alpha": 1.5}, "in [0, 1]"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as refused:
        DistillLossConfig(**settings)
    assert told in str(refused.value)
