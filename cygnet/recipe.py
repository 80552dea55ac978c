"""Which step comes after which. Each step reads folders, writes one, and knows if it is up to date.

`cygnet run` takes the whole way; each other command takes one step of it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from cygnet import __version__
from cygnet.config import ModelConfig, TrainConfig, as_yaml, plain
from cygnet.corpus import builtin
from cygnet.corpus.instructions import InstructionConfig, build_instructions
from cygnet.corpus.pipeline import HELDOUT, TRAIN, DataConfig, prepare
from cygnet.corpus.small_talk import KIND as SMALL_TALK
from cygnet.errors import UserError
from cygnet.evals.evaluate import evaluate
from cygnet.evals.report import write_report
from cygnet.evals.result import EvalConfig
from cygnet.export.huggingface import find_model, load_folder
from cygnet.files import folder_atomic, read_json, read_jsonl, sha256_file, write_atomic, write_json
from cygnet.generate.generator import Generator
from cygnet.model.transformer import Transformer
from cygnet.progress import say
from cygnet.stages.dpo import DpoConfig, dpo
from cygnet.stages.pairs import NoPairsError, PairConfig, build_pairs, take_pairs
from cygnet.stages.pretrain import pretrain
from cygnet.stages.sft import sft
from cygnet.text.tokenizer import Tokenizer, make_tokenizer
from cygnet.train.comparison import describe_processes
from cygnet.train.hardware import find_hardware
from cygnet.train.layout import layout_of
from cygnet.train.parallel.choose import check_parallel, choose_parallel
from cygnet.train.parallel.group import connect, first, on_rank_zero, world
from cygnet.train.planner import describe_plan, plan, smallest_plan
from cygnet.train.run_folder import data_of, differences, keep_aside, stage_folders

STAGES = ("pretrain", "sft", "dpo")
MOST_PROCESSES = 1_000_000
"""That `cygnet plan` reckons with."""
INPUTS, EVAL_INPUTS, EVAL_RESULT = "inputs.json", "eval_inputs.json", "eval.json"
From = Annotated[Path | None, tyro.conf.arg(name="from", metavar="RUN_OR_MODEL")]
Train = Annotated[TrainConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class RunCommand:
    """The whole way, from raw text to a report. A YAML file holds the same keys."""

    reads_yaml: ClassVar[bool] = True
    default_preset: ClassVar[str] = "demo"
    unlike_preset: ClassVar[dict[str, str]] = {"out": "runs/mine"}
    data: tuple[str, ...] = ()
    """Files, folders or globs of raw text or conversations; none takes the built-in text."""
    out: Path = Path("runs/mine")
    """Folder for everything that is made."""
    corpus: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    pretrain: TrainConfig = TrainConfig()
    instructions: InstructionConfig = InstructionConfig()
    sft: TrainConfig = TrainConfig()
    pairs: PairConfig = PairConfig()
    preference: DpoConfig = DpoConfig()
    dpo: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()


def run_command(config: RunCommand) -> None:
    """Take every step that is not up to date, evaluate each stage, write the report."""
    run, wait_s = config.out, config.pretrain.timeout_s
    for stage in STAGES:
        with _flags_of(stage):
            check_parallel(getattr(config, stage), config.model, world().size)  # before the data
    with first("data and tokenizer", wait_s):
        data = prepare(dataclasses.replace(config.corpus, paths=config.data), run / "data")
        write_atomic(run / "config.yaml", as_yaml(config))
        tokenizer = train_tokenizer_step(data, run / "tokenizer", config.model.vocab_size)
    with _flags_of("pretrain"):
        base = pretrain(
            data, tokenizer, run / "shards" / "pretrain", run / "pretrain",
            config.model, config.pretrain, renew=True,
        )  # fmt: skip
    with first("instructions", wait_s):
        instructions = make_instructions(data, run / "instructions", config.instructions)
    with _flags_of("sft"):
        tuned = sft(instructions, base, run / "shards" / "sft", run / "sft", config.sft, renew=True)
    last = tuned
    pairs = None
    with first("pairs", wait_s):
        try:
            with _flags_of("dpo"):
                pairs = make_pairs(instructions, tuned, run / "pairs", config.pairs, config.dpo)
        except NoPairsError as error:
            say(f"dpo: left out. {error}")
            if (run / "dpo" / "config.yaml").exists():
                keep_aside(run / "dpo")
    if pairs is not None:
        with _flags_of("dpo"):
            last = dpo(
                pairs, tuned, run / "shards" / "dpo", run / "dpo",
                config.dpo, config.preference, renew=True,
            )  # fmt: skip
    on_rank_zero(lambda: _end_run(config, last))


@contextmanager
def _flags_of(stage: str) -> Iterator[None]:
    """Let errors name a stage's flags as a whole run spells them: --device as --sft.device."""
    try:
        yield
    except UserError as error:
        names = "|".join(field.name for field in dataclasses.fields(TrainConfig))
        error.args = (re.sub(rf"--({names})\b", rf"--{stage}.\1", str(error)),)
        raise


def _end_run(config: RunCommand, last: Path) -> None:
    """Evaluate, put the last model at the top, write the report, and say where all is."""
    run = config.out
    with _flags_of("sft"):
        evaluate_stages(run, config.eval, config.sft)
    with folder_atomic(run / "model") as folder:
        shutil.copytree(last, folder, dirs_exist_ok=True)
    write_report(run, STAGES)
    say(
        f"\nDone. All of it is in {run}:\n"
        f"  {run}/report.html   what each stage changed, with curves and samples (open it)\n"
        f"  {run}/report.md     the same as text\n"
        f"  {run}/model         the finished model, loadable by transformers\n"
        f"Talk to it:\n"
        f"  cygnet chat {run}\n"
        f"The model before alignment, or before it learned to answer:\n"
        f"  cygnet chat {run}/sft    cygnet chat {run}/pretrain"
    )


# One step each


def train_tokenizer_step(data: Path, out: Path, vocab_size: int) -> Path:
    """Train a tokenizer on a data folder, unless `out` holds the one of the same inputs."""
    inputs = {"data": sha256_file(data / "manifest.json"), "vocab_size": vocab_size}
    if not _up_to_date("tokenizer", out, inputs):
        (out / INPUTS).unlink(missing_ok=True)  # until all is there, nothing is
        make_tokenizer(data / TRAIN, out, vocab_size, data / HELDOUT)
        _record(out, inputs)
    return out


def make_instructions(data: Path, out: Path, config: InstructionConfig) -> Path:
    """Make conversations from a data folder, unless they are up to date."""
    inputs = {"data": sha256_file(data / "manifest.json"), "settings": plain(config)}
    if not _up_to_date("instructions", out, inputs):
        build_instructions(data, out, config)
        _record(out, inputs)
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
    if not _up_to_date("pairs", out, inputs):
        model, tokenizer = _load_on_device(start, train)
        generator = Generator(model, tokenizer)
        build_pairs(instructions, generator, out, config, train.max_seq_len)
        _record(out, inputs)
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
        for stage, folder in stage_folders(run, STAGES).items()
        if (folder / "model").exists()
    }
    if not stages:
        raise UserError(f"{run}: holds no finished stage; give the folder of a run")
    places = {"data": data or run / "data"}
    places |= {name: run / name for name in ("instructions", "pairs")}
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
        if _up_to_date(f"evaluation of {stage}", own, inputs, EVAL_INPUTS):
            continue
        model, tokenizer = _load_on_device(folder, train)
        say(f"evaluation of {stage}")
        result = evaluate(
            model,
            tokenizer,
            rows.get("data", []),
            rows.get("instructions", []),
            rows.get("pairs", []),
            config,
        )
        result.save(own / EVAL_RESULT)
        _record(own, inputs, EVAL_INPUTS)


def _load_on_device(folder: Path, train: TrainConfig) -> tuple[Transformer, Tokenizer]:
    hardware = find_hardware(train)
    model, tokenizer = load_folder(folder, hardware.dtype)
    return model.to(hardware.device), tokenizer


def _up_to_date(step: str, folder: Path, inputs: dict[str, Any], name: str = INPUTS) -> bool:
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


def _record(folder: Path, inputs: dict[str, Any], name: str = INPUTS) -> None:
    write_json(folder / name, {**inputs, "version": __version__})


# The single commands


@dataclass(frozen=True, kw_only=True)
class DataCommand:
    """Clean raw files."""

    reads_yaml: ClassVar[bool] = True
    data: tuple[str, ...] = ()
    """Files, folders or globs; none takes the built-in text."""
    out: Path = Path("runs/mine/data")
    """Folder for the clean documents and the report."""
    about: bool = False
    """Say where the built-in text comes from and under which licences, and stop."""
    corpus: DataConfig = DataConfig()


def data_command(config: DataCommand) -> None:
    """Write a data folder, or tell about the built-in text."""
    if config.about:
        print(builtin.about())
        return
    out = prepare(dataclasses.replace(config.corpus, paths=config.data), config.out)
    print((out / "report.md").read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class TokenizerCommand:
    """Train a tokenizer."""

    data: tuple[str, ...] = ()
    """A folder of `cygnet data`, or raw files; none takes the built-in text."""
    out: Path = Path("runs/tokenizer")
    """Folder for the tokenizer; of raw files, the clean text lies in its data/."""
    vocab_size: int = 6400
    """Entries."""


def tokenizer_command(config: TokenizerCommand) -> None:
    """Write a tokenizer folder and print its bytes per token."""
    data = _data_folder(config.data, config.out / "data")
    out = train_tokenizer_step(data, config.out, config.vocab_size)
    print((out / "report.json").read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class PretrainCommand:
    """Pretrain a model."""

    reads_yaml: ClassVar[bool] = True
    data: tuple[str, ...] = ()
    """A folder of `cygnet data`, or raw files; none takes the built-in text."""
    out: Path = Path("runs/pretrain")
    """The run folder."""
    tokenizer: Path | None = None
    """Tokenizer folder; none trains one on the data."""
    from_: From = None
    """A run or model folder to go on from, with its sizes and tokenizer."""
    model: ModelConfig = ModelConfig()
    pretrain: Train = TrainConfig()


def pretrain_command(config: PretrainCommand) -> None:
    """Prepare what is missing, and pretrain."""
    out = config.out
    if config.from_ is None:
        check_parallel(config.pretrain, config.model, world().size)  # before the data
    with first("data and tokenizer", config.pretrain.timeout_s):
        data = _data_folder(config.data, out / "data")
        tokenizer = config.tokenizer
        if tokenizer is None and config.from_ is None:
            tokenizer = out / "tokenizer"
            made_from = read_json(tokenizer / INPUTS).get("data")
            if made_from == sha256_file(data / "manifest.json"):
                say(f"tokenizer: taking the one in {tokenizer}")
            else:
                train_tokenizer_step(data, tokenizer, config.model.vocab_size)
    model = pretrain(
        data, tokenizer or out, out / "shards", out, config.model, config.pretrain, config.from_
    )
    _finish(out, model, f"cygnet sft --from {out}")


@dataclass(frozen=True, kw_only=True)
class SftCommand:
    """Tune a model to answer."""

    reads_yaml: ClassVar[bool] = True
    data: tuple[str, ...] = ()
    """Conversations (jsonl) or a folder of `cygnet data`; none takes what the model's run learnt
    from, or where that is not known the built-in text."""
    from_: From = None
    """Run or model folder to start from."""
    out: Path = Path("runs/sft")
    """The run folder."""
    instructions: InstructionConfig = InstructionConfig()
    sft: Train = TrainConfig(epochs=2, learning_rate=1e-3)


def sft_command(config: SftCommand) -> None:
    """Prepare what is missing, and tune."""
    start = find_model(_required(config.from_, "sft"))
    out = config.out
    with first("instructions", config.sft.timeout_s):
        if config.data:
            data = _data_folder(config.data, out / "data")
            instructions = make_instructions(data, out / "instructions", config.instructions)
        else:
            instructions = _learnt_instructions("sft", start, out, config.instructions)
    model = sft(instructions, start, out / "shards", out, config.sft)
    _finish(out, model, f"cygnet dpo --from {out}")


@dataclass(frozen=True, kw_only=True)
class DpoCommand:
    """Align a model with preferences."""

    reads_yaml: ClassVar[bool] = True
    data: tuple[str, ...] = ()
    """JSON lines of pairs (prompt, chosen, rejected); none makes pairs from what the model's run
    learnt from, or where that is not known from the built-in text."""
    from_: From = None
    """Run or model folder to start from; it is the reference too."""
    out: Path = Path("runs/dpo")
    """The run folder."""
    instructions: InstructionConfig = InstructionConfig()
    pairs: PairConfig = PairConfig()
    preference: Annotated[DpoConfig, tyro.conf.arg(name="")] = DpoConfig()
    dpo: Train = TrainConfig(epochs=1, learning_rate=2e-4)


def dpo_command(config: DpoCommand) -> None:
    """Make or take pairs, and align."""
    start = find_model(_required(config.from_, "dpo"))
    out = config.out
    connect(config.dpo.timeout_s)
    if config.data:
        pairs = out / "pairs"
        on_rank_zero(lambda: take_pairs(config.data, pairs))
    else:
        with first("pairs", config.dpo.timeout_s):
            instructions = _learnt_instructions("dpo", start, out, config.instructions)
            pairs = make_pairs(instructions, start, out / "pairs", config.pairs, config.dpo)
    model = dpo(pairs, start, out / "shards", out, config.dpo, config.preference)
    _finish(out, model, f"cygnet chat {out}")


@dataclass(frozen=True, kw_only=True)
class EvalCommand:
    """Measure every stage of a run."""

    run: tyro.conf.Positional[Path]
    """Folder of a whole run, or of a single stage."""
    data: Path | None = None
    """A folder of `cygnet data` whose held-out text is measured on; none takes the run's own."""
    device: str = "auto"
    """`cpu`, `cuda`, ..."""
    eval: Annotated[EvalConfig, tyro.conf.arg(name="")] = EvalConfig()


def eval_command(config: EvalCommand) -> None:
    """Evaluate, write the report again, and print it."""
    evaluate_stages(config.run, config.eval, TrainConfig(device=config.device), config.data)
    write_report(config.run, STAGES)
    print((config.run / "report.md").read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """See what fits."""

    reads_yaml: ClassVar[bool] = True
    processes: int = 1
    """Processes to plan for; with several, all ways of spreading are compared."""
    processes_per_machine: int | None = None
    """Processes that share a machine like this one; none means one for each core, or GPU."""
    model: ModelConfig = ModelConfig()
    pretrain: Train = TrainConfig()


def plan_command(config: PlanCommand) -> None:
    """Print the plan.

    Raises:
        UserError: not even one row fits one process, or settings contradict each other.
    """
    train, processes = config.pretrain, config.processes
    machine = find_hardware(train)
    for name in ("processes", "processes_per_machine"):
        value = getattr(config, name)
        if value is not None and not 1 <= value <= MOST_PROCESSES:
            raise UserError(f"--{name} {value}: it must be from 1 to {MOST_PROCESSES:,}")
    if processes == 1:
        if train.parallel != "auto" or train.deepspeed:
            raise UserError("a way to spread is asked for: say over how many, with --processes N")
        print(describe_plan(plan(config.model, train, machine)))
        return
    each = config.processes_per_machine or min(processes, max(machine.num_places, 1))
    hardware = machine.shared_by(each)
    chosen, why = choose_parallel(train, config.model, hardware, processes)
    layout = layout_of(chosen, processes)
    found = smallest_plan(config.model, chosen, hardware, layout)
    print(describe_processes(found, why, machine, each))


def _data_folder(paths: Sequence[str], out: Path) -> Path:
    """Return the data folder that the paths name, or make it at `out`."""
    if len(paths) == 1 and (Path(paths[0]) / TRAIN).exists():
        return Path(paths[0])
    try:
        return prepare(DataConfig(paths=tuple(paths)), out)
    except UserError as error:
        if "--corpus." in str(error):
            error.args = (f"{error} (a flag of cygnet data, whose folder --data takes too)",)
        raise


def _learnt_instructions(verb: str, start: Path, out: Path, config: InstructionConfig) -> Path:
    """Return conversations of what the starting model's run learnt from, and say which they are."""
    learnt = data_of(start)
    if learnt is None:
        say(
            f"{verb}: no --data given, and what {start} learnt from is not known: taking Cygnet's "
            "built-in text"
        )
        learnt = _data_folder((), out / "data")
    else:
        say(f"{verb}: no --data given: taking {learnt}, which {start} learnt from")
        if learnt.name == "instructions":
            return learnt
    return make_instructions(learnt, out / "instructions", config)


def _required(start: Path | None, verb: str) -> Path:
    if start is None:
        raise UserError(f"cygnet {verb} needs a model to start from: --from RUN_OR_MODEL")
    return start


def _finish(out: Path, model: Path, following: str) -> None:
    chat = f"cygnet chat {out}"
    after = following if following == chat else f"{following}    or    {chat}"
    say(f"\nDone. The model is in {model}.\nNext: {after}")
