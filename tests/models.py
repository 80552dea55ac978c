"""Small models with random weights."""

import torch

from cygnet.config import ModelConfig
from cygnet.model.transformer import Transformer

SMALL = ModelConfig(
    vocab_size=320, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2,
    intermediate_size=96, max_position=512,
)  # fmt: skip


def random_model(config: ModelConfig = SMALL, seed: int = 0) -> Transformer:
    """Return a float32 model in which no weight is zero, so that every part shows."""
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            offset = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(offset + 0.1 * torch.randn(parameter.shape, generator=generator))
    return model
