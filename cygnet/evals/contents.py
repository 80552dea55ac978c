"""What a report says, before it is a page: read from a run folder, ready to be written out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cygnet.config import ModelConfig, load_settings, read_yaml
from cygnet.errors import UserError
from cygnet.evals.result import DOMAIN_METRIC, OPENING, Sample, StageResult
from cygnet.evals.verdict import METRICS, Verdict, judge, metric
from cygnet.files import read_jsonl
from cygnet.train.run_folder import own_stage, stage_folders

KINDS = {
    "poem": "A poem",
    "recipe": "A recipe",
    "article": "An article",
    "smalltalk": "Small talk",
    "identity": "Who it is",
    "continuation": "Going on",
    OPENING: "Going on from the first words of a text",
}
"""Kinds of samples in the order of the report; others follow."""
SHOWN_PER_KIND = 2
MAX_DOMAINS = 6
OUTCOMES = {"read": "read", "train": "kept to train on", "heldout": "held out to measure with"}
COMPRESSORS = {"xz": "xz -9", "zstd": "zstd -19"}


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage of a run: its evaluation, its log, its settings and the verdict on it."""

    name: str
    folder: Path
    result: StageResult | None
    log: list[dict[str, Any]]
    settings: dict[str, Any]
    verdict: Verdict

    @property
    def minutes(self) -> float | None:
        """Time that its training took."""
        logged = [row["elapsed_s"] for row in self.log if "elapsed_s" in row]
        return logged[-1] / 60 if logged else None

    def last(self, key: str) -> float | None:
        """The last logged value of a key."""
        values = [row[key] for row in self.log if isinstance(row.get(key), int | float)]
        return values[-1] if values else None


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure and, under it, its interval."""

    value: str
    interval: str = ""
    is_best: bool = False
    is_words: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows; the first heading is that of the row names."""

    headings: list[str]
    rows: list[tuple[str, list[Cell]]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SampleGroup:
    """One prompt with the answer of each stage that was evaluated."""

    kind: str
    title: str
    prompt: str
    answers: list[tuple[str, Sample]]
    reference: str


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a report shows."""

    run: Path
    stages: list[StageView]
    data: dict[str, Any]
    tokenizer: dict[str, Any]
    commands: list[tuple[str, str]]


def gather(
    run: Path, stages: Sequence[str], commands: Sequence[tuple[str, str]] | None = None
) -> Contents:
    """Read what a run left behind.

    Raises:
        UserError: none of the stages is there, or a file is damaged.
    """
    views: list[StageView] = []
    before: tuple[str, StageResult] | None = None
    for name, folder in stage_folders(run, stages).items():
        evaluation, log, settings = (
            folder / file for file in ("eval.json", "metrics.jsonl", "config.yaml")
        )
        result = StageResult.load(evaluation) if evaluation.exists() else None
        verdict = judge(name, result, before)
        views.append(
            StageView(
                name,
                folder,
                result,
                _log(log) if log.exists() else [],
                read_yaml(settings) if settings.exists() else {},
                verdict,
            )
        )
        before = (name, result) if result else before
    if not views:
        raise UserError(f"{run}: holds none of the stages {', '.join(stages)}; train one first")
    return Contents(
        run,
        views,
        _json(run / "data" / "report.json"),
        _json(run / "tokenizer" / "report.json"),
        list(commands if commands is not None else default_commands(run)),
    )


def default_commands(run: Path) -> list[tuple[str, str]]:
    """Return what to type next, each with what it does."""
    name = shlex.quote(str(run))
    commands = [
        (f"cygnet chat {name}", "talk to it"),
        (f'cygnet chat {name} --prompt "How do I make pancakes?"', "ask one thing"),
        (
            "cygnet run --data my_texts/",
            "raise one on your own files: txt, md, jsonl, csv, parquet",
        ),
    ]
    if own_stage(run) is None:  # of which config.yaml is no recipe
        longer = f"cygnet run {name}/config.yaml --pretrain.minutes 20 --out {name}-longer"
        commands.append((longer, "give it more time to learn"))
    return commands


def headline_figures(contents: Contents) -> list[tuple[str, str]]:
    """Return (figure, what it is) for the top of the report."""
    figures = []
    sizes = next(
        (view.settings["model"] for view in contents.stages if "model" in view.settings), None
    )
    if sizes:
        model = load_settings(ModelConfig, sizes, f"{contents.run}: model")
        figures.append((f"{model.num_parameters / 1e6:.2f} M", "parameters"))
    num_documents = contents.data.get("waterfall", {}).get("train", {}).get("documents")
    if num_documents:
        figures.append((f"{num_documents:,}", "documents learnt from"))
    tokens = sum(view.last("tokens") or 0 for view in contents.stages)
    if tokens:
        figures.append((f"{tokens / 1e6:.1f} M", "tokens of training"))
    minutes = [view.minutes for view in contents.stages if view.minutes is not None]
    if minutes:
        figures.append((f"{sum(minutes):.1f} min", "of training"))
    for view in contents.stages:
        if view.result and "bits_per_byte" in view.result.metrics:
            value = view.result.metrics["bits_per_byte"].value
            xz = view.result.yardsticks.get("all", {}).get("xz")
            beside = f" (xz -9 needs {xz:.2f})" if xz else ""
            figures.append((f"{value:.2f}", f"bits per byte after {view.name}{beside}"))
            break
    return figures


def summary_tables(contents: Contents) -> list[tuple[str, Table]]:
    """Return titled tables on what was read and kept, and on the tokenizer."""
    tables = []
    waterfall = contents.data.get("waterfall")
    if waterfall:
        tables.append(("What was read, dropped and kept", _data_table(contents.data, waterfall)))
    if contents.tokenizer.get("bytes_per_token"):
        measured = contents.tokenizer["bytes_per_token"]
        cells = [Cell(f"{measured[domain]:.2f}") for domain in measured]
        notes = [
            f"{contents.tokenizer['vocab_size']:,} entries. The more bytes a token stands for, the "
            "more text fits into the context."
        ]
        table = Table(["", *measured], [("bytes per token", cells)], notes)
        tables.append(("How the tokenizer cuts text", table))
    return tables


def _data_table(data: dict[str, Any], waterfall: dict[str, dict[str, int]]) -> Table:
    domains: dict[str, dict[str, dict[str, int]]] = data.get("domains", {})
    largest = sorted(domains, key=lambda domain: -domains[domain]["read"]["documents"])
    shown = sorted(largest[:MAX_DOMAINS])
    columns = [waterfall, *(domains[domain] for domain in shown)]
    rules: dict[str, str] = data.get("rules", {})
    rows = []
    for name in waterfall:
        if name in rules and not waterfall[name]["documents"]:
            continue
        label = f"dropped: {rules[name]}" if name in rules else OUTCOMES.get(name, name)
        rows.append((label, [Cell(f"{column[name]['documents']:,}") for column in columns]))
    sizes = [Cell(f"{column['train']['bytes'] / 1e6:.2f} MB") for column in columns]
    rows.append(("size of what was trained on", sizes))
    notes = [] if len(shown) == len(domains) else [f"The {MAX_DOMAINS} largest domains are shown."]
    return Table(["documents", "all", *shown], rows, [*notes, "Examples: data/report.md."])


def metric_table(contents: Contents) -> Table:
    """Return stages down, held-out metrics across, and the compressors beneath."""
    evaluated = [(view.name, view.result) for view in contents.stages if view.result]
    names = _metric_names([result for _, result in evaluated])
    rows = []
    for stage, result in evaluated:
        cells = []
        for name in names:
            found = result.metrics.get(name)
            if found is None:
                cells.append(Cell("–"))
                continue
            shown = metric(name)
            others = [r.metrics[name].value for _, r in evaluated if name in r.metrics]
            best = max(shown.better * value for value in others) == shown.better * found.value
            is_best = best and shown.better != 0 and len(others) > 1
            cells.append(Cell(shown.show(found.value), shown.show_interval(found), is_best))
        rows.append((stage, cells))
    if evaluated:
        measured = evaluated[0][1].yardsticks
        for key, label in COMPRESSORS.items():
            figures = [measured.get(_domain(name) or "", {}).get(key) for name in names]
            if any(figure is not None for figure in figures):
                shown_figures = [Cell("" if f is None else f"{f:.3f}") for f in figures]
                rows.append((label, shown_figures))
    present = {name.split("/")[0] for name in names}
    absent = [METRICS[name].label for name in METRICS if name not in present]
    notes = []
    if absent:
        notes.append(
            f"Not measured, because the held-out data holds nothing for it: {', '.join(absent)}."
        )
    headings = ["", *(_heading(name) for name in names)]
    return Table(headings, rows, notes)


def bar_groups(contents: Contents) -> list[tuple[str, list[tuple[str, float, bool]]]]:
    """Return for each domain (name, bits per byte, is a compressor): compressors, then stages."""
    evaluated = [(view.name, view.result) for view in contents.stages if view.result]
    groups = []
    for name in _metric_names([result for _, result in evaluated]):
        if not name.startswith(DOMAIN_METRIC):
            continue
        yardstick = evaluated[0][1].yardsticks.get(_domain(name) or "", {})
        bars = [
            (label, yardstick[key], True) for key, label in COMPRESSORS.items() if key in yardstick
        ]
        bars += [(s, r.metrics[name].value, False) for s, r in evaluated if name in r.metrics]
        groups.append((metric(name).label, bars))
    return groups


def sample_groups(contents: Contents) -> list[SampleGroup]:
    """Return the answers of all stages to the same prompts, a few prompts of each kind."""
    by_prompt: dict[tuple[str, str], dict[str, Sample]] = {}
    for view in contents.stages:
        for sample in view.result.samples if view.result else ():
            by_prompt.setdefault((sample.kind, sample.prompt), {})[view.name] = sample
    order = [*KINDS, *sorted({kind for kind, _ in by_prompt} - set(KINDS))]
    groups = []
    for kind in order:
        chosen = [found for (of_kind, _), found in by_prompt.items() if of_kind == kind]
        for answers in chosen[:SHOWN_PER_KIND]:
            first = next(iter(answers.values()))
            title = KINDS.get(kind, kind)
            groups.append(
                SampleGroup(kind, title, first.prompt, list(answers.items()), first.reference)
            )
    return groups


def _metric_names(results: Sequence[StageResult]) -> list[str]:
    present = {name for result in results for name in result.metrics}
    domains = sorted(name for name in present if name.startswith(DOMAIN_METRIC))
    whole = ["bits_per_byte"] if "bits_per_byte" in present and len(domains) != 1 else []
    others = [name for name in METRICS if name in present and name != "bits_per_byte"]
    unknown = sorted(present - set(METRICS) - set(domains))
    return [*whole, *domains, *others, *unknown]


def _domain(name: str) -> str | None:
    if name == "bits_per_byte":
        return "all"
    return name.removeprefix(DOMAIN_METRIC) if name.startswith(DOMAIN_METRIC) else None


def _heading(name: str) -> str:
    domain = _domain(name)
    return f"bits per byte, {domain}" if domain else metric(name).label


def _log(path: Path) -> list[dict[str, Any]]:
    try:
        return list(read_jsonl(path))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); delete its broken lines") from error


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); run the step that writes it again") from error
    return dict(values)
