"""One process, and what all ways of spreading have in common.

The engine knows this class alone; each other file of this folder overrides what differs. A
process that is one of several works on its own rows of each batch and perhaps its own part of the
weights; sums over rows are taken over all of them, so that any number of processes makes the same
step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cygnet.config import TrainConfig
from cygnet.model.lora import with_weights
from cygnet.model.transformer import Transformer
from cygnet.text.loader import Batch
from cygnet.train.checkpoint import Piece, Read
from cygnet.train.hardware import Hardware
from cygnet.train.optim import build_optimizer, local_part, trainable
from cygnet.train.parallel.cutting import place
from cygnet.train.parallel.group import World, world
from cygnet.train.stage import Stage

Result = TypeVar("Result")


class Caller(nn.Module):
    """Runs a function of the model as this module's forward pass.

    The wrappers of torch and DeepSpeed do their work around a module's forward pass. A stage's
    loss is more than the model's forward pass, and uses the output matrix outside of it.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(model, *arguments)`."""
        return function(self.model, *arguments)


class Single:
    """One process holds everything.

    Args:
        model: float32 weights on this process's device.
        config: as resolved.
        hardware: of this process.

    Attributes:
        world: this process among all.
        data_rank, data_size: which share of the rows it takes, of how many.
        optimizer: over the weights, or this process's part of them.
    """

    def __init__(self, model: Transformer, config: TrainConfig, hardware: Hardware) -> None:
        self.model, self.config, self.hardware = model, config, hardware
        self.world: World = world()
        self.data_rank, self.data_size = 0, 1
        self.scaler = torch.amp.GradScaler(
            hardware.device.type, enabled=hardware.dtype is torch.float16
        )
        self.caller: Any = Caller(model)
        self._spread()
        self.optimizer: Any = self._make_optimizer()

    def _spread(self) -> None:
        """Cut or wrap the model, before the optimizer is made."""

    def _make_optimizer(self) -> Any:
        return build_optimizer(self.model, self.config, self.muon_dtype)

    @property
    def muon_dtype(self) -> torch.dtype:
        """The type that matrices are orthogonalized in: bfloat16 where it is fast."""
        return torch.bfloat16 if self.hardware.dtype is torch.bfloat16 else torch.float32

    # A step

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return `function(model, *arguments)`; all processes must call it alike."""
        result: Result = self.caller(function, *arguments)
        return result

    def own_rows(self, batch: Batch) -> Batch:
        """Return the rows of the whole batch that this process works on.

        Rows without tokens fill a batch that does not divide evenly, so that all processes take
        as many steps as each other.
        """
        each = -(-len(batch.tokens) // self.data_size)
        whole = batch.padded(each * self.data_size)
        return whole.rows(self.data_rank * each, (self.data_rank + 1) * each)

    def accumulate(self, stage: Stage, rows: Batch, weight: int) -> dict[str, Tensor]:
        """Add the gradient of the rows' loss / weight; return summed loss and stage metrics."""
        micro_batch = self.config.micro_batch or 1
        sums: dict[str, Tensor] = {}
        for start in range(0, len(rows.tokens), micro_batch):
            part = rows.rows(start, start + micro_batch).to(self.hardware.device)
            is_last = start + micro_batch >= len(rows.tokens)
            loss, metrics = self._forward_backward(stage, part, weight, is_last)
            for name, value in {"loss": loss, **metrics}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        return sums

    def _forward_backward(
        self, stage: Stage, part: Batch, weight: int, is_last: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = self.call(stage.loss, part)
        self.scaler.scale(loss * self._loss_scale(weight)).backward()
        return loss.detach(), metrics

    def _loss_scale(self, weight: int) -> float:
        """Return what a process's summed loss is scaled by; torch and DeepSpeed mean gradients."""
        return self.data_size / weight

    def total(self, sums: dict[str, float]) -> dict[str, float]:
        """Return each value summed over the processes that hold different rows."""
        return sums

    def update(self, scale: float, max_norm: float) -> float:
        """Clip the gradient, make a step at `scale` times the peak rates, clear the gradient.

        Returns the gradient's norm before clipping. When it is not finite, weights and gradient
        stay as they are (under loss scaling the scale is lowered instead).
        """
        self.scaler.unscale_(self.optimizer)
        norm = self._clip(max_norm)
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            return float(norm)
        self._set_rates(scale)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _set_rates(self, scale: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * scale

    def _clip(self, max_norm: float) -> Tensor:
        """Scale the gradient to `max_norm` where it is longer; return its norm before that."""
        found = [(p, local_part(p.grad)) for p in self.model.parameters() if p.grad is not None]
        counted = [(p, gradient) for p, gradient in found if not self._is_copy(p)]
        cut = _square_sum([gradient for p, gradient in counted if self._is_cut(p)])
        whole = _square_sum([gradient for p, gradient in counted if not self._is_cut(p)])
        norm = (self._sum_of_parts(cut) + whole).sqrt()
        if not torch.isfinite(norm):
            return norm  # scaling would hide which gradient it was
        scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_([gradient for _, gradient in found], scale)
        return norm

    def _is_cut(self, parameter: Tensor) -> bool:
        """Say whether this process holds only a part of a parameter, or none of the others do."""
        return False

    def _is_copy(self, parameter: Tensor) -> bool:
        """Say whether another process counts a parameter that this one holds too."""
        return False

    def _sum_of_parts(self, value: Tensor) -> Tensor:
        return value

    def reset_optimizer(self) -> None:
        """Forget every step that was made; one at rate zero leaves the weights as they were."""
        for state in self.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()
        self._set_counters([0] * len(self.optimizer.param_groups))

    # The whole model, checkpoints

    def whole(self) -> Transformer:
        """Return the model as it is now, whole in this process; all processes must call it alike.

        Its weights are float32, shared with those that are trained where this process has them
        whole. An adapter stands beside its base, as in training: merged, it would be rounded
        otherwise.
        """
        return self.model

    def _built(self, weights: dict[str, Tensor]) -> Transformer:
        """Return a model of the same kind, its adapter too, around whole weights."""
        return with_weights(self.model, weights).requires_grad_(False)

    def pieces(self) -> Iterator[Piece]:
        """Yield what this process has to write: its parts of weights and optimizer state."""
        for number, (name, parameter) in enumerate(trainable(self.model)):
            if not self._writes(number, parameter):
                continue
            dim, start, size = place(parameter)
            for key, tensor in {"model": parameter, **self.optimizer.state[parameter]}.items():
                yield Piece(key, name, local_part(tensor).detach(), dim, start, size)

    def _writes(self, number: int, parameter: Tensor) -> bool:
        """Say whether this process is the one of several that hold a parameter to write it."""
        return True

    def loss_scale_state(self) -> dict[str, Any]:
        """Return the loss scale of fp16 and its history; an empty mapping where there is none."""
        return self.scaler.state_dict()

    def load_loss_scale_state(self, state: dict[str, Any]) -> None:
        """Take what `loss_scale_state` gave; that of another way of spreading begins anew."""
        if self.scaler.is_enabled() and state.keys() == self.scaler.state_dict().keys():
            self.scaler.load_state_dict(state)

    def counters(self) -> list[int]:
        """Return the optimizer's step counter of each parameter group."""
        return [group.get("steps", 0) for group in self.optimizer.param_groups]

    def load(self, keys: set[str], read: Read, counters: list[int]) -> None:
        """Take weights and optimizer state from a checkpoint.

        Args:
            keys: `key/name` of what the checkpoint holds.
            read: gives the part of a tensor that is asked for.
            counters: as `counters` gave them.
        """
        self.optimizer.state.clear()
        with torch.no_grad():
            for name, parameter in trainable(self.model):
                dim, start, _ = place(parameter)
                length = local_part(parameter).shape[dim]
                held = {key.partition("/")[0] for key in keys if key.endswith(f"/{name}")}
                for key in sorted(held | {"model"}):
                    found = read(f"{key}/{name}", dim, start, length)
                    if key == "model":
                        local_part(parameter).copy_(found)
                    else:
                        self.optimizer.state[parameter][key] = found.to(self.hardware.device)
        self._set_counters(counters)

    def _set_counters(self, counters: list[int]) -> None:
        for group, steps in zip(self.optimizer.param_groups, counters, strict=True):
            group["steps"] = steps


def _square_sum(tensors: list[Tensor]) -> Tensor:
    if not tensors:
        return torch.zeros(())
    return torch.stack(torch._foreach_norm(tensors)).square().sum()
