"""`cygnet compare`: training runs side by side, as a table and as one picture of their losses."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeGuard

import tyro

from cygnet.config import read_yaml
from cygnet.errors import UserError
from cygnet.evals.result import StageResult
from cygnet.evals.verdict import GOALS, METRICS, metric
from cygnet.files import write_atomic
from cygnet.progress import say

LOG = "metrics.jsonl"
KEPT_ASIDE = ".old-"
SMOOTHED_SHARE = 0.03
"""Share of the points that a running mean covers on either side."""
AXES = {"step": "steps", "tokens": "tokens", "seconds": "seconds of training"}
HASH_LENGTH = 40
"""From here on a setting without spaces is taken for a hash, and shown by its beginning."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Which runs to put side by side."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders; of what `cygnet run` made, each stage is taken."""
    out: Path = Path("runs/compare.png")
    """The picture of their losses, a PNG."""


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What one training run left behind.

    Attributes:
        name: what it is called here, the same as no other's.
        stage: `pretrain`, `sft`, ...
        log: rows of metrics.jsonl, each with `seconds`, the training time over all restarts.
        settings: config.yaml with dotted keys.
        result: its evaluation, where there is one.
    """

    name: str
    stage: str
    log: list[Row]
    settings: dict[str, Any]
    result: StageResult | None

    def values(self, key: str) -> list[float]:
        """Return all logged numbers of a key, in order."""
        return [float(row[key]) for row in self.log if is_number(row.get(key))]


def compare_command(config: CompareCommand) -> None:
    """Print a table for each stage that more than one run has, and write the picture.

    Raises:
        UserError: no runs are given, a folder holds none, or none can be read.
    """
    if config.out.suffix != ".png":
        raise UserError(f"--out {config.out}: the picture is a PNG, so its name must end in .png")
    groups = group_by_stage(load_runs(config.runs))
    try:
        write_atomic(config.out, draw_losses(groups))
        say(f"loss against steps, tokens and seconds: {config.out}")
    except ModuleNotFoundError as error:
        say(f"no picture, {error.name} is missing: pip install 'cygnet[report]'")
    _print(groups)


# Reading


def find_runs(folder: Path) -> list[Path]:
    """Return the folders with a metrics.jsonl at or below a folder, those kept aside left out.

    Stages come in the order in which they are trained, other folders by name.
    """
    order = list(GOALS)
    found: list[Path] = []
    for path, names, files in os.walk(folder):
        kept = [name for name in names if name[0] != "." and KEPT_ASIDE not in name]
        names[:] = sorted(kept, key=lambda n: (order.index(n) if n in order else len(order), n))
        if LOG in files:
            found.append(Path(path))
            names.clear()
    return found


def named_runs(folders: Sequence[Path]) -> dict[Path, str]:
    """Return the runs of all folders, each once, with names that tell them apart."""
    given = list(dict.fromkeys(folder.resolve() for folder in folders))
    found: dict[Path, str] = {}
    for folder, name in zip(given, short_names(given), strict=True):
        for run in find_runs(folder):
            parts = run.relative_to(folder).parts
            names = parts if parts and len(given) == 1 else (name, *parts)
            found.setdefault(run, "/".join(names))
    return found


def load_runs(folders: Sequence[Path]) -> list[TrainingRun]:
    """Read each run once; one that cannot be read is said and left out.

    Raises:
        UserError: no folders are given, or none of them holds a run that can be read.
    """
    if not folders:
        raise UserError("give the run folders to compare: cygnet compare runs/first runs/second")
    loaded, problems = [], []
    for folder in folders:
        if not find_runs(folder):
            problem = f"no {LOG} in it or below" if folder.is_dir() else "there is no such folder"
            problems.append(f"{folder}: {problem}; give a folder that training wrote to")
    for run, name in named_runs(folders).items():
        try:
            loaded.append(_load(run, name))
        except UserError as error:
            problems.append(str(error))
    if not loaded:
        raise UserError("; ".join(problems))
    for problem in problems:
        say(f"left out: {problem}")
    return loaded


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the ends of different paths, as short as they can be and still differ."""
    length = 1
    while len({path.parts[-length:] for path in paths}) < len(paths):
        length += 1
    return ["/".join(path.parts[-length:]) for path in paths]


def read_log(path: Path) -> list[Row]:
    """Read metrics.jsonl; a last line that is still being written is left out.

    `seconds` is added to each row: `elapsed_s`, which starts anew when a run is resumed, summed
    over the restarts.

    Raises:
        UserError: a line is damaged.
    """
    rows: list[Row] = []
    before_s = last_s = 0.0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            row = dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a line of metrics; delete it") from error
        elapsed_s = row.get("elapsed_s")
        if is_number(elapsed_s):
            before_s += last_s if elapsed_s < last_s else 0.0
            last_s = elapsed_s
        rows.append({**row, "seconds": before_s + last_s})
    return rows


def is_number(value: object) -> TypeGuard[float]:
    """Say whether a logged value can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def settings_of(run: Path) -> dict[str, Any]:
    """Return a run's config.yaml with dotted keys; nothing where there is none.

    Raises:
        UserError: the file is damaged.
    """
    config = run / "config.yaml"
    return _flat(read_yaml(config)) if config.exists() else {}


def _load(run: Path, name: str) -> TrainingRun:
    settings, evaluation = settings_of(run), run / "eval.json"
    result = StageResult.load(evaluation) if evaluation.exists() else None
    stage = str(settings.get("stage", run.name))
    return TrainingRun(name, stage, read_log(run / LOG), settings, result)


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[before + str(key)] = value
    return flat


# Putting side by side


def group_by_stage(runs: Sequence[TrainingRun]) -> list[list[TrainingRun]]:
    """Return the runs of each stage; all together where no stage has two."""
    groups: dict[str, list[TrainingRun]] = {}
    for run in runs:
        groups.setdefault(run.stage, []).append(run)
    return list(groups.values()) if len(groups) < len(runs) else [list(runs)]


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line of a table: what it is, and a cell for each run (none where it has no value)."""

    label: str
    cells: list[str | None]
    best: int | None = None


def figures(group: Sequence[TrainingRun]) -> list[TableRow]:
    """Return what training came to: losses, held-out metrics, tokens, speed and time."""
    keys = dict.fromkeys(key for run in group for row in run.log for key in row)
    heldout = [key for key in keys if key.startswith("heldout_")]
    # The losses of two stages are of different kinds, so none of them is the better one.
    lower = -1 if len({run.stage for run in group}) == 1 else 0
    lines: list[tuple[str, str, Callable[[list[float]], float], str, int]] = []
    for key in ("loss", *heldout):
        label = key.replace("heldout_", "held-out ").replace("_", " ").replace("/", ", ")
        if key.endswith("loss"):
            lines += [(f"{label}, last", key, _last, "{:.4f}", lower)]
            lines += [(f"{label}, best", key, min, "{:.4f}", lower)]
        else:
            better = lower if key.startswith("heldout_loss/") else 0
            lines += [(label, key, _last, "{:.4f}", better)]
    first = len(lines)
    lines += [
        ("steps", "step", max, "{:,.0f}", 0),
        ("tokens", "tokens", max, "{:,.0f}", 0),
        ("tokens per second, median", "tokens_per_second", median, "{:,.0f}", 1),
        ("mfu, median", "mfu", median, "{:.1%}", 1),
        ("seconds of training", "seconds", max, "{:,.0f}", 0),
        ("peak memory, bytes", "peak_memory_bytes", max, "{:,.0f}", -1),
    ]
    rows = []
    for label, key, summary, form, better in lines:
        values = [summary(logged) if (logged := run.values(key)) else None for run in group]
        cells = [
            None if value is None else form.format(value).replace("%", "\u00a0%")
            for value in values
        ]
        rows.append(TableRow(label, cells, _best(values, better, cells)))
    rows[first:first] = _evaluated(group)
    return [row for row in rows if any(row.cells)]


def differences(group: Sequence[TrainingRun]) -> list[TableRow]:
    """Return the settings that are not the same in all runs.

    What was asked for (`requested`) is left out: `train` says what it was resolved to.
    """
    known = [run.settings for run in group if run.settings]
    keys = dict.fromkeys(key for settings in known for key in settings)
    rows = []
    for key in keys:
        values = {str(settings.get(key)) for settings in known}
        if len(values) > 1 and not key.startswith("requested."):
            cells = [_setting(run.settings[key]) if key in run.settings else None for run in group]
            rows.append(TableRow(key, cells))
    return rows


def _last(values: Sequence[float]) -> float:
    return values[-1]


def _best(values: Sequence[float | None], better: int, cells: Sequence[str | None]) -> int | None:
    """Return where the best value is, or none where it is not seen to be better than the next."""
    known = sorted(
        ((better * value, place) for place, value in enumerate(values) if value is not None),
        reverse=True,
    )
    if not better or len(known) < 2 or cells[known[0][1]] == cells[known[1][1]]:
        return None
    return known[0][1]


def _evaluated(group: Sequence[TrainingRun]) -> list[TableRow]:
    """Return the metrics of eval.json; the best must lie outside the intervals of the others."""
    results = [run.result.metrics if run.result else {} for run in group]
    found = dict.fromkeys(name for metrics in results for name in metrics)
    rows = []
    for name in sorted(found, key=lambda name: name.split("/")[0] not in METRICS):
        shown = metric(name)
        label = f"bits per byte, {shown.label}" if "/" in name else shown.label
        estimates = [metrics.get(name) for metrics in results]
        cells = [shown.show_estimate(e) if e else None for e in estimates]
        best = _best([e.value if e else None for e in estimates], shown.better, cells)
        if best is not None:
            own = estimates[best]
            others = [e for place, e in enumerate(estimates) if e and place != best]
            if any(own and own.low <= e.high and e.low <= own.high for e in others):
                best = None
        rows.append(TableRow(label, cells, best))
    return rows


def _setting(value: Any) -> str:
    text = str(value)
    return text[:8] if len(text) >= HASH_LENGTH and text.isalnum() else text


# Showing


def _print(groups: Sequence[Sequence[TrainingRun]]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        # A pipe or a file has no width to fold cells to.
        console = Console(highlight=False, width=10_000)
    for group in groups:
        stages = ", ".join(dict.fromkeys(run.stage for run in group))
        console.print(_table(stages, group, figures(group)))
        changed = differences(group)
        if changed:
            console.print(_table("settings that differ", group, changed))
        elif sum(bool(run.settings) for run in group) > 1:
            console.print("All settings that are known are the same.\n")
    console.print("* better than the others; where there are intervals, beyond them")


def _table(title: str, group: Sequence[TrainingRun], rows: Sequence[TableRow]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    table.add_column("")
    for run in group:
        table.add_column(Text(f"{run.name}  "), justify="right", overflow="fold")
    for row in rows:
        cells = []
        for place, cell in enumerate(row.cells):
            is_best = place == row.best
            mark, style = (" *", "bold") if is_best else ("  ", "")
            cells.append(Text(("–" if cell is None else cell) + mark, style=style))
        table.add_row(Text(row.label), *cells)
    return table


def draw_losses(groups: Sequence[Sequence[TrainingRun]]) -> bytes:
    """Return a PNG: a row of drawings for each group, loss against steps, tokens and seconds.

    A thin line is the logged loss, a thick one its running mean, dots are held-out losses.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    from cygnet.evals.plots import PNG_COLOURS, PNG_DPI

    figure = Figure(figsize=(13, 3.4 * len(groups)), layout="constrained")
    drawings = figure.subplots(len(groups), len(AXES), squeeze=False)
    for group, row in zip(groups, drawings, strict=True):
        for axes, (key, label) in zip(row, AXES.items(), strict=True):
            for place, run in enumerate(group):
                _draw(axes, run, key, f"C{place % 10}")
            axes.set_xlabel(label, color=PNG_COLOURS.ink)
            axes.grid(color=PNG_COLOURS.grid, linewidth=0.8)
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        row[0].set_ylabel("loss (dots: on held-out data)", color=PNG_COLOURS.ink)
        row[0].set_title(", ".join(dict.fromkeys(run.stage for run in group)), loc="left")
        if row[-1].get_legend_handles_labels()[0]:
            row[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return content.getvalue()


def _draw(axes: Any, run: TrainingRun, key: str, colour: str) -> None:
    logged, heldout = (
        [(row[key], row[loss]) for row in run.log if is_number(row.get(loss)) and key in row]
        for loss in ("loss", "heldout_loss")
    )
    if logged:
        places, losses = zip(*logged, strict=True)
        axes.plot(places, losses, color=colour, linewidth=0.9, alpha=0.3)
        axes.plot(places, _smoothed(losses), color=colour, linewidth=1.8, label=run.name)
    if heldout:
        axes.plot(*zip(*heldout, strict=True), "o", color=colour, markersize=4)


def _smoothed(values: Sequence[float]) -> Any:
    import numpy as np

    half = int(SMOOTHED_SHARE * len(values))
    sums, places = np.cumsum([0.0, *values]), np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
