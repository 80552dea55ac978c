"""`cygnet grpo`: a model that gets better at what can be checked."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from cygnet.config import TRAINING
from cygnet.corpus.instructions import InstructionConfig
from cygnet.export.huggingface import find_model
from cygnet.model.lora import LoraConfig
from cygnet.stages.reinforcement.environments.environment import find_environment
from cygnet.stages.reinforcement.grpo import GrpoConfig
from cygnet.stages.reinforcement.grpo_run import grpo
from cygnet.stages.reinforcement.prompts import CHECKED, Split, checkable_prompts, read_prompts
from cygnet.stages.reinforcement.rewards.builtin import reward_name
from cygnet.stages.reinforcement.rewards.judge import Judge
from cygnet.steps import From, Lora, Train, finish, keeps_runs, learnt_instructions, required
from cygnet.train.parallel.group import connect, first


@dataclass(frozen=True, kw_only=True)
class GrpoCommand:
    """Reinforcement learning from rewards that can be checked."""

    reads_yaml: ClassVar[bool] = True
    data: tuple[str, ...] = ()
    """JSON lines of prompts ({"prompt": text or messages, "tools"?, what the rewards read}); none
    takes those instructions of what the model's run learnt from that a built-in reward can check,
    or where that is not known of the built-in text."""
    heldout_data: tuple[str, ...] = ()
    """JSON lines of prompts that are only judged; none holds some of the data out."""
    from_: From = None
    """Run or model folder to start from."""
    out: Path = Path("runs/grpo")
    """The run folder."""
    reward: tuple[str, ...] = ()
    """Rewards, summed: a built-in NAME (poem_form, rhyme, recipe, arithmetic, spelling,
    json_schema, tool_use, length, repetition) or FILE.py:NAME of a function (answer, row) ->
    number, each with =WEIGHT behind it if that is not 1. Without data, poem_form and recipe."""
    reward_timeout_s: float = 5.0
    """Longest time of one call of a reward; the answer is dropped then."""
    environment: str | None = None
    """For episodes of several turns: names of tools (calculator,unit_converter,...; `tools` for
    all), or FILE.py:NAME of an environment."""
    instructions: InstructionConfig = InstructionConfig()
    method: Annotated[GrpoConfig, tyro.conf.arg(name="")] = GrpoConfig()
    lora: Lora = LoraConfig()
    grpo: Train = TRAINING["grpo"]


@keeps_runs
def grpo_command(config: GrpoCommand) -> None:
    """Take prompts, let the model answer, and learn from what that earns."""
    start = find_model(required(config.from_, "grpo"))
    connect(config.grpo.timeout_s)
    rewards = config.reward
    if not config.data and not rewards:
        rewards = tuple(CHECKED.values())
    with ExitStack() as stack:
        judge = None
        if rewards or config.environment is None:
            judge = stack.enter_context(Judge(rewards, config.reward_timeout_s))
        world = None
        if config.environment is not None:
            world = stack.enter_context(find_environment(config.environment))
        prompts = _prompts(config, start, rewards)
        model = grpo(
            prompts, judge, start, config.out, config.grpo, config.method, rewards, world,
            lora=config.lora, environment_name=config.environment,
        )  # fmt: skip
    finish(config.out, model, f"cygnet chat {config.out}")


def _prompts(config: GrpoCommand, start: Path, rewards: tuple[str, ...]) -> Split:
    share = config.method.heldout_share
    if config.data:
        train, heldout = read_prompts(config.data, 0.0 if config.heldout_data else share)
        return train, heldout + read_prompts(config.heldout_data, 0.0)[0]
    with first("prompts", config.grpo.timeout_s):
        instructions = learnt_instructions("grpo", start, config.out, config.instructions)
    names = [reward_name(text) for text in rewards]
    return checkable_prompts(instructions, names)
