"""Pieces of the report's page: every text that comes in is escaped here, and cut to a bound."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

NAME_CHARS, SOURCE_CHARS, TEXT_CHARS = 80, 200, 420
"""Longest name, place and excerpt, so that the page stays small whatever the text."""


def text(content: str, most: int = NAME_CHARS) -> str:
    """Return a text for the page: escaped, on one line, cut where it is too long."""
    # Four times as much is looked at, since runs of space count as one.
    line = " ".join(content[: 4 * most].split())
    cut = len(line) > most or len(content) > 4 * most
    line = line[:most] + ("…" if cut else "")
    return escape(line.encode("utf-8", "replace").decode())


def size(num_bytes: float) -> str:
    """Return bytes as people read them: `1.23 MB`."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.3g} {unit}"
    return f"{num_bytes:,.0f} B"


def share(part: float, whole: float) -> str:
    """Return a share in per cent; none of nothing."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.3g} %" if percent else "0 %"


def figure(value: str, label: str) -> str:
    """Return a card with one large figure."""
    shown = f'<div class="figure">{text(value)}</div><div class="soft">{text(label)}</div>'
    return f'<div class="card">{shown}</div>\n'


def card(title: str, body: str) -> str:
    """Return a card; `body` is markup."""
    return f'<section class="card"><h3>{text(title)}</h3>\n{body}</section>\n'


def grid(cards: Iterable[str], kind: str = "") -> str:
    """Return cards beside one another, as many as there is room for."""
    return f'<div class="grid {kind}">\n{"".join(cards)}</div>\n'


def note(words: str) -> str:
    """Return a remark in small print."""
    return f'<p class="soft small">{text(words, 2000)}</p>\n'


def bars(rows: Sequence[tuple[str, str, Sequence[tuple[float, str]]]], most: float) -> str:
    """Return a bar for each row.

    Args:
        rows: (name, amount in words, lengths with their CSS class, the longer ones first).
        most: the length of a full bar.
    """
    lines = []
    for name, amount, lengths in rows:
        drawn = "".join(
            f'<i class="{kind}" style="width:{100 * length / max(most, 1e-9):.2f}%"></i>'
            for length, kind in lengths
            if length
        )
        lines.append(
            f'<div class="name">{text(name)}</div><div class="amount">{text(amount)}</div>'
            f'<div class="track">{drawn}</div>\n'
        )
    return f'<div class="bars">{"".join(lines)}</div>\n'


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = ()) -> str:
    """Return a table.

    Args:
        headings: of the columns; none for a table that needs none.
        rows: cells; the first of each names it.
        words: the columns that hold words, not figures.
    """
    heads = [
        f"<th{' class=words' if i in words else ''}>{text(heading)}</th>"
        for i, heading in enumerate(headings)
    ]
    head = f"<thead><tr>{''.join(heads)}</tr></thead>" if heads else ""
    body = []
    for first, *cells in rows:
        shown = "".join(
            f"<td{' class=words' if i in words else ''}>{text(cell, SOURCE_CHARS)}</td>"
            for i, cell in enumerate(cells, 1)
        )
        body.append(f"<tr><th>{text(first, SOURCE_CHARS)}</th>{shown}</tr>\n")
    return f'<div class="scroll"><table>{head}\n<tbody>{"".join(body)}</tbody></table></div>\n'


def sample(source: str, why: str, excerpt: str | None, kind: str) -> str:
    """Return an excerpt with its source; `kind` is `went`, `stayed` or empty."""
    told = f"{text(source, SOURCE_CHARS)}{' · ' if why else ''}{text(why, SOURCE_CHARS)}"
    shown = "(its text is no longer at hand)" if excerpt is None else excerpt
    return (
        f'<div class="sample {kind}"><span class="soft">{told}</span>'
        f"{text(shown, TEXT_CHARS)}</div>\n"
    )


def fold(summary: str, soft: str, body: str, is_quiet: bool = False) -> str:
    """Return a part that opens when it is asked for; `body` is markup.

    On paper all parts are open, and the quiet ones left out.
    """
    kind = " class=quiet" if is_quiet else ""
    told = f'<b>{text(summary)}</b><span class="soft">{text(soft, 300)}</span>'
    return f"<details{kind}><summary>{told}</summary><div>{body}</div></details>\n"
