"""One step each: it reads folders, writes one, and knows if that is up to date."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import tyro

from cygnet import __version__
from cygnet.config import TrainConfig, plain, stages_of_run
from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.corpus.instructions import InstructionConfig, build_instructions
from cygnet.corpus.pipeline import prepare
from cygnet.corpus.settings import DataConfig
from cygnet.corpus.small_talk import KIND as SMALL_TALK
from cygnet.errors import UserError
from cygnet.evals.evaluate import evaluate
from cygnet.evals.result import EvalConfig
from cygnet.export.huggingface import find_model, load_folder
from cygnet.files import (
    is_sealed,
    read_json,
    read_jsonl,
    sealed,
    sha256_file,
    why_sealed,
    write_json,
)
from cygnet.generate.generator import Generator
from cygnet.model.lora import LoraConfig
from cygnet.model.transformer import Transformer
from cygnet.progress import say
from cygnet.stages.preference.pairs import PairConfig, build_pairs
from cygnet.text.learn import make_tokenizer, report_vocabularies
from cygnet.text.sample import SampleConfig
from cygnet.text.tokenizer import Tokenizer
from cygnet.text.vocabularies import load_vocabulary, vocabulary_files
from cygnet.train.hardware import find_hardware
from cygnet.train.run_folder import (
    TRAINING_FILES,
    data_of,
    differences,
    own_stage,
    stage_folders,
)

INPUTS, EVAL_INPUTS, EVAL_RESULT = "inputs.json", "eval_inputs.json", "eval.json"
VOCABULARY_INPUTS = "vocabulary_inputs.json"
ALL_SAMPLED = SampleConfig()
From = Annotated[Path | None, tyro.conf.arg(name="from", metavar="RUN_OR_MODEL")]
Train = Annotated[TrainConfig, tyro.conf.arg(name="")]
Lora = Annotated[LoraConfig, tyro.conf.arg(name="")]


class Command(Protocol):
    """The settings of a command that trains."""

    @property
    def out(self) -> Path:
        """The run folder."""
        ...


C = TypeVar("C", bound=Command)


def train_tokenizer_step(
    data: Path, out: Path, vocab_size: int, sampling: SampleConfig = ALL_SAMPLED
) -> Path:
    """Train a tokenizer on a data folder, unless `out` holds the one of the same inputs."""
    inputs = {"data": sha256_file(data / "manifest.json"), "vocab_size": vocab_size}
    if sampling != ALL_SAMPLED:
        inputs["sample"] = plain(sampling)
    if not up_to_date("tokenizer", out, inputs):
        if out.exists() and is_sealed(out):
            raise UserError(why_sealed(out))
        for name in (INPUTS, VOCABULARY_INPUTS):  # until all is there, nothing is
            (out / name).unlink(missing_ok=True)
        make_tokenizer(data / TRAIN, out, vocab_size, data / HELDOUT, sampling)
        record(out, inputs)
    return out


def compare_vocabularies_step(
    data: Path,
    out: Path,
    compare: Sequence[str],
    sizes: Sequence[int],
    width: int,
    sampling: SampleConfig = ALL_SAMPLED,
) -> None:
    """Hold a trained tokenizer against others, where that is not yet done; see its report.

    Args:
        data: what it was trained on.
        out: its folder.
        compare: vocabularies of other makers: files, or folders of them.
        sizes: of a sweep.
        width: of a model, whose embedding's parameters are told.
        sampling: as in `train_tokenizer_step`.
    """
    files = vocabulary_files(compare)
    inputs = {
        "data": sha256_file(data / "manifest.json"),
        "tokenizer": sha256_file(out / "tokenizer.json"),
        "compare": {str(file): sha256_file(file) for file in files},
        "sweep": list(sizes),
        "width": width,
        "sample": plain(sampling),
    }
    if not up_to_date("comparison", out, inputs, VOCABULARY_INPUTS):
        known = sorted(map(load_vocabulary, files), key=lambda one: (one.num_entries, one.name))
        report_vocabularies(out, data / TRAIN, data / HELDOUT, known, sizes, width, sampling)
        record(out, inputs, VOCABULARY_INPUTS)


def make_instructions(
    data: Path, out: Path, config: InstructionConfig, weights: Mapping[str, float] | None = None
) -> Path:
    """Make conversations from a data folder, unless they are up to date.

    Args:
        data: a folder of `cygnet data`.
        out: replaced if it is there and not up to date.
        config: how many of what.
        weights: see `build_instructions`.
    """
    inputs = {
        "data": sha256_file(data / "manifest.json"),
        "settings": plain(config),
        "weights": " ".join(f"{name}={value:g}" for name, value in (weights or {}).items()) or None,
    }
    if not up_to_date("instructions", out, inputs):
        build_instructions(data, out, config, weights)
        record(out, inputs)
        counts = read_json(out / "manifest.json")["counts"]["train"]
        told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        say(f"instructions: {told}")
        if SMALL_TALK in counts:
            say(
                f"instructions: {counts[SMALL_TALK]} of them are small talk that Cygnet brings "
                "along (greetings, who it is); --instructions.small_talk_repeats 0 leaves it out"
            )
    return out


def make_pairs(
    instructions: Path, start: Path, out: Path, config: PairConfig, train: TrainConfig
) -> Path:
    """Make preference pairs with the model at `start`, unless they are up to date."""
    inputs = {
        "instructions": sha256_file(instructions / "manifest.json"),
        "start": sha256_file(start / "model.safetensors"),
        "settings": plain(config) | {"max_seq_len": train.max_seq_len},
    }
    if not up_to_date("pairs", out, inputs):
        model, tokenizer = _load_on_device(start, train)
        generator = Generator(model, tokenizer)
        build_pairs(instructions, generator, out, config, train.max_seq_len)
        record(out, inputs)
    return out


def evaluate_stages(
    run: Path, config: EvalConfig, train: TrainConfig, data: Path | None = None
) -> None:
    """Evaluate each stage's model on held-out data, where that is not yet done.

    Args:
        run: a whole run, or the run folder of a single stage.
        config: how much is measured.
        train: says on which device, and in which type.
        data: a data folder whose held-out text is taken in place of the run's own.

    Raises:
        UserError: no model or no held-out data there.
    """
    stages = {
        stage: folder
        for stage, folder in stage_folders(run, stages_of_run(run)).items()
        if (folder / "model").exists()
    }
    if not stages:
        raise UserError(f"{run}: holds no finished stage; give the folder of a run")
    names = ("data", "instructions", "pairs")
    is_inside = own_stage(run) is not None and not any((run / name).exists() for name in names)
    whole = run.parent if is_inside else run  # a stage inside a whole run has that run's
    places = {name: whole / name for name in names}
    places |= {"data": data} if data else {}
    heldout = {name: folder / HELDOUT for name, folder in places.items()}
    found = {name: path for name, path in heldout.items() if path.exists()}
    if not found or (data and "data" not in found):
        raise UserError(
            f"{data or run}: no held-out data there to measure on; give --data FOLDER, one that "
            "cygnet data made"
        )
    hashes = {name: sha256_file(heldout[name]) if name in found else None for name in heldout}
    rows = {name: list(read_jsonl(path)) for name, path in found.items()}
    for stage, own in stages.items():
        folder = find_model(own / "model")
        inputs = {
            "heldout": hashes,
            "model": sha256_file(folder / "model.safetensors"),
            "settings": plain(config),
        }
        if up_to_date(f"evaluation of {stage}", own, inputs, EVAL_INPUTS):
            continue
        model, tokenizer = _load_on_device(folder, train)
        say(f"evaluation of {stage}")
        result = evaluate(
            model,
            tokenizer,
            rows.get("data", []),
            rows.get("instructions", []),
            [row for row in rows.get("pairs", []) if "chosen" in row],  # others have labels
            config,
        )
        result.save(own / EVAL_RESULT)
        record(own, inputs, EVAL_INPUTS)


def _load_on_device(folder: Path, train: TrainConfig) -> tuple[Transformer, Tokenizer]:
    hardware = find_hardware(train)
    model, tokenizer = load_folder(folder, hardware.dtype)
    return model.to(hardware.device), tokenizer


def up_to_date(step: str, folder: Path, inputs: dict[str, Any], name: str = INPUTS) -> bool:
    """Compare what a step's folder was made from with what it would be made from now."""
    inputs = {**json.loads(json.dumps(inputs)), "version": __version__}
    recorded = read_json(folder / name)
    if not recorded or (name == EVAL_INPUTS and not (folder / EVAL_RESULT).exists()):
        return False
    changed = differences(recorded, inputs)
    if changed:
        say(f"{step}: made again, for {'; '.join(changed)}")
    else:
        say(f"{step}: up to date, nothing to do ({folder})")
    return not changed


def record(folder: Path, inputs: dict[str, Any], name: str = INPUTS) -> None:
    """Write what a step's folder was made from, for `up_to_date`."""
    write_json(folder / name, {**inputs, "version": __version__})


def data_folder(paths: Sequence[str], out: Path) -> Path:
    """Return the data folder that the paths name, or make it at `out`."""
    if len(paths) == 1 and (Path(paths[0]) / TRAIN).exists():
        return Path(paths[0])
    try:
        return prepare(DataConfig(paths=tuple(paths)), out)
    except UserError as error:
        if "--corpus." in str(error):
            error.args = (f"{error} (a flag of cygnet data, whose folder --data takes too)",)
        raise


def learnt_instructions(verb: str, start: Path, out: Path, config: InstructionConfig) -> Path:
    """Return conversations of what the starting model's run learnt from, and say which they are."""
    learnt = data_of(start)
    if learnt is None:
        say(
            f"{verb}: no --data given, and what {start} learnt from is not known: taking Cygnet's "
            "built-in text"
        )
        learnt = data_folder((), out / "data")
    else:
        say(f"{verb}: no --data given: taking {learnt}, which {start} learnt from")
        if learnt.name == "instructions":
            return learnt
    return make_instructions(learnt, out / "instructions", config)


def keeps_runs(command: Callable[[C], None]) -> Callable[[C], None]:
    """Let a command refuse a folder that holds another run before it changes what is there."""

    @functools.wraps(command)
    def keeping(config: C) -> None:
        out, resume = config.out, next(
            value.resume for value in vars(config).values() if isinstance(value, TrainConfig)
        )  # fmt: skip
        if resume == "never" or not (out / "config.yaml").exists():
            command(config)
            return
        with sealed(out, (*TRAINING_FILES, "shards")):  # shards come from the rest, at any time
            command(config)

    return keeping


def required(start: Path | None, verb: str) -> Path:
    """Return the model that a stage starts from, or refuse to do without.

    Raises:
        UserError: none is given.
    """
    if start is None:
        raise UserError(f"cygnet {verb} needs a model to start from: --from RUN_OR_MODEL")
    return start


def finish(out: Path, model: Path, following: str) -> None:
    """Say where the finished model is, and what may follow."""
    chat = f"cygnet chat {out}"
    after = following if following == chat else f"{following}    or    {chat}"
    say(f"\nDone. The model is in {model}.\nNext: {after}")
