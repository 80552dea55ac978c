"""Model folders, and llama.cpp's server with a model of ours."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.export.gguf_file import write_gguf
from cygnet.export.huggingface import save_folder
from cygnet.text.tokenizer import Tokenizer, train_tokenizer
from tests.models import SMALL, random_model


def swan_tokenizer() -> Tokenizer:
    return train_tokenizer(["a swan 天鹅 and a lake 湖水 in the grey rain"] * 3, 320)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(random_model(), swan_tokenizer(), tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that with `--top-k 20` never ends its answer, and writes printable ASCII alone."""
    tokenizer = swan_tokenizer()
    model = random_model(dataclasses.replace(SMALL, max_position=50_000))
    silent = [
        token for token in range(tokenizer.vocab_size)
        if not re.fullmatch("[!-~]+", tokenizer.decode([token], skip_special=True))
    ]  # fmt: skip
    with torch.no_grad():
        model.model.embed_tokens.weight[silent] = 0
        model.model.embed_tokens.weight[tokenizer.vocab_size :] = 0
    return save_folder(model, tokenizer, tmp_path_factory.mktemp("endless") / "model")


@pytest.fixture(scope="session")
def llama_cpp(
    endless: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[int], str]]:
    """Give a function that starts llama.cpp's server with that model and returns its address."""
    xllamacpp = pytest.importorskip("xllamacpp")
    from cygnet.export.huggingface import load_folder

    model, tokenizer = load_folder(endless)
    file = tmp_path_factory.mktemp("gguf") / "endless.gguf"
    write_gguf(model, tokenizer, file, "f32", "endless")
    servers: dict[int, Any] = {}

    def start(context: int) -> str:
        if context not in servers:
            params = xllamacpp.CommonParams()
            params.model.path = str(file)
            params.n_ctx, params.n_parallel, params.verbosity, params.warmup = context, 1, -1, False
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
            servers[context] = xllamacpp.Server(params)
        return str(servers[context].listening_address)

    yield start
    servers.clear()
