"""Model folders in the layout of Hugging Face: written, found and read without transformers."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cygnet.config import STAGES, ModelConfig
from cygnet.errors import UserError
from cygnet.export.adapter import refuse_adapter
from cygnet.export.architecture import (
    CONFIG_FILE,
    read_config,
    read_notes,
    scores_of,
    transformers_config,
)
from cygnet.files import folder_atomic, read_json, write_json
from cygnet.model.rope import yarn_config
from cygnet.model.scoring import ScoringTransformer
from cygnet.model.transformer import Transformer
from cygnet.text.tokenizer import Tokenizer

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
GENERATION_FILE = "generation_config.json"
PLACES = (".", "model", *(f"{stage}/model" for stage in reversed(STAGES)))
"""Where a folder that a person names may hold its model; of several, the first is taken."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format."""


def save_folder(
    model: Transformer, tokenizer: Tokenizer, folder: Path, extra: Mapping[str, Any] | None = None
) -> Path:
    """Write a folder that plain transformers loads, without code of ours; return it.

    The weights are float32. The folder is there whole or not at all; one that stood there before
    is replaced. The same model gives the same bytes. A model with a score is written as a sequence
    classifier of one label.

    Args:
        model: its config and weights.
        tokenizer: its files go beside the weights.
        folder: where to.
        extra: kept in config.json under `cygnet`, where other programs leave it alone.
    """
    with folder_atomic(folder) as temporary:
        write_folder(model, tokenizer, temporary, extra=extra)
    return folder


def write_folder(
    model: Transformer,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int | None = None,
    generation: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the files of a model folder into an empty one.

    Args:
        model: its config and weights.
        tokenizer: its files go beside the weights.
        folder: where to.
        dtype: what the weights are rounded to.
        max_shard_bytes: the weights are cut into files of at most this size, a tensor never.
        generation: generation_config.json; left out, how Cygnet draws answers.
        extra: kept in config.json under `cygnet`.
    """
    tokenizer.save(folder)
    name = str(dtype).removeprefix("torch.")
    is_scorer = isinstance(model, ScoringTransformer)
    config = transformers_config(model.config, tokenizer, name, extra, is_scorer)
    write_json(folder / CONFIG_FILE, config)
    if not is_scorer:
        write_json(folder / GENERATION_FILE, generation or default_generation(tokenizer))
    weights = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    shards = _sharded(weights, max_shard_bytes)
    if len(shards) == 1:
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        return
    place: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        place |= dict.fromkeys(shard, file)
    total = sum(map(_num_bytes, weights.values()))
    write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": place})


def default_generation(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the generation_config.json of models trained here."""
    return {
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.95,
        "top_k": 0,
        "eos_token_id": list(dict.fromkeys([tokenizer.im_end_id, tokenizer.eos_id])),
        "pad_token_id": tokenizer.eos_id,
    }


def _sharded(weights: Mapping[str, Tensor], max_bytes: int | None) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in weights.items():
        if max_bytes and shards[-1] and filled + _num_bytes(tensor) > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += _num_bytes(tensor)
    return shards


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def find_model(path: Path) -> Path:
    """Return the model folder that a person means by a run folder or model folder.

    A run of several stages gives the last stage's model.

    Raises:
        UserError: there is none; says what is missing.
    """
    for place in PLACES:
        if all((path / place / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE)):
            return path / place
    if not path.exists():
        raise UserError(f"{path}: no such folder; give that of a finished run or of a model")
    refuse_adapter(path)
    refuse_pickles(path)
    if (path / INDEX_FILE).is_file():
        raise UserError(
            f"{path}: its weights are in several files; cygnet import {path} --out FOLDER makes a "
            "model of them that Cygnet trains and serves"
        )
    present = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if (path / name).is_file()]
    if present:
        missing = WEIGHTS_FILE if present == [CONFIG_FILE] else CONFIG_FILE
        raise UserError(f"{path}: has {present[0]} but no {missing}, so it is no whole model")
    raise UserError(
        f"{path}: holds no model ({CONFIG_FILE} and {WEIGHTS_FILE}, there or in its model/); give "
        "the folder of a finished run or of a model"
    )


def load_folder(
    folder: Path, compute_dtype: torch.dtype = torch.float32, yarn_factor: float | None = None
) -> tuple[Transformer, Tokenizer]:
    """Load a model folder or the last model of a run folder, with weights in float32 on the CPU.

    Args:
        folder: written by `save_folder`, or a Qwen3, Qwen2 or Llama of another maker in one
            weights file.
        compute_dtype: the type that the model will compute in.
        yarn_factor: stretch the context by so much (`cygnet.model.rope.yarn_config`).

    Raises:
        UserError: it is no model that Cygnet can run; names the file and what is wrong.
    """
    return read_folder(find_model(folder), compute_dtype, yarn_factor)


def load_scorer(
    folder: Path, compute_dtype: torch.dtype = torch.float32
) -> tuple[ScoringTransformer, Tokenizer]:
    """Load a reward model, its weights in float32 on the CPU.

    Args:
        folder: a run or model folder of `cygnet reward`, or a sequence classifier of one label of
            another maker.
        compute_dtype: the type that the model will compute in.

    Raises:
        UserError: it is no reward model; says what it is.
    """
    found = find_model(folder)
    number = scores_of(found / CONFIG_FILE)
    if number != 1:
        what = f"a classifier of {number} labels" if number else "a language model, which answers"
        raise UserError(
            f"{folder}: is {what}; a reward model is wanted, which gives a conversation one score "
            "(cygnet reward trains one)"
        )
    tokenizer, config = _read_sizes(found)
    # A classifier has no output matrix, whatever its config.json says of one.
    config = dataclasses.replace(config, tie_embeddings=True)
    weights = _read_weights(found, config, ScoringTransformer)
    return ScoringTransformer.from_weights(config, weights, compute_dtype), tokenizer


def read_folder(
    folder: Path, compute_dtype: torch.dtype = torch.float32, yarn_factor: float | None = None
) -> tuple[Transformer, Tokenizer]:
    """Load a folder as `load_folder` does; its weights may be in several files."""
    if scores_of(folder / CONFIG_FILE):
        raise UserError(
            f"{folder}: is a reward model, which scores conversations and cannot answer; give a "
            "language model"
        )
    tokenizer, config = _read_sizes(folder)
    if yarn_factor is not None:
        config = yarn_config(config, yarn_factor)
    weights = _read_weights(folder, config, Transformer)
    return Transformer.from_weights(config, weights, compute_dtype), tokenizer


def _read_sizes(folder: Path) -> tuple[Tokenizer, ModelConfig]:
    tokenizer = Tokenizer.load(folder)
    config = read_config(folder / CONFIG_FILE)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} entries and the model only "
            f"{config.vocab_size}, so they are not of one model"
        )
    trained_with = read_notes(folder).get("tokenizer")
    if trained_with not in (None, tokenizer.vocabulary_hash):
        raise UserError(
            f"{folder}: its tokenizer.json is not the one that the model was trained with (the "
            f"vocabularies differ); put the right one back"
        )
    return tokenizer, config


def refuse_pickles(folder: Path) -> None:
    """Refuse a folder whose weights are pickled, unless they are there as safetensors too.

    Raises:
        UserError: names the file.
    """
    files = sorted(file for file in folder.glob("*") if file.is_file())
    pickles = [file.name for file in files if file.suffix in PICKLED]
    if pickles and not any(file.suffix == ".safetensors" for file in files):
        raise UserError(
            f"{folder}: the weights are pickled ({pickles[0]}), and a pickle can run any program "
            "when it is opened, so Cygnet never does; ask its maker for safetensors"
        )


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder's model.

    Raises:
        UserError: one is missing; names it.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    refuse_pickles(folder)
    index = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise UserError(
            f"{folder}: has neither {WEIGHTS_FILE} nor an {INDEX_FILE} that can be read"
        )
    names = sorted(set(map(str, index.values())))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing, which its {INDEX_FILE} names")
    return [folder / name for name in names]


def _read_weights(folder: Path, config: ModelConfig, kind: type[Transformer]) -> dict[str, Tensor]:
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in kind(config).state_dict().items()}
    found: dict[str, Tensor] = {}
    for name, tensor, path in _tensors(folder):
        if config.tie_embeddings and name == "lm_head.weight":
            continue  # some writers store the shared matrix twice
        if name.endswith("rotary_emb.inv_freq"):
            continue  # older Llamas store what follows from config.json
        if name not in wanted:
            raise UserError(f"{path}: holds {name}, which the model of its {CONFIG_FILE} lacks")
        if tensor.shape != wanted[name]:
            raise UserError(
                f"{path}: {name} is {tuple(tensor.shape)}, and by its {CONFIG_FILE} it should be "
                f"{tuple(wanted[name])}"
            )
        # A copy: the tensors of a mapped file lie at addresses that slow matrix products down.
        found[name] = tensor.to(torch.float32, copy=True)
    for name in wanted:
        if name not in found:
            raise UserError(f"{folder}: lacks {name}, so it does not fit its {CONFIG_FILE}")
    return found


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor, Path]]:
    for path in weight_files(folder):
        _check_length(path)
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: damaged ({error})") from error
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                raise UserError(f"{path}: {name} holds {tensor.dtype}; only floats are weights")
            yield name, tensor, path


def _check_length(path: Path) -> None:
    """Refuse a file that is shorter than its header says, with both lengths."""
    with open(path, "rb") as file:
        start = file.read(8)
        (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
        try:
            header = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
            ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # the library says what is wrong
    promised, there = 8 + length + max(ends, default=0), path.stat().st_size
    if there < promised:
        raise UserError(f"{path}: truncated, {there:,} bytes of {promised:,}; copy it again")
