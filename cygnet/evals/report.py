"""The report of a run: report.md, report.html and a PNG of each curve."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cygnet.evals.contents import (
    Cell,
    Contents,
    Table,
    gather,
    headline_figures,
    metric_table,
    sample_groups,
    summary_tables,
)
from cygnet.evals.page import BADGES, render_page
from cygnet.evals.reward import RESULT, RewardResult
from cygnet.evals.verdict import METRICS
from cygnet.files import write_atomic
from cygnet.progress import say


def write_report(
    run: Path,
    stages: Sequence[str],
    commands: Sequence[tuple[str, str]] | None = None,
) -> Path:
    """Write RUN/report.md, RUN/report.html and RUN/STAGE/plots/*.png; return report.html.

    Read are RUN/STAGE/eval.json, metrics.jsonl and config.yaml of each stage that is there (of a
    run of one stage, all of them lie in RUN itself),
    RUN/data/report.json and RUN/tokenizer/report.json; each may be missing, and what it would
    have told is then left out. Without matplotlib there are no curves, and a line says so.

    Args:
        run: the run folder.
        stages: its stages in order; those without a folder are passed over.
        commands: (command, what it does) for the section on how to go on.

    Raises:
        UserError: none of the stages is there, or a file is damaged.
    """
    contents = gather(run, stages, commands)
    curves: dict[str, list[str]] = {}
    pictures: dict[str, list[Path]] = {}
    try:
        from cygnet.evals.plots import curves_as_svg, write_pngs

        for view in contents.stages:
            bins = _calibration(view.folder)
            curves[view.name] = curves_as_svg(view.log, view.name, bins)
            pictures[view.name] = write_pngs(view.log, view.folder / "plots", bins)
    except ModuleNotFoundError as error:
        say(f"no curves in the report, {error.name} is missing: pip install 'cygnet[report]'")
    write_atomic(run / "report.md", render_markdown(contents, pictures))
    write_atomic(run / "report.html", render_page(contents, curves))
    return run / "report.html"


def _calibration(folder: Path) -> list[tuple[float, float, int]]:
    path = folder / RESULT
    bins = RewardResult.load(path).bins if path.exists() else []
    return [(found.sure, found.right, found.count) for found in bins]


def render_markdown(contents: Contents, pictures: dict[str, list[Path]]) -> str:
    """Return the report as Markdown; pictures are linked, not held inside."""
    return "\n".join(_lines(contents, pictures)).rstrip() + "\n"


def _lines(contents: Contents, pictures: dict[str, list[Path]]) -> Iterable[str]:
    yield f"# {contents.run.resolve().name}: Cygnet report\n"
    yield " · ".join(f"{value} {label}" for value, label in headline_figures(contents)) + "\n"
    yield "## What each stage did\n"
    for view in contents.stages:
        verdict = view.verdict
        purpose = f"It is there to {verdict.purpose}. " if verdict.purpose else ""
        yield f"**{verdict.stage}** ({BADGES[verdict.outcome]}). {purpose}It {verdict.headline}.\n"
        yield from (f"- {_text(finding.text)}" for finding in verdict.findings)
        if verdict.prices:
            yield f"- What became worse on the way: {'; '.join(verdict.prices)}."
        yield ""
    table = metric_table(contents)
    if table.rows or table.notes:
        yield "## All figures\n"
        yield "On data held out from training, each with its 95 % bootstrap interval.\n"
        yield from _table(table)
    groups = sample_groups(contents)
    if groups:
        yield "## The same prompts after each stage\n"
    for group in groups:
        yield f"### {group.title}\n"
        yield _quoted(group.prompt)
        for stage, sample in group.answers:
            mark = {True: " ✓", False: " ✗", None: ""}[sample.passed]
            yield f"**{stage}**{mark}\n\n{_fenced(sample.answer)}"
        if group.reference.strip():
            yield f"**the held-out text**\n\n{_fenced(group.reference)}"
    if any(pictures.values()):
        yield "## How training went\n"
    for stage, paths in pictures.items():
        links = (f"![{stage}: {p.stem}]({p.relative_to(contents.run).as_posix()})" for p in paths)
        yield " ".join(links) + "\n"
    for title, summary in summary_tables(contents):
        yield f"## {title}\n"
        yield from _table(summary)
    yield "## How to go on\n"
    yield from (f"- `{command}`: {purpose}" for command, purpose in contents.commands)
    yield "\n## What the figures mean\n"
    yield from (f"- **{metric.label}**: {metric.meaning}" for metric in METRICS.values())


def _table(table: Table) -> Iterable[str]:
    if table.rows:
        yield "| " + " | ".join(map(_text, table.headings)) + " |"
        yield "|---" * len(table.headings) + "|"
        for name, cells in table.rows:
            yield f"| {_text(name)} | " + " | ".join(map(_cell, cells)) + " |"
        yield ""
    yield from (f"{_text(note)}\n" for note in table.notes)


def _cell(cell: Cell) -> str:
    return _text(f"{cell.value} ({cell.interval})" if cell.interval else cell.value)


def _text(text: str) -> str:
    """Keep text from being read as Markdown or HTML inside a table or list."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())


def _quoted(text: str) -> str:
    return "\n".join(f"> {_text(line)}" for line in text.splitlines() or [""]) + "\n"


def _fenced(text: str) -> str:
    """Fence text with more backticks than it holds in a row."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text.strip()}\n{fence}\n"
