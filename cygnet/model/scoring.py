"""A decoder that gives each token a number: a reward model, or a policy that knows its value.

Shapes: B rows, T tokens, D hidden width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from cygnet.config import ModelConfig
from cygnet.model.transformer import Linear, Transformer


class ScoringTransformer(Transformer):
    """A language model with one more output, `score`.

    The names are those of transformers' `Qwen3ForSequenceClassification` with one label.
    """

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, compute_dtype)
        self.score = Linear(config.hidden_size, 1)
        torch.nn.init.zeros_(self.score.weight)

    @classmethod
    def around(cls, model: Transformer) -> ScoringTransformer:
        """Return the model with a score that is zero everywhere; its weights are not copied."""
        head = torch.zeros(1, model.config.hidden_size, device=model.output_weight.device)
        weights = {**model.state_dict(), "score.weight": head}
        return cls.from_weights(model.config, weights, model.compute_dtype)

    def without_score(self) -> Transformer:
        """Return the language model alone; its weights are not copied."""
        weights = {name: t for name, t in self.state_dict().items() if name != "score.weight"}
        return Transformer.from_weights(self.config, weights, self.compute_dtype)

    def scores(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., D) to a number a token, (...) float32, computed in float32.

        In bf16 two scores that differ by less than a hundredth would be one.
        """
        scores: Tensor = self.score(hidden.float()).squeeze(-1)
        return scores


def as_scoring(model: Transformer) -> ScoringTransformer:
    """Take a model that has `scores`; a pipeline's process has something that acts as one."""
    return cast(ScoringTransformer, model)
