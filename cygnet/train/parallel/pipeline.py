"""The model is cut by layers: each process holds a stretch of them (torch's pipelining).

Micro-batches follow each other through the stretches, one forward and one backward in turn
(Narayanan et al. 2019, "PipeDream", section 3.2), so that all processes are busy. Groups of
`model_processes` hold one model; the groups share the rows. The first process has the embeddings
and, where they are tied, the last has them too, as output matrix; their gradients are summed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from cygnet.model.rope import rope_angles
from cygnet.model.transformer import Transformer
from cygnet.text.loader import Batch
from cygnet.train.layout import stretch
from cygnet.train.parallel.cutting import groups, subgroup, sum_gradients, summed
from cygnet.train.parallel.single import Single
from cygnet.train.stage import Stage

Result = TypeVar("Result")


class Stretch(nn.Module):
    """The layers of one process, as a function of the hidden state before them."""

    def __init__(self, model: Transformer, layers: range) -> None:
        super().__init__()
        self.model, self.layers = model, layers
        self.is_first = layers.start == 0
        self.is_last = layers.stop == model.config.num_layers

    def forward(self, x: Tensor, positions_BT: Tensor, document_ids_BT: Tensor) -> Tensor:
        """Return the hidden state (B, T, D) behind these layers.

        Args:
            x: (B, T) int64 tokens in the first process, (B, T, D) in the others.
            positions_BT: (B, T) positions.
            document_ids_BT: (B, T) documents of packed rows.
        """
        decoder = self.model.model
        if self.is_first:
            x = decoder.embed_tokens(x).to(self.model.compute_dtype)
        angles = rope_angles(positions_BT, self.model.inverse_frequencies)
        for layer in self.layers:
            x = decoder.layers[layer](x, angles, document_ids_BT)
        return decoder.norm(x) if self.is_last else x


class _Proxy:
    """Stands for the model in a stage's loss; its hidden states come through the pipeline."""

    def __init__(self, model: Transformer, hidden: Callable[..., Tensor]) -> None:
        self.transformer, self.hidden = model, hidden

    def __call__(self, *arguments: Any) -> Tensor:
        return self.hidden(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transformer, name)


class Pipeline(Single):
    """Pipeline parallelism, and data parallelism between the groups."""

    def _spread(self) -> None:
        each = self.config.model_processes or self.world.size
        self.data_rank, self.place = divmod(self.world.rank, each)
        self.data_size, self.num_places = self.world.size // each, each
        self.line_group, self.data_group, lines = groups(each, self.config.timeout_s)
        self.ends_group: Any = None
        if each > 1:
            ends = [[line[0], line[-1]] for line in lines]
            self.ends_group = subgroup(ends, self.config.timeout_s)
        self.last_rank = lines[self.data_rank][-1]
        self.stretch = Stretch(self.model, stretch(self.model.config, each, self.place))
        self._drop_the_rest()
        self.schedules: dict[int, Schedule1F1B] = {}

    def _drop_the_rest(self) -> None:
        """Take away what other processes hold; names stay those of the whole model."""
        model, mine = self.model, self.stretch
        for layer in range(model.config.num_layers):
            if layer not in mine.layers:
                model.model.layers[layer] = nn.Identity()
        tied = model.config.tie_embeddings
        if not mine.is_last:
            model.model.norm = nn.Identity()  # type: ignore[assignment]
            if not tied:
                model.lm_head = nn.Identity()  # type: ignore[assignment]
            if hasattr(model, "score"):
                model.score = nn.Identity()
        if not mine.is_first and not (mine.is_last and tied):
            model.model.embed_tokens = nn.Identity()

    def own_rows(self, batch: Batch) -> Batch:
        """Return this group's rows, filled up to whole micro-batches, at least one a process."""
        micro_batch = self.config.micro_batch or 1
        each = -(-len(batch.tokens) // (self.data_size * micro_batch))
        each = max(each, self.num_places) * micro_batch
        whole = batch.padded(each * self.data_size)
        return whole.rows(self.data_rank * each, (self.data_rank + 1) * each)

    def accumulate(self, stage: Stage, rows: Batch, weight: int) -> dict[str, Tensor]:
        """Add the gradient of the rows' loss / weight; return summed loss and stage metrics."""
        rows = rows.to(self.hardware.device)
        micro_batch = self.config.micro_batch or 1
        # By micro-batch: torch may compute the first one twice, to learn the shapes.
        found: dict[int, dict[str, Tensor]] = {}

        def loss(hidden_BTD: Tensor, places_B: Tensor) -> Tensor:
            model: Any = _Proxy(self.model, lambda *_: hidden_BTD)
            total, metrics = stage.loss(model, rows.take(places_B))
            found[int(places_B[0])] = {"loss": total.detach(), **metrics}
            return total / weight

        self._loss = loss
        given = (rows.tokens,) if self.stretch.is_first else ()
        places = torch.arange(len(rows.tokens), device=self.hardware.device)
        target: dict[str, Any] = {"target": places, "losses": []} if self.stretch.is_last else {}
        self._schedule(len(rows.tokens) // micro_batch).step(
            *given, positions_BT=rows.positions, document_ids_BT=rows.document_ids, **target
        )
        at_an_end = self.stretch.is_first or self.stretch.is_last
        if self.ends_group is not None and self.model.config.tie_embeddings and at_an_end:
            embedding = self.model.model.embed_tokens.weight
            if embedding.grad is None:  # a loss of scores has no use for it at the last end
                embedding.grad = torch.zeros_like(embedding)
            sum_gradients([embedding], self.ends_group)
        sum_gradients(list(self.model.parameters()), self.data_group)
        names = next(iter(found.values()), {})
        return {name: torch.stack([sums[name] for sums in found.values()]).sum() for name in names}

    def _schedule(self, number: int) -> Schedule1F1B:
        """Return the order of work for a number of micro-batches."""
        if number not in self.schedules:
            part = PipelineStage(
                self.stretch, self.place, self.num_places, self.hardware.device,
                group=self.line_group,
            )  # fmt: skip
            self.schedules[number] = Schedule1F1B(
                part, number, loss_fn=lambda *given: self._loss(*given), scale_grads=False
            )
        return self.schedules[number]

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return `function(model, *arguments)` of the last process, whose model is whole enough.

        The others run it too, on zeros, so that all send and receive alike.
        """
        model: Any = _Proxy(self.model, self._hidden)
        if not self.stretch.is_last:
            sizes = self.model.config
            model.output_weight = torch.zeros(
                sizes.vocab_size, sizes.hidden_size, device=self.hardware.device
            )
            model.logits = lambda hidden: hidden.new_zeros(
                *hidden.shape[:-1], sizes.vocab_size, dtype=torch.float32
            )
            model.scores = lambda hidden: hidden.new_zeros(hidden.shape[:-1], dtype=torch.float32)
        results = [function(model, *arguments)]
        dist.broadcast_object_list(results, self.last_rank, group=self.line_group)
        return results[0]

    @torch.no_grad()
    def whole(self) -> Transformer:
        """Return the model with the layers of all processes of the line."""
        own = {name: tensor.cpu() for name, tensor in self.model.state_dict().items()}
        parts: list[Any] = [None] * self.num_places
        dist.all_gather_object(parts, own, group=self.line_group)
        device = self.hardware.device
        weights = {name: t.to(device) for part in parts for name, t in part.items()}
        return self._built(weights)

    @torch.no_grad()
    def _hidden(self, tokens_BT: Tensor, positions_BT: Tensor, document_ids_BT: Tensor) -> Tensor:
        """Send one batch through all stretches; zeros in all processes but the last."""
        shape = (*tokens_BT.shape, self.model.config.hidden_size)
        x = tokens_BT
        if not self.stretch.is_first:
            x = torch.empty(shape, dtype=self.model.compute_dtype, device=tokens_BT.device)
            dist.recv(x, self.world.rank - 1)
        x = self.stretch(x, positions_BT, document_ids_BT)
        if self.stretch.is_last:
            return x
        dist.send(x.contiguous(), self.world.rank + 1)
        return torch.zeros_like(x)

    def total(self, sums: dict[str, float]) -> dict[str, float]:
        """Return each value summed over the groups; the last process of each line knows it."""
        known = [sums]
        dist.broadcast_object_list(known, self.last_rank, group=self.line_group)
        return summed(known[0], self.data_group)

    def _sum_of_parts(self, value: Tensor) -> Tensor:
        dist.all_reduce(value, group=self.line_group)
        return value

    def _is_cut(self, parameter: Tensor) -> bool:
        return True

    def _is_copy(self, parameter: Tensor) -> bool:
        """Say whether another process of the line counts and writes a parameter."""
        return not self.stretch.is_first and parameter is getattr(
            self.model.model.embed_tokens, "weight", None
        )

    def _writes(self, number: int, parameter: Tensor) -> bool:
        return self.data_rank == 0 and not self._is_copy(parameter)
