"""A corpus of a few dozen short documents, tokenized, and a model that trains in a blink."""

import json
import random

import pytest

from cygnet.config import ModelConfig
from cygnet.text.shards import ShardReader
from cygnet.text.tokenize import tokenize_documents
from cygnet.text.tokenizer import Tokenizer, train_tokenizer

WORDS = [
    "the",
    "swan",
    "sees",
    "a",
    "lake",
    "and",
    "grey",
    "rain",
    "falls",
    "on",
    "reed",
    "stone",
    "天鹅",
    "看见",
    "湖水",
    "灰",
    "雨",
    "落",
]


def sentences(count: int, seed: int) -> list[str]:
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(WORDS, k=chooser.randint(4, 40))) for _ in range(count)]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(sentences(50, 0), 300)


@pytest.fixture(scope="session")
def shards(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    folder = tmp_path_factory.mktemp("shards")
    rows = [{"id": f"{i:016x}", "text": text} for i, text in enumerate(sentences(60, 1))]
    path = folder / "documents.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    tokenize_documents(path, tokenizer, folder / "train")
    return ShardReader(folder / "train", tokenizer.hash)


@pytest.fixture(scope="session")
def tiny(tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=48,
        max_position=64,
    )
