"""A report as one HTML page that needs nothing else: style and curves are inside it.

Whatever a model or a person wrote is escaped, and the page forbids scripts and requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from cygnet.evals.contents import (
    Cell,
    Contents,
    SampleGroup,
    StageView,
    Table,
    bar_groups,
    headline_figures,
    metric_table,
    sample_groups,
    summary_tables,
)
from cygnet.evals.verdict import METRICS, Verdict

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
BADGES = {
    "improved": "improved",
    "partly": "partly improved",
    "not": "did not improve",
    "unknown": "cannot be judged",
}
OUTCOMES_THAT_MARK = {"improved", "not"}


def render_page(contents: Contents, curves: dict[str, list[str]]) -> str:
    """Return the whole page.

    Args:
        contents: what it says.
        curves: <svg> elements of each stage, made by Cygnet itself.
    """
    style = files("cygnet.evals").joinpath("page.css").read_text(encoding="utf-8")
    name = escape(contents.run.resolve().name)
    body = "".join(_body(contents, curves))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name} – Cygnet report</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _body(contents: Contents, curves: dict[str, list[str]]) -> Iterable[str]:
    name = escape(contents.run.resolve().name)
    yield f'<div class="eyebrow">Cygnet report</div>\n<h1>{name}</h1>\n<p class="lead">A language '
    yield "model raised from raw text: what it learnt, stage by stage.</p>\n"
    yield '<div class="grid">' + "".join(map(_figure, headline_figures(contents))) + "</div>\n"
    yield "<h2>What each stage did</h2>\n"
    yield _grid((_verdict(view.verdict) for view in contents.stages), "wide")
    yield from _bars(contents)
    table = metric_table(contents)
    if table.rows:
        yield "<h2>All figures</h2>\n<p>On text and questions held out from training. Under each "
        yield "figure stands its 95 % interval: the range in which it would move with other "
        yield "held-out samples. The best stage is coloured.</p>\n"
    yield _table(table)
    yield from _samples(contents)
    yield from _curves(contents, curves)
    for title, summary in summary_tables(contents):
        yield f"<h2>{escape(title)}</h2>\n" + _table(summary)
    yield "<h2>How to go on</h2>\n"
    yield _grid((_command(*command) for command in contents.commands), "wide")
    yield "<h2>What the figures mean</h2>\n<dl>"
    for metric in METRICS.values():
        yield f"<dt>{escape(metric.label)}</dt><dd>{escape(metric.meaning)}</dd>\n"
    yield "</dl>\n"


def _figure(figure: tuple[str, str]) -> str:
    value, label = map(escape, figure)
    shown = f'<div class="figure">{value}</div><div class="soft">{label}</div>'
    return f'<div class="card">{shown}</div>\n'


def _grid(items: Iterable[str], extra: str = "") -> str:
    return f'<div class="grid {extra}">\n' + "".join(items) + "</div>\n"


def _verdict(verdict: Verdict) -> str:
    findings = "".join(
        f'<li class="mark-{f.outcome}">{escape(f.text)}</li>\n' for f in verdict.findings
    )
    purpose = f"It is there to {verdict.purpose}. " if verdict.purpose else ""
    headline = f"{purpose}It {verdict.headline}."
    prices = ""
    if verdict.prices:
        prices = (
            f'<p class="soft small">What became worse on the way: {"; ".join(verdict.prices)}.</p>'
        )
    return (
        f'<div class="card verdict"><div class="who">{escape(verdict.stage)} '
        f'<span class="badge {verdict.outcome}">{BADGES[verdict.outcome]}</span></div>'
        f"<div>{escape(headline)}</div><ul>{findings}</ul>{prices}</div>\n"
    )


def _bars(contents: Contents) -> Iterable[str]:
    groups = bar_groups(contents)
    if not groups:
        return
    yield "<h2>How well it foresees text it has never seen</h2>\n<p>Whoever foresees a text well "
    yield "can write it down in fewer bits. Bits for each byte of held-out text, beside what two "
    yield "ordinary compressors need for the same text; shorter is better.</p>\n"
    longest = max(value for _, bars in groups for _, value, _ in bars)
    yield _grid((_bar_card(title, bars, longest) for title, bars in groups), "wide")


def _bar_card(title: str, bars: list[tuple[str, float, bool]], longest: float) -> str:
    lines = "".join(_bar(*bar, longest) for bar in bars)
    shown = f'<div class="who">{escape(title)}</div>\n<div class="bars">{lines}</div>'
    return f'<div class="card">{shown}</div>\n'


def _bar(name: str, value: float, is_compressor: bool, longest: float) -> str:
    kind = "bar yard" if is_compressor else "bar"
    width = f"calc((100% - 3.2rem) * {value / longest:.4f})"
    return (
        f'<div>{escape(name)}</div><div class="bar-line">'
        f'<div class="{kind}" style="width: {width}"></div>{value:.2f}</div>\n'
    )


def _table(table: Table) -> str:
    notes = "".join(f'<p class="soft">{escape(note)}</p>\n' for note in table.notes)
    if not table.rows:
        return notes
    heads = "".join(f"<th>{escape(heading)}</th>" for heading in table.headings)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(map(_cell, cells))}</tr>\n"
        for name, cells in table.rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody>'
        f"</table></div>\n{notes}"
    )


def _cell(cell: Cell) -> str:
    interval = f"<small>{escape(cell.interval)}</small>" if cell.interval else ""
    kind = ' class="best"' if cell.is_best else ' class="words"' if cell.is_words else ""
    return f"<td{kind}>{escape(cell.value)}{interval}</td>"


def _samples(contents: Contents) -> Iterable[str]:
    groups = sample_groups(contents)
    if not groups:
        return
    yield "<h2>The same prompts after each stage</h2>\n<p>Drawn by a fixed rule from held-out "
    yield "prompts, not picked. The held-out text itself stands beside them.</p>\n"
    for group in groups:
        yield f"<h3>{escape(group.title)}</h3>\n"
        yield f'<div class="prompt">{escape(group.prompt)}</div>\n'
        yield _grid(_answers(group), "answers")


def _answers(group: SampleGroup) -> Iterable[str]:
    for stage, sample in group.answers:
        mark = ""
        if sample.passed is not None:
            what = sample.form or "complete"
            kind, sign = ("kept", "✓") if sample.passed else ("broken", "✗")
            mark = f'<span class="{kind}">{sign} {escape(what)}</span>'
        text = escape(sample.answer.strip()) or '<span class="soft">(says nothing)</span>'
        yield (
            f'<div class="card"><div class="who"><span>{escape(stage)}</span>{mark}</div>'
            f'<div class="answer">{text}</div></div>\n'
        )
    if group.reference.strip():
        yield (
            '<div class="card reference"><div class="who soft">the held-out text</div>'
            f'<div class="answer">{escape(group.reference.strip())}</div></div>\n'
        )


def _curves(contents: Contents, curves: dict[str, list[str]]) -> Iterable[str]:
    drawn: Sequence[StageView] = [view for view in contents.stages if curves.get(view.name)]
    if drawn:
        yield "<h2>How training went</h2>\n"
    for view in drawn:
        yield f"<h3>{escape(view.name)}</h3>\n"
        yield _grid((f'<div class="card">{svg}</div>\n' for svg in curves[view.name]), "curves")


def _command(command: str, purpose: str) -> str:
    return (
        f'<div class="card"><pre><code>{escape(command)}</code></pre>'
        f'<div class="soft">{escape(purpose)}</div></div>\n'
    )
