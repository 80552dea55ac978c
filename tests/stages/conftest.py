import pytest

from cygnet.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    text = "How do I make soup? Boil the water, add salt. 写一首五言绝句。白日依山尽，黄河入海流。"
    return train_tokenizer([text] * 4, 320)
