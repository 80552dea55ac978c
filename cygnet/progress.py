"""One way of saying how far a long step has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Advance = Callable[..., None]
PLAIN_INTERVAL_S = 10.0


_silent = False
_rewrite: Callable[[str], str] = str


def only_rank_zero_speaks(rank: int) -> None:
    """Keep all processes of a run but the first from saying anything."""
    global _silent
    _silent = rank != 0


@contextmanager
def reworded(rewrite: Callable[[str], str]) -> Iterator[None]:
    """Let what is said meanwhile be put in other words first."""
    global _rewrite
    before, _rewrite = _rewrite, rewrite
    try:
        yield
    finally:
        _rewrite = before


def say(message: str) -> None:
    """Print one line for the person watching, on standard error (standard output is for results).

    It appears above a running progress bar.
    """
    from rich.console import Console

    if _silent:
        return
    Console(stderr=True, highlight=False, soft_wrap=True).print(_rewrite(message), markup=False)


@contextmanager
def progress(title: str, total: float | None) -> Iterator[Advance]:
    """Show a bar with time left on a terminal, and a line every ten seconds elsewhere.

    Yields `advance(amount=1, note="")`; `note` is shown behind the bar.
    """
    if sys.stderr.isatty() and not _silent:
        yield from _bar(title, total)
    else:
        yield from _lines(title, total)


def track(items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
    """Yield each item while showing progress."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(title, total) as advance:
        for item in items:
            yield item
            advance()


def _bar(title: str, total: float | None) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, note="")

        def advance(amount: float = 1, note: str = "") -> None:
            fields = {"note": note} if note else {}
            bar.update(task, advance=amount, **fields)  # type: ignore[arg-type]

        yield advance
        bar.update(task, completed=total if total is not None else bar.tasks[task].completed)


def _lines(title: str, total: float | None) -> Iterator[Advance]:
    started = said = time.monotonic()
    done = 0.0

    def advance(amount: float = 1, note: str = "") -> None:
        nonlocal done, said
        done += amount
        now = time.monotonic()
        if now - said < PLAIN_INTERVAL_S:
            return
        said = now
        if total:
            left_s = (now - started) * (total - done) / max(done, 1e-9)
            share = f"{100 * done / total:.0f} %, {left_s:.0f} s left"
        else:
            share = f"{done:.0f} so far"
        say(f"{title}: {share}  {note}".rstrip())

    yield advance
