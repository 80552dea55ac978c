"""`cygnet eval`: every stage of a run, measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cygnet.config import TrainConfig, stages_of_run
from cygnet.evals.report import write_report
from cygnet.evals.result import EvalConfig
from cygnet.steps import evaluate_stages


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
    write_report(config.run, stages_of_run(config.run))
    print((config.run / "report.md").read_text(encoding="utf-8"))
