"""What a larger vocabulary saves in tokens and costs in parameters: a sweep over sizes, drawn."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

import tokenizers

from cygnet.errors import UserError, require
from cygnet.text.measure import ALL, HeldOutText, Measure, markdown, measure_tokenizer
from cygnet.text.tokenizer import MIN_VOCAB_SIZE, Tokenizer, train_tokenizer

MAX_LINES = 7
"""Domains that a drawing shows: the largest."""
_COLOURS = ("#0f766e", "#c2410c", "#1d4ed8", "#a16207", "#7e22ce", "#be185d", "#4d7c0f")
_BAND = 0.3
"""Share of the height that is kept free for names, below the lines."""
_NEAR = 1.1
_INK, _SOFT, _GRID = "#333a45", "#6b7280", "#e3e1da"


def sweep(texts: Iterable[str], sizes: Sequence[int], heldout: HeldOutText) -> list[Measure]:
    """Measure vocabularies of several sizes, learnt from the same text; the smallest first.

    One training does for all: byte-pair merges are learnt one after another, so a smaller
    vocabulary is the beginning of a larger one. Sizes that the text has no pairs for are left out.

    Raises:
        UserError: a size has no room for the bytes, or there is no text.
    """
    wanted = sorted(set(sizes))
    if wanted[0] < MIN_VOCAB_SIZE:
        raise UserError(f"--sweep {wanted[0]}: give sizes from {MIN_VOCAB_SIZE} up")
    largest = train_tokenizer(texts, wanted[-1])
    reached = [size for size in wanted if size <= largest.vocab_size] or [largest.vocab_size]
    return [measure_tokenizer(first_entries(largest, size), heldout, "swept") for size in reached]


def first_entries(tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """Return what `train_tokenizer` would have given with a smaller `vocab_size`."""
    values = tokenizer.description()
    model = values["model"]
    ids = {token: number for token, number in model["vocab"].items() if number < vocab_size}
    known = {token for token, number in ids.items() if number < MIN_VOCAB_SIZE}
    merges = []
    for pair in model["merges"]:
        if len(known) == vocab_size:
            break
        merges.append(pair)
        known.add("".join(pair))
    values["model"] = {**model, "vocab": ids, "merges": merges}
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(values)))


def sweep_table(measures: Sequence[Measure], width: int) -> str:
    """Return Markdown: bytes per token by domain, and what the embedding costs at a width."""
    domains = [ALL, *(name for name in measures[0].by_domain if name != ALL)]
    rows = [
        [f"{row.num_entries:,}", *(f"{row.by_domain[name]:.2f}" for name in domains),
         f"{100 * row.used:.1f} %", f"{row.num_entries * width / 1e6:.2f} M"]
        for row in measures
    ]  # fmt: skip
    titles = ["entries", *domains, "entries used", f"parameters at width {width}"]
    return "## Sizes of the vocabulary\n\n" + markdown(titles, rows)


def draw_sweep(
    own: Measure, measures: Sequence[Measure], known: Sequence[Measure], width: int
) -> bytes:
    """Return a PNG: bytes per token against the number of entries.

    Args:
        own: the vocabulary that is used; marked.
        measures: of other sizes; drawn as lines.
        known: of other makers; drawn as points.
        width: of a model, whose embedding's parameters are on the upper axis.
    """
    require("matplotlib", "report")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    domains = [ALL, *(name for name in own.by_domain if name != ALL)][:MAX_LINES]
    for place, name in enumerate(domains):
        colour = _INK if name == ALL else _COLOURS[place - 1]
        thick = 2.6 if name == ALL else 1.6
        axes.plot(
            *_line(measures, name), "o-", color=colour, linewidth=thick, markersize=4, label=name
        )
        axes.plot(*_line(known, name), "D", color=colour, markersize=5.5)
    low, high = axes.get_ylim()
    axes.set_ylim(low - _BAND * (high - low), high)
    for row, colour in [(own, _INK), *((row, _GRID) for row in known)]:
        style = "--" if row is own else "-"
        axes.axvline(row.num_entries, color=colour, linewidth=1, linestyle=style, zorder=0)
    for at, names in _labels([own, *known]):
        axes.annotate(
            names, (at, 0.015), xycoords=("data", "axes fraction"), rotation=90, ha="right",
            va="bottom", fontsize=9, color=_SOFT,
        )  # fmt: skip
    _label_axes(axes, [row.num_entries for row in (*measures, *known)], width)
    axes.legend(loc="upper left", frameon=False, labelcolor=_INK)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()


def _line(measures: Sequence[Measure], domain: str) -> tuple[list[int], list[float]]:
    found = [row for row in measures if domain in row.by_domain]
    return [row.num_entries for row in found], [row.by_domain[domain] for row in found]


def _labels(measures: Sequence[Measure]) -> list[tuple[int, str]]:
    """Return where names stand; those of nearly one size stand together."""
    groups: list[list[Measure]] = []
    for row in sorted(measures, key=lambda row: row.num_entries):
        if groups and row.num_entries < groups[-1][-1].num_entries * _NEAR:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [(group[0].num_entries, "\n".join(row.name for row in group)) for group in groups]


def _label_axes(axes: Any, sizes: Sequence[int], width: int) -> None:
    from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

    axes.set_xscale("log", base=2)
    ticks = [2**power * 1000 for power in range(-2, 10)]
    ticks = [tick for tick in ticks if 0.9 * min(sizes) <= tick <= 1.1 * max(sizes)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("entries of the vocabulary", color=_INK)
    axes.set_ylabel("bytes per token on held-out text", color=_INK)
    above = axes.secondary_xaxis(
        "top", functions=(lambda entries: entries * width, lambda count: count / width)
    )
    above.xaxis.set_major_locator(FixedLocator([tick * width for tick in ticks]))
    above.xaxis.set_minor_locator(NullLocator())
    above.xaxis.set_major_formatter(lambda count, _: f"{count / 1e6:.2g} M")
    above.set_xlabel(f"parameters of a tied embedding of width {width}", color=_INK)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.spines["right"].set_visible(False)
    axes.set_title(
        "What a larger vocabulary saves (diamonds: those of other makers)", loc="left", color=_INK
    )
