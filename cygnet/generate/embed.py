"""Texts as vectors: the mean of a model's hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cygnet.model.transformer import Transformer


@torch.inference_mode()
def embed(model: Transformer, token_ids: Sequence[int]) -> Tensor:
    """Return the mean of the final hidden states of all tokens, scaled to length 1.

    Near texts lie near each other as far as predicting the next token asks for it; the model was
    never trained to tell texts apart.

    Args:
        model: any device.
        token_ids: T of them, at least one and at most the model's context.

    Returns:
        (D,) float32 on the CPU.
    """
    tokens_1T = torch.tensor([token_ids], device=model.output_weight.device)
    mean_D = model(tokens_1T)[0].float().mean(0)
    return F.normalize(mean_D, dim=0).cpu()
