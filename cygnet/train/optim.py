"""The optimizer: Muon for the matrices inside the blocks, AdamW for all else.

Muon (Jordan et al. 2024) replaces each matrix's momentum by the nearest orthogonal matrix, found
with a Newton-Schulz iteration. Its updates are scaled to the size that AdamW's usually have (Liu
et al. 2025, "Muon is Scalable for LLM Training", equation 4), so that one learning rate serves
both. AdamW is that of Loshchilov and Hutter 2019, algorithm 2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cygnet.config import TrainConfig
from cygnet.model.lora import is_adapter

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
Orthogonalize = Callable[[Tensor, torch.Size, int], Tensor]


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return the matrices with all singular values moved near one (to between 0.7 and 1.2).

    Quintic Newton-Schulz iteration with the coefficients of Jordan et al. 2024.

    Args:
        matrices: (number, rows, columns), in the type to compute in. Each sum is formed inside
            its product, which in bfloat16 halves the error of adding afterwards.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def orthogonalize_alone(matrices: Tensor, whole: torch.Size, dim: int) -> Tensor:
    """Return `orthogonalize(matrices)`: what one process does that holds them whole."""
    return orthogonalize(matrices)


def local_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor that is cut over several, sharing its memory."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _cut_dim(parameter: Tensor) -> int:
    """Return the dimension in which a parameter is cut over processes."""
    placements = getattr(parameter, "placements", ())
    return placements[0].dim if placements and placements[0].is_shard() else 0


class MuonAdamW(torch.optim.Optimizer):
    """Muon for parameter groups with `kind="muon"`, AdamW for those with `kind="adamw"`.

    Args:
        groups: dicts with `params`, `kind`, `lr`, `weight_decay`; and `momentum` for muon,
            `betas` and `eps` for adamw.
        muon_dtype: the type in which matrices are orthogonalized; bfloat16 is enough
            (Jordan et al. 2024), float32 where bfloat16 is slow.
        orthogonalize_all: (matrices of this process, shape of a whole one, dimension that is cut)
            -> the same matrices orthogonalized; `cygnet.train.parallel.muon` has those for
            several processes.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        muon_dtype: torch.dtype = torch.bfloat16,
        orthogonalize_all: Orthogonalize = orthogonalize_alone,
    ) -> None:
        super().__init__(groups, {"momentum": 0.95, "betas": (0.9, 0.95), "eps": 1e-10})
        self.muon_dtype = muon_dtype
        self.orthogonalize_all = orthogonalize_all
        self.counts_steps = True  # False where the caller keeps each group's `steps`

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            if group["kind"] == "muon":
                self._muon(group)
            else:
                self._adamw(group)

    def _muon(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[torch.Size, int], list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[parameter.shape, _cut_dim(parameter)].append(parameter)
        for (shape, dim), parameters in alike.items():
            gradients = [local_part(p.grad) for p in parameters if p.grad is not None]
            buffers = [self._buffer(p, "momentum") for p in parameters]
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            nesterov = torch._foreach_lerp(gradients, buffers, group["momentum"])
            matrices = torch.stack(nesterov).to(self.muon_dtype)
            update = self.orthogonalize_all(matrices, shape, dim).float()
            size = 0.2 * max(shape) ** 0.5
            weights = [local_part(p) for p in parameters]
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, list(update), alpha=-group["lr"] * size)

    def _adamw(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        beta1, beta2 = group["betas"]
        group["steps"] = steps = group.get("steps", 0) + self.counts_steps
        gradients = [local_part(p.grad) for p in parameters if p.grad is not None]
        weights = [local_part(p) for p in parameters]
        means = [self._buffer(p, "mean") for p in parameters]
        squares = [self._buffer(p, "square") for p in parameters]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_div_(denominators, (1 - beta2**steps) ** 0.5)
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        rate = -group["lr"] / (1 - beta1**steps)
        torch._foreach_addcdiv_(weights, means, denominators, rate)

    def _buffer(self, parameter: Tensor, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(local_part(parameter), dtype=torch.float32)
        return state[name]


def resolve_optimizer(name: str, parallel: str) -> Any:
    """Return the optimizer that `auto` means with a way of spreading: muon where it works."""
    if name != "auto":
        return name
    return "adamw" if parallel == "deepspeed" else "muon"


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that are trained and kept in checkpoints, by name; not frozen ones."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def parameter_kind(name: str, num_dims: int) -> str:
    """Return `matrix` (of a block), `embedding` (input or output, score too), `adapter` (LoRA's
    matrices) or `vector`."""
    if num_dims != 2:
        return "vector"
    if any(part in name for part in ("embed_tokens", "lm_head", "score")):
        return "embedding"
    return "adapter" if is_adapter(name) else "matrix"


def build_optimizer(
    model: nn.Module,
    config: TrainConfig,
    muon_dtype: torch.dtype = torch.bfloat16,
    orthogonalize_all: Orthogonalize = orthogonalize_alone,
) -> MuonAdamW:
    """Sort the trained parameters into groups: block matrices, embeddings and output, vectors.

    Weight decay falls on the block matrices alone. Adapters are AdamW's, with the vectors: see
    docs/post-training/lora.md for what Muon makes of them. Each group's `peak_lr` is what the
    schedule scales.
    """
    matrices: list[Tensor] = []
    embeddings: list[Tensor] = []
    vectors: list[Tensor] = []
    of_kind = {"matrix": matrices, "embedding": embeddings, "vector": vectors, "adapter": vectors}
    for name, parameter in trainable(model):
        of_kind[parameter_kind(name, parameter.ndim)].append(parameter)
    matrix_kind = "adamw" if config.optimizer == "adamw" else "muon"
    decay, rate = config.weight_decay, config.learning_rate
    embedding_rate = config.embedding_learning_rate or rate
    groups: list[dict[str, Any]] = [
        {"params": matrices, "kind": matrix_kind, "peak_lr": rate, "weight_decay": decay},
        {"params": embeddings, "kind": "adamw", "peak_lr": embedding_rate, "weight_decay": 0.0},
        {"params": vectors, "kind": "adamw", "peak_lr": rate, "weight_decay": 0.0},
    ]
    return MuonAdamW(
        [{**group, "lr": group["peak_lr"]} for group in groups], muon_dtype, orthogonalize_all
    )
