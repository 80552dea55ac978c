from __future__ import annotations

import pytest
import torch

from cygnet.config import ModelConfig
from cygnet.model.transformer import Transformer
from cygnet.text.tokenizer import Tokenizer, train_tokenizer

TEXTS = [
    "# Pancakes\n\n## Ingredients\n- 1 cup flour\n- 2 eggs\n\n## Steps\n1. Mix flour and eggs.",
    "《静夜思》 李白 五言绝句\n床前明月光，疑是地上霜。\n举头望明月，低头思故乡。",
    "A comet is a small body of ice that warms when it passes close to the Sun.",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 3, vocab_size=320)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Transformer:
    return tiny_model(tokenizer)


@pytest.fixture(scope="module")
def module_model(tokenizer: Tokenizer) -> Transformer:
    return tiny_model(tokenizer)


def tiny_model(tokenizer: Tokenizer) -> Transformer:
    """Draw every weight at random, so that attention matters."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=48,
        max_position=192,
    )
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model
