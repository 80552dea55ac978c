"""Our optimizers are the ones of the papers (invariant 9)."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.train.optim import MuonAdamW, orthogonalize


def test_adamw_is_torchs_adamw() -> None:
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(5, 7, generator=generator), torch.randn(3, generator=generator)]
    ours = [torch.nn.Parameter(t.clone()) for t in start]
    theirs = [torch.nn.Parameter(t.clone()) for t in start]
    options = {"lr": 0.01, "betas": (0.8, 0.97), "eps": 1e-8, "weight_decay": 0.1}
    mine = MuonAdamW([{"params": ours, "kind": "adamw", **options}])
    reference = torch.optim.AdamW(theirs, **options)
    for _ in range(20):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def plain_muon(
    weight: torch.Tensor, gradients: list[torch.Tensor], lr: float, decay: float, momentum: float
) -> torch.Tensor:
    """Jordan et al. 2024 for one matrix, with the update size of Liu et al. 2025, equation 4."""
    buffer = torch.zeros_like(weight)
    for gradient in gradients:
        buffer = momentum * buffer + (1 - momentum) * gradient
        x = momentum * buffer + (1 - momentum) * gradient
        transposed = x.shape[0] > x.shape[1]
        x = x.T if transposed else x
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        x = x.T if transposed else x
        size = 0.2 * max(weight.shape) ** 0.5
        weight = weight * (1 - lr * decay) - lr * size * x
    return weight


def test_muon_is_the_papers_muon() -> None:
    generator = torch.Generator().manual_seed(2)
    shapes = [(8, 8), (4, 12), (12, 4), (8, 8)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    gradients = [[torch.randn(s, generator=generator) for s in shapes] for _ in range(6)]
    ours = [torch.nn.Parameter(t.clone()) for t in start]
    group = {"params": ours, "kind": "muon", "lr": 0.03, "weight_decay": 0.1, "momentum": 0.9}
    optimizer = MuonAdamW([group], muon_dtype=torch.float32)
    for step in gradients:
        for parameter, gradient in zip(ours, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    for index, parameter in enumerate(ours):
        expected = plain_muon(start[index], [g[index] for g in gradients], 0.03, 0.1, 0.9)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=25)
@given(rows=st.integers(2, 24), columns=st.integers(2, 24), seed=st.integers(0, 1000))
def test_orthogonalize_moves_singular_values_near_one(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(rows, columns, generator=generator), full_matrices=False)
    spectrum = torch.rand(min(rows, columns), generator=generator) * 0.95 + 0.05
    values = torch.linalg.svdvals(orthogonalize((u * spectrum @ v)[None]))
    assert values.min() > 0.6 and values.max() < 1.3


def test_a_parameter_without_a_gradient_stays() -> None:
    still = torch.nn.Parameter(torch.ones(3, 3))
    moved = torch.nn.Parameter(torch.ones(3, 3))
    moved.grad = torch.ones(3, 3)
    for kind in ("muon", "adamw"):
        group = {"params": [still, moved], "kind": kind, "lr": 0.1, "weight_decay": 0.1}
        MuonAdamW([group]).step()
        assert torch.equal(still, torch.ones(3, 3))
        assert not torch.equal(moved, torch.ones(3, 3))
