"""Which step comes after which: `cygnet run`, the whole way."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cygnet.config import ModelConfig, TrainConfig, as_yaml
from cygnet.corpus.instructions import InstructionConfig
from cygnet.corpus.pipeline import DataConfig, prepare
from cygnet.errors import UserError
from cygnet.evals.report import write_report
from cygnet.evals.result import EvalConfig
from cygnet.files import folder_atomic, write_atomic
from cygnet.progress import say
from cygnet.stages.dpo import DpoConfig, dpo
from cygnet.stages.pairs import NoPairsError, PairConfig
from cygnet.stages.pretrain import pretrain
from cygnet.stages.sft import sft
from cygnet.steps import (
    STAGES,
    evaluate_stages,
    make_instructions,
    make_pairs,
    train_tokenizer_step,
)
from cygnet.train.parallel.choose import check_parallel
from cygnet.train.parallel.group import first, on_rank_zero, world
from cygnet.train.run_folder import keep_aside


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
