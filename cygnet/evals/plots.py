"""The curves of a stage, drawn by matplotlib: as PNG files, and as SVG that takes the page's
colours. Labels are in English alone, so that no font is missing anywhere."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cygnet.files import write_atomic

MAX_POINTS = 400
SMOOTHED_SHARE = 0.03
"""Share of the points that a running mean covers on either side."""
PNG_DPI = 120
OF_A_KIND = "heldout_loss/"
MAX_KINDS = 9
_DRAWN_NAME = re.compile(r"[a-z0-9][\w.-]*", re.ASCII | re.IGNORECASE)
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of a drawing."""

    ink: str
    line: str
    second: str
    grid: str
    paper: str


PNG_COLOURS = Palette("#333a45", "#0f766e", "#c2410c", "#e3e1da", "#ffffff")
STAND_INS = Palette("#010101", "#010102", "#010103", "#010104", "none")
"""Colours that `as_svg` replaces by the page's own."""
SVG_COLOURS = {
    STAND_INS.ink: "var(--soft)",
    STAND_INS.line: "var(--accent)",
    STAND_INS.second: "var(--second)",
    STAND_INS.grid: "var(--rule)",
}


@dataclass(frozen=True, slots=True)
class Curve:
    """One drawing: a logged key, drawn as a line, and held-out keys, drawn as points."""

    name: str
    title: str
    key: str
    heldout: tuple[str, ...] = ()
    is_noisy: bool = False
    from_zero: bool = False


CURVES = (
    Curve("loss", "loss (dots: on held-out data)", "loss", ("heldout_loss",), is_noisy=True),
    Curve(
        "reward", "reward (dots: on held-out prompts)", "reward", ("heldout_reward",), is_noisy=True
    ),
    Curve(
        "accuracy",
        "pairs told apart (dots: held out)",
        "accuracy",
        ("heldout_accuracy",),
        is_noisy=True,
    ),
    Curve(
        "margin", "margin (dots: on held-out pairs)", "margin", ("heldout_margin",), is_noisy=True
    ),
    Curve("kl", "distance from the reference (nats)", "kl", is_noisy=True, from_zero=True),
    Curve("entropy", "entropy of a token (nats)", "entropy", is_noisy=True, from_zero=True),
    Curve("learning_rate", "learning rate", "lr", from_zero=True),
    Curve("tokens_per_second", "tokens per second", "tokens_per_second", from_zero=True),
    Curve("epoch_time", "time of an epoch (s)", "epoch_time", from_zero=True),
)


def draw_curves(log: Sequence[Row], colours: Palette) -> dict[str, Any]:
    """Return a matplotlib figure for each curve that the log has values of."""
    figures = {}
    for curve in CURVES:
        points = _points(log, curve.key)
        if points:
            others = [_points(log, key) for key in curve.heldout]
            figures[curve.name] = _draw(curve, points, [p for p in others if p], colours)
    kinds = sorted({key for row in log for key in row if key.startswith(OF_A_KIND)})
    if kinds:
        figures["heldout_kinds"] = _draw_kinds(log, kinds, colours)
    return figures


def _draw_kinds(log: Sequence[Row], kinds: Sequence[str], colours: Palette) -> Any:
    """Return the held-out loss of each kind of data, the first `MAX_KINDS` of them."""
    figure, axes = _empty("held-out loss of each kind of data", colours)
    for place, key in enumerate(kinds[:MAX_KINDS]):
        name = key.removeprefix(OF_A_KIND)
        axes.plot(
            *zip(*_points(log, key), strict=True),
            color=(colours.line, colours.second, colours.ink)[place % 3],
            linestyle=("-", "--", ":")[place // 3],
            linewidth=1.5,
            marker="o",
            markersize=2.5,
            label=name if _DRAWN_NAME.fullmatch(name) else f"kind {place + 1}",
        )
    axes.legend(fontsize=7.5, frameon=False, labelcolor=colours.ink, ncols=2)
    axes.set_xlabel("step", fontsize=8.5, color=colours.ink)
    return figure


def draw_calibration(bins: Sequence[tuple[float, float, int]], colours: Palette) -> Any:
    """Return a reliability diagram: how sure a reward model is, against how often it is right.

    Args:
        bins: (confidence, share right, number of pairs) of each.
        colours: of the drawing.
    """
    figure, axes = _empty("how sure it is, and how often right (size: pairs)", colours)
    sure, right, counts = zip(*bins, strict=True)
    axes.plot((0.5, 1), (0.5, 1), color=colours.second, linewidth=1.2, linestyle="--")
    axes.plot(sure, right, color=colours.line, linewidth=1.2)
    sizes = [12 + 160 * count / max(counts) for count in counts]
    axes.scatter(sure, right, s=sizes, color=colours.line, zorder=3)
    axes.set_xlabel("mean certainty", fontsize=8.5, color=colours.ink)
    axes.set_ylim(min(0.45, *right) - 0.03, 1.04)
    return figure


def write_pngs(
    log: Sequence[Row], folder: Path, bins: Sequence[tuple[float, float, int]] = ()
) -> list[Path]:
    """Write a PNG of each curve into `folder`; return the files.

    Args:
        log: rows of metrics.jsonl.
        folder: where to.
        bins: see `draw_calibration`; of a reward model.
    """
    written = []
    for name, figure in _drawn(log, bins, PNG_COLOURS).items():
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=PNG_DPI, metadata={"Software": None})
        write_atomic(folder / f"{name}.png", content.getvalue())
        written.append(folder / f"{name}.png")
    return written


def _drawn(
    log: Sequence[Row], bins: Sequence[tuple[float, float, int]], colours: Palette
) -> dict[str, Any]:
    calibration = {"calibration": draw_calibration(bins, colours)} if bins else {}
    return draw_curves(log, colours) | calibration


def curves_as_svg(
    log: Sequence[Row], salt: str, bins: Sequence[tuple[float, float, int]] = ()
) -> list[str]:
    """Return each curve as an <svg> element in the page's colours.

    Args:
        log: rows of metrics.jsonl.
        salt: makes the element's ids its own among all of a page.
        bins: see `draw_calibration`; of a reward model.
    """
    import matplotlib

    drawn = []
    for name, figure in _drawn(log, bins, STAND_INS).items():
        content = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt + name}):
            figure.savefig(content, format="svg", metadata={"Date": None}, transparent=True)
        drawn.append(_for_page(content.getvalue(), f"{salt}: {name.replace('_', ' ')}"))
    return drawn


def _points(log: Sequence[Row], key: str) -> list[tuple[float, float]]:
    points = [
        (float(row["step"]), float(row[key]))
        for row in log
        if isinstance(row.get(key), int | float) and "step" in row
    ]
    every = -(-len(points) // MAX_POINTS) or 1
    kept = points[::every]
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def _smoothed(values: Sequence[float]) -> list[float]:
    half = int(SMOOTHED_SHARE * len(values))
    windows = (values[max(i - half, 0) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _draw(
    curve: Curve,
    points: Sequence[tuple[float, float]],
    others: Sequence[Sequence[tuple[float, float]]],
    colours: Palette,
) -> Any:
    figure, axes = _empty(curve.title, colours)
    steps, values = zip(*points, strict=True)
    marker = "o" if len(points) == 1 else ""
    if curve.is_noisy:
        axes.plot(steps, values, color=colours.line, linewidth=0.9, alpha=0.35)
        axes.plot(steps, _smoothed(values), color=colours.line, linewidth=1.8, marker=marker)
    else:
        axes.plot(steps, values, color=colours.line, linewidth=1.8, marker=marker)
    for other in others:
        axes.plot(*zip(*other, strict=True), "o", color=colours.second, markersize=3.5)
    if curve.from_zero:
        axes.set_ylim(0, 1.12 * max(values) or 1)
    axes.set_xlabel("step", fontsize=8.5, color=colours.ink)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    return figure


def _empty(title: str, colours: Palette) -> tuple[Any, Any]:
    """Return a figure and its axes, without lines yet."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 2.5), facecolor=colours.paper)
    figure.subplots_adjust(left=0.12, right=0.97, top=0.88, bottom=0.18)
    axes = figure.add_subplot(facecolor=colours.paper)
    axes.set_title(title, fontsize=9.5, color=colours.ink, loc="left")
    axes.tick_params(labelsize=8.5, colors=colours.ink, length=0)
    axes.grid(color=colours.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure, axes


def _for_page(svg: str, label: str) -> str:
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<(metadata|style).*?</\1>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="(?:\w+_\d+|matplotlib[^"]*)"', "", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{label}"', svg, count=1
    )
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' xmlns(?::\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    for stand_in, colour in SVG_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg
