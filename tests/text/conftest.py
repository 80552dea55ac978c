import pytest

from cygnet.text.tokenizer import Tokenizer, train_tokenizer

TEXTS = [
    "The cook stirs the soup, 12 times; then she adds 350 g of flour and serves it warm.\n\n"
    "# Soup\n\n## Ingredients\n- 2 cups flour\n- 1 onion\n\n## Steps\n1. Chop the onion.\n",
    "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。",
    "Naïve café, Ünïcödé and русский текст, 日本語も。 I'm here, it's there.",
] * 4


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, vocab_size=420)
