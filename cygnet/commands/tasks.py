"""`cygnet tasks`: questions with answers that can be checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cygnet.stages.reinforcement.tasks import REWARD_OF, TaskConfig, build_tasks


@dataclass(frozen=True, kw_only=True)
class TasksCommand:
    """Make a task set by rule."""

    out: Path = Path("runs/tasks")
    """Folder for sft.jsonl, prompts.jsonl and heldout.jsonl."""
    settings: Annotated[TaskConfig, tyro.conf.arg(name="")] = TaskConfig()


def tasks_command(config: TasksCommand) -> None:
    """Write the set, and say how it goes on."""
    out = build_tasks(config.out, config.settings)
    tools = " --environment tools" if config.settings.task == "tools" else ""
    print(
        f"next: cygnet sft --from runs/demo/sft --data {out / 'sft.jsonl'} --out runs/mine-sft "
        "--instructions.small_talk_repeats 0\n"
        f"then: cygnet grpo --from runs/mine-sft --data {out / 'prompts.jsonl'} --heldout_data "
        f"{out / 'heldout.jsonl'} --reward {REWARD_OF[config.settings.task]}{tools}"
    )
