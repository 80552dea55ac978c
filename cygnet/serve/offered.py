"""The models of a server: found by the names that a person gave, loaded, each with its engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cygnet.errors import UserError
from cygnet.export.adapter import ADAPTER_WEIGHTS, load_adapter, with_adapter
from cygnet.export.architecture import read_notes
from cygnet.export.huggingface import GENERATION_FILE, WEIGHTS_FILE, find_model, read_folder
from cygnet.export.model_card import find_run
from cygnet.files import read_json
from cygnet.generate.constrained import Grammars
from cygnet.generate.engine import Engine
from cygnet.generate.request import Request
from cygnet.generate.sampling import Sampling
from cygnet.model.kv_cache import KVCache
from cygnet.model.transformer import Transformer
from cygnet.serve.driver import Driver
from cygnet.serve.settings import ServeConfig
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.hardware import resolve_dtype

MIN_LEN = 16
"""Tokens that a slot must hold to be of any use."""
MOST_SLOTS, FEWEST_SLOTS = 32, 4
"""How many slots an engine gets where `slots` is left open, as far as memory for them goes."""
_SAMPLED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Place:
    """A model that is to be offered.

    Attributes:
        name: how clients call it.
        folder: the model folder.
        stage: the last stage that made it, "imported", or none where that is not known.
        same_as: another name of the same model, which has the engine.
        adapter: folder of a LoRA adapter that is merged into the model.
        base: name of the place that has the adapter's base.
    """

    name: str
    folder: Path
    stage: str | None
    same_as: str | None = None
    adapter: Path | None = None
    base: str | None = None


@dataclass(frozen=True, eq=False)
class Offered:
    """A model that is ready to answer.

    Attributes:
        name, stage: see `Place`.
        created: seconds since 1970 when its weights were written.
        num_parameters: of the model.
        tokenizer: its own.
        grammars: for its tokenizer.
        driver: runs its engine.
        sampling: how answers are drawn where a request does not say.
    """

    name: str
    stage: str | None
    created: int
    num_parameters: int
    tokenizer: Tokenizer
    grammars: Grammars
    driver: Driver
    sampling: Sampling

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.driver.engine.max_len

    @property
    def chats(self) -> bool:
        """Whether it has learnt to answer; else it goes on from the last message's text."""
        return self.stage != "pretrain" and bool(self.tokenizer.chat_template)

    def describe(self) -> dict[str, Any]:
        """Return its entry in the list of models."""
        return {
            "id": self.name, "object": "model", "created": self.created, "owned_by": "cygnet",
            "context_length": self.context, "stage": self.stage,
        }  # fmt: skip

    def summary(self) -> str:
        """Return what a person is told of it at the start."""
        engine = self.driver.engine
        stage = f"{self.stage}, " if self.stage else ""
        return (
            f"{self.name} ({self.num_parameters / 1e6:.1f} M parameters, {stage}"
            f"{engine.num_slots} slots of {engine.max_len} tokens)"
        )


def find_places(models: Sequence[str], stages: bool, adapters: Sequence[str] = ()) -> list[Place]:
    """Return what is to be offered for the folders that a person named.

    Args:
        models: `FOLDER` or `NAME=FOLDER`.
        stages: offer each stage of a run, besides the newest model under the run's own name.
        adapters: `FOLDER` or `NAME=FOLDER` of LoRA adapters; the first model is their base.

    Raises:
        UserError: there is no model or adapter, or two have the same name.
    """
    places: list[Place] = []
    for model in models:
        name, path = _named(model)
        places += _of_folder(name, path, stages)
    if adapters and len(models) > 1:
        raise UserError("--adapter goes with one model, its base; serve the others by themselves")
    base = places[0]
    for adapter in adapters:
        name, path = _named(adapter)
        load_adapter(path)  # what is wrong with it is told before any model is loaded
        run = find_run(path)
        stage = run.stages[-1][0] if run and run.stages else "adapter"
        places.append(Place(name, base.folder, stage, adapter=path, base=base.same_as or base.name))
    names = [place.name for place in places]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two models are called {name!r}; name one by OTHER=FOLDER")
    return places


def _named(given: str) -> tuple[str, Path]:
    """Return the name and the folder of `NAME=FOLDER`, or of a folder alone."""
    named, is_named, path = given.rpartition("=")
    # A folder may have the sign in its own name.
    if is_named and Path(given).exists():
        named, path = "", given
    folder = Path(path)
    is_inside_run = folder.resolve().name == "adapter"
    own = folder.resolve().parent if is_inside_run else folder.resolve()
    return named or own.name, folder


def _of_folder(name: str, path: Path, stages: bool) -> Iterator[Place]:
    folder = find_model(path)
    run = find_run(folder)
    if run is None:
        origin = read_notes(folder)
        yield Place(name, folder, "imported" if origin.get("imported_from") else None)
        return
    inside = [
        (stage, place / "model")
        for stage, place in run.stages
        if (place / "model" / WEIGHTS_FILE).is_file()
    ]
    last = run.stages[-1][0] if run.stages else None
    if not stages or not inside:
        yield Place(name, folder, last)
        return
    yield Place(name, inside[-1][1], inside[-1][0], f"{name}/{inside[-1][0]}")
    for stage, place in inside:
        yield Place(f"{name}/{stage}", place, stage)


async def warm_up(driver: Driver) -> None:
    """Answer something, so that the first client need not wait for what torch loads and makes."""
    sampling = Sampling(max_new_tokens=2)
    request = Request(prompt=[0, 0], sampling=sampling, ignore_end=True)
    job = await driver.submit([request], 1, streams=False)
    while await job.news():
        pass


def load(places: Sequence[Place], config: ServeConfig) -> dict[str, Offered]:
    """Load models and begin their engines, within the event loop; in the order of `places`.

    Raises:
        UserError: a folder is broken, or the settings do not fit a model.
    """
    ready: dict[str, Offered] = {}
    for place in places:
        if place.same_as is None and place.base is None:
            adapted = [other for other in places if other.base == place.name]
            ready |= _load(place, adapted, config)
    offered = {}
    for place in places:
        own = ready[place.same_as or place.name]
        offered[place.name] = own if place.same_as is None else replace(own, name=place.name)
    return offered


def _load(place: Place, adapted: Sequence[Place], config: ServeConfig) -> dict[str, Offered]:
    """Return a model and those that its adapters make of it, which share what no adapter changes.

    An adapter is merged, so that it answers as fast as its base.
    """
    dtype, _ = resolve_dtype(config.dtype, torch.device("cpu"))
    model, tokenizer = read_folder(place.folder, dtype, config.yarn_factor)
    models = {place: model}
    for other in adapted:
        assert other.adapter is not None
        models[other] = with_adapter(model, other.adapter)
    embeddings = nn.Parameter(model.model.embed_tokens.weight.to(dtype), requires_grad=False)
    output = None if model.config.tie_embeddings else model.lm_head.weight.to(dtype)
    for one in models.values():
        one.model.embed_tokens.weight = embeddings
        if output is not None:
            one.lm_head.weight = nn.Parameter(output, requires_grad=False)
    grammars = Grammars(tokenizer)
    return {
        where.name: _begun(where, one, tokenizer, grammars, config) for where, one in models.items()
    }


def _begun(
    place: Place, model: Transformer, tokenizer: Tokenizer, grammars: Grammars, config: ServeConfig
) -> Offered:
    draft = None
    if config.draft is not None:
        dtype = model.compute_dtype
        draft, draft_tokenizer = read_folder(find_model(config.draft), dtype, config.yarn_factor)
        if draft_tokenizer.vocabulary_hash != tokenizer.vocabulary_hash:
            raise UserError(
                f"--draft {config.draft}: has another tokenizer than {place.name}; a draft model "
                "must have the same vocabulary"
            )
    num_slots, max_len = _sizes(model, draft, config)
    engine = Engine(
        model,
        tokenizer,
        num_slots=num_slots,
        max_len=max_len,
        max_waiting=config.max_queue,
        weights=config.weights,
        draft=draft,
    )
    written = place.adapter / ADAPTER_WEIGHTS if place.adapter else place.folder / WEIGHTS_FILE
    return Offered(
        place.name,
        place.stage,
        int(written.stat().st_mtime),
        model.config.num_parameters,
        tokenizer,
        grammars,
        Driver(engine),
        _sampling(place.folder),
    )


def _sizes(model: Transformer, draft: Transformer | None, config: ServeConfig) -> tuple[int, int]:
    """Return the number of slots and the length of each, as far as they fit the cache's memory."""
    context = model.config.max_position
    if config.max_len is not None and not 1 < config.max_len <= context:
        raise UserError(f"--max_len {config.max_len}: the model's context is {context} tokens")
    token_bytes = sum(
        KVCache.token_bytes(one.config, one.compute_dtype) for one in (model, draft) if one
    )
    num_tokens = int(config.cache_gb * 1e9) // token_bytes
    fewest = config.slots or FEWEST_SLOTS
    max_len = config.max_len or min(context, max(num_tokens // fewest, 2))
    if max_len < MIN_LEN:
        raise UserError(
            f"--cache_gb {config.cache_gb:g} holds {num_tokens} tokens, too few for {fewest} "
            "slots: give more, or fewer --slots"
        )
    return config.slots or max(1, min(MOST_SLOTS, num_tokens // max_len)), max_len


def _sampling(folder: Path) -> Sampling:
    """Return how a model's own generation_config.json draws answers."""
    file = folder / GENERATION_FILE
    values: Mapping[str, Any] = read_json(file)
    own = {name: values[name] for name in _SAMPLED if values.get(name) is not None}
    if values and not values.get("do_sample", False):
        own = {"temperature": 0.0}
    try:
        return Sampling(**own, seed=None)
    except (UserError, TypeError) as error:
        raise UserError(f"{file}: {error}") from error
