"""Which step comes after which: `cygnet run`, the whole way."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from cygnet.commands.reward import measure
from cygnet.config import TRAINING, ModelConfig, TrainConfig, as_yaml, stages_of_run
from cygnet.corpus.instructions import InstructionConfig
from cygnet.corpus.pipeline import prepare
from cygnet.corpus.settings import DataConfig
from cygnet.errors import UserError
from cygnet.evals.report import write_report
from cygnet.evals.result import EvalConfig
from cygnet.export.huggingface import find_model
from cygnet.files import folder_atomic, write_atomic
from cygnet.model.lora import NO_LORA, LoraConfig
from cygnet.progress import reworded, say
from cygnet.stages.distillation.distill import DistillConfig
from cygnet.stages.distillation.distill_run import distill
from cygnet.stages.preference.dpo import DpoConfig, dpo
from cygnet.stages.preference.pairs import NoPairsError, PairConfig
from cygnet.stages.preference.reward import RewardConfig, reward
from cygnet.stages.pretrain import pretrain
from cygnet.stages.reinforcement.grpo import GrpoConfig
from cygnet.stages.reinforcement.grpo_run import grpo
from cygnet.stages.reinforcement.ppo import PpoConfig, ppo
from cygnet.stages.reinforcement.prompts import CHECKED, asked_prompts, checkable_prompts
from cygnet.stages.reinforcement.rewards.builtin import reward_name
from cygnet.stages.reinforcement.rewards.judge import Judge
from cygnet.stages.sft import sft
from cygnet.steps import (
    evaluate_stages,
    make_instructions,
    make_pairs,
    train_tokenizer_step,
)
from cygnet.train.parallel.choose import check_parallel
from cygnet.train.parallel.group import first, on_rank_zero, world
from cygnet.train.run_folder import keep_aside

After = Literal["distill", "sft", "dpo", "reward", "ppo", "grpo"]


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
    stages: tuple[After, ...] = ("sft", "dpo")
    """What follows pretraining, in this order; each has a section of settings."""
    corpus: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    pretrain: TrainConfig = TRAINING["pretrain"]
    instructions: InstructionConfig = InstructionConfig()
    sft: TrainConfig = TRAINING["sft"]
    pairs: PairConfig = PairConfig()
    preference: DpoConfig = DpoConfig()
    dpo: TrainConfig = TRAINING["dpo"]
    teacher: Annotated[Path | None, tyro.conf.arg(metavar="RUN_OR_MODEL")] = None
    """Of distill: a model with the same tokenizer."""
    distillation: DistillConfig = DistillConfig()
    distill: TrainConfig = TRAINING["distill"]
    judging: RewardConfig = RewardConfig()
    reward: TrainConfig = TRAINING["reward"]
    rlhf: PpoConfig = PpoConfig()
    ppo: TrainConfig = TRAINING["ppo"]
    rewards: tuple[str, ...] = tuple(CHECKED.values())
    """What grpo's answers earn for, of rewards that can check an instruction (`cygnet grpo`)."""
    reinforcement: GrpoConfig = GrpoConfig()
    grpo: TrainConfig = TRAINING["grpo"]
    lora: LoraConfig = NO_LORA
    """Adapters, in every stage after pretraining."""
    eval: EvalConfig = EvalConfig()


def run_command(config: RunCommand) -> None:
    """Take every step that is not up to date, evaluate each stage, write the report.

    Raises:
        UserError: a stage stands twice in the list, or lacks what it needs.
    """
    twice = sorted({stage for stage in config.stages if config.stages.count(stage) > 1})
    if twice:
        raise UserError(f"stages: {twice[0]} stands there twice; each has one folder in a run")
    if "distill" in config.stages:
        if config.teacher is None:
            raise UserError("stages: distill needs a model to learn from: --teacher RUN_OR_MODEL")
        find_model(config.teacher)
    if "ppo" in config.stages and "reward" not in config.stages[: config.stages.index("ppo")]:
        raise UserError("stages: ppo needs a reward model; put reward before it")
    for stage in ("pretrain", *config.stages):
        with _flags_of(stage):
            train = getattr(config, stage)  # what is refused is refused before the data
            check_parallel(train, config.model, world().size)
            if stage in ("ppo", "grpo"):
                train.refuse_tokens(stage)
    way = _Way(config)
    way.pretrain()
    for stage in config.stages:
        getattr(way, stage)()
    on_rank_zero(lambda: _end_run(config, way.last))


class _Way:
    """The steps of one run, each of which starts from what the one before it left.

    Attributes:
        last: the model folder so far.
    """

    def __init__(self, config: RunCommand) -> None:
        self.config, self.run, self.wait_s = config, config.out, config.pretrain.timeout_s
        self.last = self.run
        self.pairs: Path | None = None

    def pretrain(self) -> None:
        """Raw text to a model that continues text."""
        config, run = self.config, self.run
        with first("data and tokenizer", self.wait_s):
            self.data = prepare(dataclasses.replace(config.corpus, paths=config.data), run / "data")
            write_atomic(run / "config.yaml", as_yaml(config))
            tokenizer = train_tokenizer_step(self.data, run / "tokenizer", config.model.vocab_size)
        with _flags_of("pretrain"):
            self.last = pretrain(
                self.data, tokenizer, run / "shards" / "pretrain", run / "pretrain",
                config.model, config.pretrain, renew=True,
            )  # fmt: skip

    def distill(self) -> None:
        """A teacher's probabilities to a smaller model that predicts as it does."""
        config, conversations = self.config, self.config.distillation.learn_from == "conversations"
        data = self.instructions if conversations else self.data
        with _flags_of("distill"):
            self.last = distill(
                find_model(config.teacher or Path()), self.last, config.model, data,
                self.run / "shards" / "distill", self.run / "distill", config.distill,
                config.distillation, renew=True, lora=config.lora,
            )  # fmt: skip

    def sft(self) -> None:
        """Conversations to a model that answers."""
        config, run = self.config, self.run
        instructions = self.instructions
        with _flags_of("sft"):
            self.last = sft(
                instructions, self.last, run / "shards" / "sft", run / "sft",
                config.sft, renew=True, lora=config.lora,
            )  # fmt: skip

    def dpo(self) -> None:
        """Pairs to a model that prefers."""
        config, run = self.config, self.run
        pairs = self._pairs("dpo")
        if pairs is None:
            return
        with _flags_of("dpo"):
            self.last = dpo(
                pairs, self.last, run / "shards" / "dpo", run / "dpo",
                config.dpo, config.preference, renew=True, lora=config.lora,
            )  # fmt: skip

    def reward(self) -> None:
        """Pairs to a model that judges, beside the one that answers."""
        pairs, config = self._pairs("reward"), self.config
        if pairs is None:
            return
        with _flags_of("reward"):
            folder = self.run / "reward"
            judge = reward(
                pairs, self.last, folder, config.reward, config.judging, renew=True,
                lora=config.lora,
            )  # fmt: skip
        on_rank_zero(lambda: measure(judge, pairs, folder, config.reward))

    def ppo(self) -> None:
        """A judge, and what is asked, to a model that pleases it."""
        judge, config = self.run / "reward", self.config
        if not (judge / "model").exists():
            self._leave_out("ppo", UserError("there is no reward model"))
            return
        with _flags_of("ppo"):
            self.last = ppo(
                asked_prompts(self.instructions), self.last, judge, None, self.run / "ppo",
                config.ppo, config.rlhf, renew=True, lora=config.lora,
            )  # fmt: skip

    def grpo(self) -> None:
        """What can be checked, to a model that gets it right more often."""
        config = self.config
        names = [reward_name(text) for text in config.rewards]
        prompts = checkable_prompts(self.instructions, names)
        if not prompts[0]:
            self._leave_out("grpo", UserError(f"no instruction is for {', '.join(names)}"))
            return
        with _flags_of("grpo"), Judge(config.rewards) as judge:
            self.last = grpo(
                prompts, judge, self.last, self.run / "grpo", config.grpo, config.reinforcement,
                config.rewards, renew=True, lora=config.lora,
            )  # fmt: skip

    def _pairs(self, stage: str) -> Path | None:
        """Return pairs made with the model before the first stage that needs some, or say why
        there are none."""
        if self.pairs is None:
            with first(f"pairs of {stage}", self.wait_s):
                try:
                    with _flags_of(stage):
                        self.pairs = make_pairs(
                            self.instructions, self.last, self.run / "pairs",
                            self.config.pairs, getattr(self.config, stage),
                        )  # fmt: skip
                except NoPairsError as error:
                    self._leave_out(stage, error)
        return self.pairs

    @cached_property
    def instructions(self) -> Path:
        """The conversations of the run."""
        with first("instructions", self.wait_s):
            return make_instructions(self.data, self.run / "instructions", self.config.instructions)

    def _leave_out(self, stage: str, error: UserError) -> None:
        say(f"{stage}: left out. {error}")
        if (self.run / stage / "config.yaml").exists():
            keep_aside(self.run / stage)


METHOD_OF = {
    "distill": "distillation", "dpo": "preference", "reward": "judging", "ppo": "rlhf",
    "grpo": "reinforcement",
}  # fmt: skip
"""The section of settings that a stage has beside that of its training."""


@contextmanager
def _flags_of(stage: str) -> Iterator[None]:
    """Let what is said name flags as a whole run spells them: --device as --sft.device."""

    def rewrite(told: str) -> str:
        for section in filter(None, (stage, METHOD_OF.get(stage), "lora")):
            names = "|".join(vars(getattr(RunCommand, section)))
            told = re.sub(rf"--({names})\b", rf"--{section}.\1", told)
        return told

    try:
        with reworded(rewrite):
            yield
    except UserError as error:
        error.args = (rewrite(str(error)),)
        raise


def _end_run(config: RunCommand, last: Path) -> None:
    """Evaluate, put the last model at the top, write the report, and say where all is."""
    run = config.out
    with _flags_of("sft"):
        evaluate_stages(run, config.eval, config.sft)
    with folder_atomic(run / "model") as folder:
        shutil.copytree(last, folder, dirs_exist_ok=True)
    write_report(run, stages_of_run(run))
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
