import pytest

from cygnet.text.tokenizer import Tokenizer, train_tokenizer
from tests.conversations import TEXTS


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size=420)
