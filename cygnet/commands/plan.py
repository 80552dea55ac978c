"""`cygnet plan`: what fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cygnet.config import TRAINING, ModelConfig
from cygnet.errors import UserError
from cygnet.steps import Train
from cygnet.train.comparison import describe_processes
from cygnet.train.hardware import find_hardware
from cygnet.train.layout import layout_of
from cygnet.train.parallel.choose import choose_parallel
from cygnet.train.planner import describe_plan, plan, smallest_plan

MOST_PROCESSES = 1_000_000
"""That `cygnet plan` reckons with."""


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """See what fits."""

    reads_yaml: ClassVar[bool] = True
    processes: int = 1
    """Processes to plan for; with several, all ways of spreading are compared."""
    processes_per_machine: int | None = None
    """Processes that share a machine like this one; none means one for each core, or GPU."""
    model: ModelConfig = ModelConfig()
    pretrain: Train = TRAINING["pretrain"]


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
