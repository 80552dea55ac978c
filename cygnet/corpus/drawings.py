"""The drawings of the report's page, as SVG in the page's colours: no library draws them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, FOOT = 440, 130, 20
BINS = 44
WIDE = 1000
"""Numbers that reach further are drawn on a logarithmic axis."""
FLOW_WIDTH, FLOW_HEIGHT, LABEL_WIDTH = 760, 300, 165
NODE_WIDTH, SLOT, LEAST = 10, 19, 0.75


@dataclass(frozen=True, slots=True)
class Axis:
    """Where numbers lie from left to right, `low` to `high`; what lies beyond is at its end."""

    low: float
    high: float
    is_log: bool

    @classmethod
    def of(cls, values: NDArray[np.floating], threshold: float) -> Axis:
        """Choose one that shows nearly all of some values, and the threshold."""
        low = float(min(values.min(initial=threshold), threshold))
        high = float(np.quantile(values, 0.995)) if len(values) else threshold
        high = max(high, threshold + 0.25 * abs(threshold), low + 1e-6)
        is_log = low >= 0 and max(high, float(values.max(initial=0))) > WIDE
        return cls(low, float(values.max(initial=high)) if is_log else high, is_log)

    def places(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return where values lie, from 0 to 1."""
        low, high, values = (
            (np.log1p(part) if self.is_log else np.asarray(part, np.float64))
            for part in (self.low, self.high, values)
        )
        return np.clip((values - low) / max(float(high - low), 1e-9), 0, 1)


def rule_histogram(
    values: NDArray[np.floating], breaks: NDArray[np.bool_], threshold: float, label: str
) -> str:
    """Draw how many documents have which number, those that break the rule in another colour.

    Heights are square roots of counts, so that few beside many can be seen.

    Args:
        values: of the documents that the rule is held against, none of them NaN.
        breaks: which of them break it.
        threshold: of the rule, marked by a line.
        label: what the drawing shows, for those who cannot see it.
    """
    axis = Axis.of(values, threshold)
    bins = np.minimum((axis.places(values) * BINS).astype(np.int64), BINS - 1)
    kept = np.bincount(bins[~breaks], minlength=BINS)
    gone = np.bincount(bins[breaks], minlength=BINS)
    mark = float(axis.places(np.array([threshold]))[0]) * WIDTH
    anchor = "start" if mark < WIDTH / 4 else "end" if mark > 3 * WIDTH / 4 else "middle"
    ticks = [
        (0.0, "start", f"{axis.low:,.4g}" if anchor != "start" else ""),
        (mark, anchor, f"{threshold:,.4g}"),
        (WIDTH, "end", f"{axis.high:,.4g}" if anchor != "end" else ""),
    ]
    line = f'<line class="mark" x1="{mark:.1f}" x2="{mark:.1f}" y1="0" y2="{HEIGHT - FOOT}"/>'
    return _svg([*_columns(kept, gone), line, *_ticks(ticks)], label)


def histogram(first: Sequence[int], second: Sequence[int], ticks: Sequence[str], label: str) -> str:
    """Draw two counts for each step: `second`, and before it what `first` has more."""
    inner = np.array(second, np.int64)
    rest = np.array(first, np.int64) - inner
    each = WIDTH / max(len(inner), 1)
    places = []
    for i, tick in enumerate(ticks):
        x = each * (i + 0.5)
        anchor = "start" if i == 0 else "end" if x > WIDTH - 2 * SLOT else "middle"
        places.append(({"start": 0.0, "end": float(WIDTH)}.get(anchor, x), anchor, tick))
    return _svg([*_columns(inner, rest), *_ticks(places)], label)


def _columns(kept: NDArray[np.int64], gone: NDArray[np.int64]) -> Iterator[str]:
    most = float(np.sqrt((kept + gone).max(initial=1))) or 1.0
    each, floor = WIDTH / max(len(kept), 1), HEIGHT - FOOT
    for i, (inner, outer) in enumerate(zip(kept.tolist(), gone.tolist(), strict=True)):
        full = floor * np.sqrt(inner + outer) / most
        own = full * inner / max(inner + outer, 1)
        x, width = i * each, max(each - 1, 0.5)
        title = f"<title>{inner:,} stay, {outer:,} go</title>"
        for kind, height, low in (("stay", own, 0.0), ("go", full - own, own)):
            if height > 0:
                height = max(height, LEAST)
                yield (
                    f'<rect class="{kind}" x="{x:.1f}" y="{floor - low - height:.1f}" '
                    f'width="{width:.1f}" height="{height:.1f}">{title}</rect>'
                )


def _ticks(ticks: Sequence[tuple[float, str, str]]) -> Iterator[str]:
    y = HEIGHT - FOOT
    yield f'<line class="axis" x1="0" x2="{WIDTH}" y1="{y}" y2="{y}"/>'
    for x, anchor, text in ticks:
        if text:
            yield f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(content: Sequence[str], label: str, width: int = WIDTH, height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(content)}</svg>"
    )


@dataclass(frozen=True, slots=True)
class Flow:
    """What runs from the node of a number on the left to one on the right."""

    left: int
    right: int
    amount: float
    told: str
    """What a pointer that rests on it is shown."""


@dataclass(frozen=True, slots=True)
class _Node:
    top: float
    height: float
    middle: float


def flows(
    left: Sequence[str], right: Sequence[tuple[str, str]], ribbons: Sequence[Flow], label: str
) -> str:
    """Draw a Sankey diagram of two columns.

    Args:
        left: names of the nodes, from top to bottom.
        right: (name, CSS class) of each node.
        ribbons: what runs between them.
        label: what the drawing shows, for those who cannot see it.
    """
    total = sum(flow.amount for flow in ribbons) or 1.0
    sums = [
        [sum(f.amount for f in ribbons if getattr(f, side) == i) / total for i in range(len(names))]
        for side, names in (("left", left), ("right", right))
    ]
    columns = [_stack(shares) for shares in sums]
    height = max(nodes[-1].top + max(nodes[-1].height, SLOT) for nodes in columns if nodes) + 4
    x = (LABEL_WIDTH, FLOW_WIDTH - LABEL_WIDTH)
    content = list(_ribbons(columns, ribbons, total, x, [kind for _, kind in right]))
    for i, name in enumerate(left):
        content.append(_node(columns[0][i], x[0] - NODE_WIDTH, "from", name, "end"))
    for i, (name, kind) in enumerate(right):
        content.append(_node(columns[1][i], x[1], kind, name, "start"))
    return _svg(content, label, FLOW_WIDTH, height)


def _stack(shares: Sequence[float]) -> list[_Node]:
    nodes, top = [], 2.0
    for share in shares:
        height = max(share * FLOW_HEIGHT, LEAST)
        slot = max(height, SLOT - 5)
        start = top + (slot - height) / 2
        nodes.append(_Node(start, height, top + slot / 2))
        top += slot + 5
    return nodes


def _ribbons(
    columns: Sequence[Sequence[_Node]],
    ribbons: Sequence[Flow],
    total: float,
    x: tuple[int, int],
    kinds: Sequence[str],
) -> Iterator[str]:
    used = [[0.0] * len(nodes) for nodes in columns]
    half = (x[0] + x[1]) / 2
    for flow in sorted(ribbons, key=lambda flow: (flow.left, flow.right)):
        thick = flow.amount / total * FLOW_HEIGHT
        ends = []
        for side, number in enumerate((flow.left, flow.right)):
            ends.append(columns[side][number].top + used[side][number])
            used[side][number] += thick
        (a, b), thick = ends, max(thick, LEAST)
        yield (
            f'<path class="flow {kinds[flow.right]}" d="M{x[0]} {a:.1f}C{half} {a:.1f} {half} '
            f"{b:.1f} {x[1]} {b:.1f}V{b + thick:.1f}C{half} {b + thick:.1f} {half} "
            f'{a + thick:.1f} {x[0]} {a + thick:.1f}Z"><title>{escape(flow.told)}</title></path>'
        )


def _node(node: _Node, x: float, kind: str, name: str, anchor: str) -> str:
    at = x - 6 if anchor == "end" else x + NODE_WIDTH + 6
    return (
        f'<rect class="{kind}" x="{x}" y="{node.top:.1f}" width="{NODE_WIDTH}" '
        f'height="{node.height:.1f}"/><text x="{at}" y="{node.middle + 4:.1f}" '
        f'text-anchor="{anchor}">{escape(name)}</text>'
    )
