"""What went wrong while reading: counted, named, and never silently passed over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cygnet.errors import UserError

SHOWN = 5
"""Places of a kind that a report for people shows."""
NAMED = 20_000
"""Places of a kind that are named one by one; more are counted."""
FILE = "problems.jsonl"
"""The file of a data folder that names them: {"kind", "where", "why"} a line."""

LOST = {
    "broken row": "not JSON, a quote never closed, or another number of fields than in the header",
    "bad conversation": "messages that no chat can have",
    "no text": "a row without a text",
    "line too long": "a row too long to be one",
    "damaged file": "could not be read to its end; what came before the damage is used",
    "unreadable": "could not be opened: no permission, a fault of the disk, or gone meanwhile",
    "failed download": "a URL or a data set that does not answer, or needs what is not installed",
    "unpacks too large": "stopped at a bound on what is unpacked; what came before it is used",
    "nested archive": "an archive inside an archive; unpack the outer one to have it read",
    "not text": "a file of another kind",
    "empty file": "nothing in it",
    "no file": "not there, a pipe, a device, a link to nothing, or a folder behind a link",
}
"""Kinds of problem by which a row or a file, or the rest of it, is left out."""
CUT = ("damaged file", "unpacks too large")
"""Those of `LOST` where what came before is used."""
PASSING = ("unreadable", "failed download")
"""Those that may be gone at the next run."""

MENDED = {
    "unreadable bytes": "replaced by U+FFFD",
    "NUL characters": "removed",
    "other encoding": "not UTF-8, read as what it is",
    "other kind": "not what the name says, read as what it is",
    "passed over": "records of a web archive that are no pages: images, data, errors, redirects",
}
"""Kinds of problem by which no text is lost."""
BY_NATURE = ("passed over",)
"""Those of `MENDED` that are no fault, but are counted so that nothing goes unseen."""


def deed(kind: str) -> str:
    """Return what a problem of a kind does to what it concerns."""
    if kind in BY_NATURE:
        return "not used"
    return "cut short" if kind in CUT else "left out" if kind in LOST else "mended"


@dataclass(slots=True)
class Problem:
    """How often something occurred, and where: (place, why), the first `NAMED` of them."""

    count: int = 0
    places: list[tuple[str, str]] = field(default_factory=list)

    @property
    def examples(self) -> list[str]:
        """The first places, a line each."""
        return [f"{where}: {why}" if why else where for where, why in self.places[:SHOWN]]


@dataclass(slots=True)
class Problems:
    """All problems of one reading, by kind (a key of `LOST` or `MENDED`)."""

    kinds: dict[str, Problem] = field(default_factory=dict)
    strict: bool = False
    """Stop at the first problem."""

    def add(self, kind: str, where: str, why: str = "", count: int = 1) -> None:
        """Count a problem at `where` (`file:line`).

        Raises:
            UserError: `strict`, and the kind is not one of `BY_NATURE`; it names the place.
        """
        assert kind in LOST or kind in MENDED
        where, why = _writable(where), _writable(why)
        if self.strict and kind not in BY_NATURE:
            meaning = (LOST | MENDED)[kind]
            raise UserError(
                f"{where}: {kind} ({meaning}){': ' if why else ''}{why}; "
                "mend or leave it out, or go without --strict to have such things counted"
            )
        problem = self.kinds.setdefault(kind, Problem())
        problem.count += count
        if len(problem.places) < NAMED:
            problem.places.append((where, why))

    def merge(self, other: Problems) -> None:
        """Add those of another reading behind these, as if one had read both in this order."""
        for kind, theirs in other.kinds.items():
            ours = self.kinds.setdefault(kind, Problem())
            ours.count += theirs.count
            ours.places += theirs.places[: max(NAMED - len(ours.places), 0)]

    def count(self, kind: str) -> int:
        """Return how often a kind of problem occurred."""
        return self.kinds[kind].count if kind in self.kinds else 0

    def lines(self) -> list[str]:
        """Return one line for each kind, for the person watching."""
        return [
            f"{deed(kind)}, {kind} "
            f"({(LOST | MENDED)[kind]}): {problem.count:,}, such as {problem.examples[0]}"
            for kind, problem in sorted(self.kinds.items())
        ]

    def rows(self) -> Iterator[dict[str, str]]:
        """Yield what `FILE` holds."""
        for kind, problem in sorted(self.kinds.items()):
            for where, why in problem.places:
                yield {"kind": kind, "where": where, "why": why}

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of the report."""
        return {
            kind: {
                "count": problem.count,
                "left_out": kind in LOST,
                "examples": problem.examples,
                "named": len(problem.places),
            }
            for kind, problem in sorted(self.kinds.items())
        }

    def to_state(self) -> dict[str, Any]:
        """Return everything as a JSON object, for another process to merge."""
        kinds = {
            kind: {"count": problem.count, "places": [list(place) for place in problem.places]}
            for kind, problem in self.kinds.items()
        }
        return {"strict": self.strict, "kinds": kinds}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Problems:
        """Return what `to_state` gave."""
        kinds = {
            kind: Problem(value["count"], [(where, why) for where, why in value["places"]])
            for kind, value in state["kinds"].items()
        }
        return cls(kinds, strict=state["strict"])


def _writable(text: str) -> str:
    """Return a text without the halves of characters that names in no UTF-8 bring."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
