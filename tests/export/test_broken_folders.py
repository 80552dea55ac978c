"""A model folder that is broken is refused in one line that names the file, before it is served."""

import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from cygnet.errors import UserError
from cygnet.export.huggingface import load_folder, save_folder
from cygnet.text.tokenizer import train_tokenizer
from tests.models import random_model

TEXTS = ["a swan 天鹅 and a lake 湖水 in the grey rain"] * 3
TOKENIZER = train_tokenizer(TEXTS, 320)
OTHER = train_tokenizer(["quite another text about geese and ponds and snow"] * 3, 300)
WORDS = " ".join(map("".join, itertools.product("abcdef", repeat=3)))
LARGER = train_tokenizer([WORDS] * 2, 400)
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def changed(name: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        told = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**told, **values}))

    return change


def swapped(folder: Path) -> None:
    """Put another maker's tokenizer in, and take away the word on which one it was."""
    LARGER.save(folder)
    changed(CONFIG, cygnet=None)(folder)


@pytest.mark.parametrize(
    ("breaks", "file", "message"),
    [
        (without(WEIGHTS), WEIGHTS, "no whole model"),
        (without(CONFIG), CONFIG, "no whole model"),
        (without("tokenizer.json"), "tokenizer.json", "no tokenizer.json"),
        (cut(WEIGHTS, 40_000), WEIGHTS, "truncated, 40,000 bytes of"),
        (cut(WEIGHTS, 100), WEIGHTS, "damaged"),
        (cut(WEIGHTS, 5), WEIGHTS, "damaged"),
        (cut(WEIGHTS, 0), WEIGHTS, "damaged"),
        (cut("tokenizer.json", 900), "tokenizer.json", "damaged"),
        (cut("tokenizer.json", 0), "tokenizer.json", "damaged"),
        (cut(CONFIG, 60), CONFIG, ""),
        (cut(CONFIG, 0), CONFIG, ""),
        (lambda f: (f / CONFIG).write_text("[1]"), CONFIG, ""),
        (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe"), CONFIG, ""),
        (changed(CONFIG, hidden_size="wide"), CONFIG, "hidden_size is 'wide'"),
        (changed(CONFIG, num_hidden_layers=-1), CONFIG, "num_layers is -1"),
        (changed(CONFIG, num_hidden_layers=9), CONFIG, "does not fit"),
        (changed(CONFIG, hidden_size=128), WEIGHTS, "and by its config.json it should be"),
        (lambda f: OTHER.save(f), "tokenizer.json", "is not the one that the model was trained"),
        (swapped, "", "are not of one model"),
        (pickled, "pytorch_model.bin", "a pickle can run any program"),
    ],
)  # fmt: skip
def test_a_broken_folder_is_refused_by_name(
    tmp_path: Path, breaks: Callable[[Path], None], file: str, message: str
) -> None:
    folder = save_folder(random_model(), TOKENIZER, tmp_path / "model")
    load_folder(folder)
    breaks(folder)
    with pytest.raises(UserError) as told:
        load_folder(folder)
    assert "\n" not in str(told.value) and str(folder) in str(told.value)
    assert file in str(told.value) and message in str(told.value)
