"""All ways of spreading a run over processes, side by side, and which of them `auto` takes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from cygnet.config import ModelConfig, TrainConfig
from cygnet.train.hardware import Hardware
from cygnet.train.layout import CUTTING_MODELS, Layout
from cygnet.train.optim import resolve_optimizer
from cygnet.train.planner import Plan, describe_plan, in_text, size_of, smallest_plan

if TYPE_CHECKING:
    from rich.table import Table

AUTO = ("ddp", "fsdp", "tensor", "pipeline")
"""What `--parallel auto` takes the first of that fits; DeepSpeed only where its file is given."""
ZERO_STAGES = (0, 1, 2, 3)
COLUMNS = ("weights", "gradients", "optimizer", "buffers", "activations")


def choose(
    config: TrainConfig,
    model: ModelConfig,
    hardware: Hardware,
    processes: int,
    *,
    weights_loaded: bool = False,
) -> tuple[TrainConfig, str]:
    """Return the settings with the first way that fits, or that of the least memory, and why.

    Args:
        config: as asked for, `parallel` auto.
        model: sizes.
        hardware: what each process has.
        processes: of the run.
        weights_loaded: the weights were in memory already when the free memory was measured.
    """
    tried: list[Plan] = []
    for way in AUTO:
        found = best(config, model, hardware, way, processes, weights_loaded=weights_loaded)
        if isinstance(found, Plan):
            tried.append(found)
            if found.fits:
                break
    chosen = tried[-1] if tried[-1].fits else min(tried, key=lambda plan: plan.need_bytes)
    others = [plan for plan in tried if plan is not chosen]
    free = f"{size_of(hardware.memory.free_bytes)} that each process has"
    why = f"takes {size_of(chosen.need_bytes)} of the {free}"
    if others:
        needs = ", ".join(f"{p.layout.name} {size_of(p.need_bytes)}" for p in others)
        why += f"; {needs} would not fit" if chosen.fits else f", less than {needs}; none fits"
    each = chosen.layout.model_processes if chosen.layout.way in CUTTING_MODELS else None
    way = chosen.layout.way
    return dataclasses.replace(config, parallel=way, model_processes=each), why  # type: ignore[arg-type]


def best(
    config: TrainConfig,
    model: ModelConfig,
    hardware: Hardware,
    way: str,
    processes: int,
    *,
    weights_loaded: bool = False,
) -> Plan | str:
    """Return a way's plan, or why the model cannot be spread like that.

    Where models are cut and `model_processes` is not given, as few processes hold one as fit.
    """
    sizes = [1]
    if way in CUTTING_MODELS:
        given = config.model_processes
        sizes = [n for n in range(2, processes + 1) if processes % n == 0]
        sizes = [given] if given else sizes
    layouts = [Layout(way=way, processes=processes, model_processes=size) for size in sizes]
    possible = [layout for layout in layouts if layout.problem(model) is None]
    if not possible:
        return str(layouts[0].problem(model))
    for layout in possible:
        found = smallest_plan(model, config, hardware, layout, weights_loaded=weights_loaded)
        if found.fits:
            break
    return found


def compare(
    config: TrainConfig, model: ModelConfig, hardware: Hardware, processes: int
) -> dict[str, tuple[Plan, Plan] | str]:
    """Return by the name of each way why a model cannot be spread like that, or two plans.

    The first goes through the rows one at a time, where no number is given, so that ways can be
    compared; the second takes as many at once as pays.
    """
    one = dataclasses.replace(config, micro_batch=config.micro_batch or 1)
    found: dict[str, tuple[Plan, Plan] | str] = {}
    for way in AUTO:
        plan = best(config, model, hardware, way, processes)
        if isinstance(plan, str):
            found[way] = plan
        else:
            least = smallest_plan(model, one, hardware, plan.layout)
            found[plan.layout.name] = least, plan
    for stage in ZERO_STAGES:
        layout = Layout(way="deepspeed", processes=processes, zero={"stage": stage})
        found[layout.name] = (
            "not with --optimizer muon"
            if config.optimizer == "muon"
            else (
                smallest_plan(model, one, hardware, layout),
                smallest_plan(model, config, hardware, layout),
            )
        )
    return found


def describe_processes(chosen: Plan, why: str, machine: Hardware, each_machine: int) -> str:
    """Return what `cygnet plan --processes N` prints.

    Args:
        chosen: the plan of the way that is asked for, or that `auto` takes.
        why: it is this one.
        machine: that the plan was made on, whole.
        each_machine: processes that are assumed to share one like it.
    """
    processes = chosen.layout.processes
    machines = -(-processes // each_machine)
    assumed = (
        f"{processes} processes, {each_machine} on each of {machines} machines like this one "
        f"({machine.num_cores} cores, {size_of(machine.memory.free_bytes)} free); "
        "--processes_per_machine says otherwise"
    )
    asked = dataclasses.replace(chosen.train, parallel="auto", model_processes=None)
    found = compare(asked, chosen.model, chosen.hardware, processes)
    if all(isinstance(plans, str) or plans[0].layout != chosen.layout for plans in found.values()):
        one = dataclasses.replace(chosen.train, micro_batch=chosen.train.micro_batch or 1)
        least = smallest_plan(chosen.model, one, chosen.hardware, chosen.layout)
        found[f"{chosen.layout.name}, as given"] = least, chosen
    refused = [f"{name}: {why}" for name, why in found.items() if isinstance(why, str)]
    rows = chosen.train.micro_batch or 1
    at_once = f"{rows} row{'s' if rows > 1 else ''} at a time"
    return (
        in_text(assumed, f"--parallel {chosen.layout.way}: {why}\n")
        + describe_plan(chosen)
        + in_text(
            f"\nEvery way, the process that needs most memory, {at_once}; `best` is how many rows "
            "at once it would take",
            _table(found, chosen),
            *refused,
        )
    )


def _table(found: dict[str, tuple[Plan, Plan] | str], chosen: Plan) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("way", "optimizer"):
        table.add_column(name, no_wrap=True)
    for name in ("weights", "gradients", "state", "buffers", "activations", "peak", "best"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("fits", no_wrap=True)
    for name, plans in found.items():
        if isinstance(plans, str):
            table.add_row(name, *[""] * (len(COLUMNS) + 3), "no")
            continue
        least, best_plan = plans
        size = {part.name: part.num_bytes for part in least.parts}
        optimizer = resolve_optimizer(least.train.optimizer, least.layout.way)
        taken = ", taken" if least.layout == chosen.layout else ""
        table.add_row(
            name,
            {"muon": "Muon", "adamw": "AdamW"}[optimizer],
            *[size_of(size.get(column, 0)) for column in COLUMNS],
            size_of(least.need_bytes),
            str(best_plan.micro_batch) if best_plan.fits else "",
            ("yes" if least.fits else "no") + taken,
        )
    return table
