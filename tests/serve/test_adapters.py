"""Adapters by name: each answers as its merged model does, and the base as it did."""

from pathlib import Path

import pytest
import torch

from cygnet.errors import UserError
from cygnet.export.adapter import base_hash, save_adapter, with_adapter
from cygnet.export.huggingface import load_folder, save_folder
from cygnet.model.lora import take_adapter
from cygnet.serve.offered import find_places, load
from cygnet.serve.settings import ServeConfig
from tests.model.test_lora import trained
from tests.serve.running import TOKENIZER, running

ASKED = [{"role": "user", "content": "a swan and a lake"}]


def make_adapter(base: Path, folder: Path, seed: int) -> Path:
    model, _ = load_folder(base)
    sha256 = base_hash(model)
    adapter = take_adapter(trained(model, seed, use_dora=bool(seed)))
    assert adapter
    save_adapter(adapter, folder, base.name, sha256)
    return folder


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_adapters_answer_under_their_names(folder: Path, tmp_path: Path, dtype: str) -> None:
    adapters = [make_adapter(folder, tmp_path / f"lora-{seed}", seed) for seed in (0, 1)]
    base, tokenizer = load_folder(folder)
    merged = [
        save_folder(with_adapter(base, adapter), tokenizer, tmp_path / f"merged-{seed}")
        for seed, adapter in enumerate(adapters)
    ]
    alone = {}
    with running(folder, *merged, dtype=dtype) as server:
        for name in ("swan", "merged-0", "merged-1"):
            alone[name] = answer(server.client, name)
    assert len(set(alone.values())) == 3
    named = (f"poems={adapters[0]}", str(adapters[1]))
    with running(folder, dtype=dtype, adapter=named) as server:
        names = [model.id for model in server.client.models.list()]
        assert names == ["swan", "poems", "lora-1"]
        found = [answer(server.client, name) for name in names]
        engines = [driver.engine for driver in server.service.drivers]
    assert found == list(alone.values())
    first, *others = (engine._runner.model.model.embed_tokens.weight for engine in engines)
    assert all(other.data_ptr() == first.data_ptr() for other in others)


def answer(client: object, name: str) -> str:
    said = client.chat.completions.create(  # type: ignore[attr-defined]
        model=name, messages=ASKED, temperature=0, max_tokens=12
    )
    return str(said.choices[0].message.content)


def test_what_is_no_adapter_of_the_model_is_refused(folder: Path, tmp_path: Path) -> None:
    adapter = make_adapter(folder, tmp_path / "poems", 0)
    with pytest.raises(UserError, match="goes with one model"):
        find_places([str(folder), f"other={folder}"], False, [str(adapter)])
    with pytest.raises(UserError, match="two models are called 'swan'"):
        find_places([str(folder)], False, [f"swan={adapter}"])
    with pytest.raises(UserError, match=r"holds no adapter_config\.json"):
        find_places([str(folder)], False, [str(folder)])
    other, _ = load_folder(folder)
    with torch.no_grad():
        other.model.norm.weight += 0.01
    save_folder(other, TOKENIZER, tmp_path / "other")
    places = find_places([str(tmp_path / "other")], False, [str(adapter)])
    with pytest.raises(UserError, match="trained on another base"):
        load(places, ServeConfig(models=("other",), dtype="fp32"))
