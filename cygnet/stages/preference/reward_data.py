"""What people preferred, as a reward model learns it: pairs of answers, or rated conversations.

A person's files are recognised by their fields: `chosen` and `rejected` (a pair), or `rating` or
`ratings` beside an answer or a whole conversation.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.errors import UserError
from cygnet.files import JsonlWriter, digest_of, folder_atomic, read_jsonl, write_json
from cygnet.messages import Message, parse_messages, validate
from cygnet.progress import say
from cygnet.stages.given_rows import numbered_rows
from cygnet.stages.preference.pairs import checked_pair

Row = dict[str, Any]
MOST_LEVELS = 16
"""Finer ratings are joined into so many levels, each of about as many conversations."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The levels of a rating: level k holds what is above edge k - 1 and not above edge k."""

    edges: tuple[float, ...]

    @classmethod
    def of(cls, ratings: Sequence[float]) -> Scale:
        """Return the scale of some ratings, on which every level occurs.

        Raises:
            UserError: they are all the same.
        """
        distinct = np.unique(ratings)
        if len(distinct) < 2:
            raise UserError(
                f"all {len(ratings)} ratings are {distinct[0]:g}: they say of no answer that it "
                "is better than another"
            )
        if len(distinct) > MOST_LEVELS:
            shares = np.linspace(0, 1, MOST_LEVELS + 1)[1:]
            distinct = np.unique(np.quantile(ratings, shares, method="nearest"))
            if len(distinct) < 2:  # nearly all are the highest
                distinct = np.array([np.unique(ratings)[-2], distinct[0]])
        return cls(tuple(distinct[:-1].tolist()))

    def levels(self, ratings: Sequence[float]) -> list[int]:
        """Return the level of each rating."""
        found: list[int] = np.searchsorted(self.edges, ratings, side="left").tolist()
        return found


def take_preferences(paths: Sequence[str], out: Path, heldout_share: float) -> Path:
    """Check a person's pairs or ratings, hold some out, and write both to the folder `out`.

    Whole conversations are held out, or where several answers share a prompt all that share it, by
    a hash: nothing is on both sides. A line tells what was left out.

    Args:
        paths: JSON lines, also .gz and .zst: {"prompt", "chosen", "rejected"}, with a "margin" if
            one is known; {"prompt", "answer", "rating"}; or a conversation in any of the known
            forms with a "rating", or with "ratings" by name, whose mean is taken.
        out: replaced if it is there; left as it is when a row is damaged.
        heldout_share: of the prompts or conversations.

    Raises:
        UserError: a file cannot be read, a row is damaged (names file and line), the files mix
            pairs and ratings, or too little is left.
    """
    left_out: Counter[str] = Counter()
    rows = [row for path in paths for row in _taken(Path(path), left_out)]
    named = ", ".join(paths)
    if left_out:
        told = "; ".join(f"{count} {why}" for why, count in sorted(left_out.items()))
        say(f"reward: left out of {named}: {told}")
    if not rows:
        raise UserError(f"{named}: nothing left to learn from; give pairs or ratings")
    if len({"rating" in row for row in rows}) > 1:
        raise UserError(f"{named}: pairs and ratings together; train on one kind at a time")
    if "rating" in rows[0]:
        Scale.of([row["rating"] for row in rows])
    keys = sorted({row["key"] for row in rows})
    if len(keys) < 2:
        what = "conversations" if "rating" in rows[0] else "prompts"
        raise UserError(f"{named}: at least two different {what} are needed, one to hold out")
    held = set(keys[: max(round(heldout_share * len(keys)), 1)])
    with folder_atomic(out) as folder:
        counts = {}
        for name, is_held in ((TRAIN, False), (HELDOUT, True)):
            kept = [row for row in rows if (row["key"] in held) == is_held]
            counts[name] = len(kept)
            with JsonlWriter(folder / name) as writer:
                for row in kept:
                    writer.write({k: value for k, value in row.items() if k != "key"})
        write_json(folder / "manifest.json", {"counts": counts, "left_out": dict(left_out)})
    return out


def read_preferences(path: Path) -> list[Row]:
    """Read what `take_preferences` or `build_pairs` wrote, without pairs of two equal sides."""
    rows = list(read_jsonl(path))
    return [row for row in rows if "rating" in row or row["chosen"] != row["rejected"]]


def conversations(row: Row) -> list[list[Message]]:
    """Return the conversations of a row: a pair's chosen and rejected one, or the rated one."""
    if "rating" in row:
        return [row["messages"]]
    return [
        [*row["prompt"], {"role": "assistant", "content": row[name]}]
        for name in ("chosen", "rejected")
    ]


def pairs_of(ratings: Sequence[float], order: Sequence[int]) -> list[tuple[int, int]]:
    """Pair rated rows, each in one pair at most, so that the pairs are independent of each other.

    Args:
        ratings: of the rows.
        order: the rows, of which neighbours are paired where their ratings differ.

    Returns:
        (better, worse) places.
    """
    pairs: list[tuple[int, int]] = []
    waiting: int | None = None
    for place in order:
        if waiting is None:
            waiting = place
        elif ratings[place] != ratings[waiting]:
            worse, better = sorted((place, waiting), key=lambda at: ratings[at])
            pairs.append((better, worse))
            waiting = None
    return pairs


def _taken(path: Path, left_out: Counter[str]) -> Iterator[Row]:
    for number, row in numbered_rows(path):
        where = f"{path}:{number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: {type(row).__name__} given, an object wanted")
        if "chosen" in row or "rejected" in row:
            taken, why = _pair(row, where), "of two equal sides"
        elif "rating" in row or "ratings" in row:
            taken, why = _rated(row, where)
        else:
            raise UserError(
                f"{where}: neither a pair (prompt, chosen, rejected) nor rated (prompt, answer, "
                "rating, or messages and rating)"
            )
        if taken is None:
            left_out[why] += 1
        else:
            yield {**taken, "source": f"{path.name}:{number}"}


def _pair(row: Row, where: str) -> Row | None:
    """Return a checked pair; none if its sides are equal."""
    row = checked_pair(row, where)
    if row["chosen"] == row["rejected"]:
        return None
    margin = {}
    if row.get("margin") is not None:
        margin = {"margin": _number(row["margin"], "margin", where)}
        if margin["margin"] < 0:
            raise UserError(
                f"{where}: `margin` is {row['margin']}; it says by how much the chosen side is "
                "better, so it must not be below zero"
            )
    sides = {name: row[name] for name in ("chosen", "rejected")}
    about = {name: row[name] for name in ("kind", "why") if isinstance(row.get(name), str)}
    prompt = {"prompt": row["prompt"], "key": _key(row["prompt"])}
    return {**prompt, **sides, **margin, **about}


def _rated(row: Row, where: str) -> tuple[Row | None, str]:
    """Return a checked conversation with its rating, or why it is left out."""
    given = row.get("rating", row.get("ratings"))
    if given is None:
        return None, "without a rating"
    if isinstance(given, dict):
        if not given:
            return None, "without a rating"
        each = [_number(value, f"ratings.{name}", where) for name, value in given.items()]
        rating = math.fsum(each) / len(each)
    else:
        rating = _number(given, "rating", where)
    if isinstance(row.get("prompt"), list) and isinstance(row.get("answer"), str):
        messages = [*row["prompt"], {"role": "assistant", "content": row["answer"]}]
    else:
        try:
            found = parse_messages(row)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if not found:
            raise UserError(f"{where}: rated, but neither prompt and answer nor messages are there")
        messages = found
    if not any(message.get("role") == "assistant" for message in messages):
        return None, "in which no assistant speaks"
    try:
        validate(messages, needs_answer=False)
    except (UserError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: {error}") from error
    # Answers to one prompt stay together; a longer conversation is its own.
    asked = messages[:-1] if "prompt" in row else messages
    return {"messages": messages, "rating": rating, "key": _key(asked)}, ""


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: `{name}` is {json.dumps(value)}; a number is wanted")
    return float(value)


def _key(messages: Sequence[Message]) -> str:
    return digest_of([[message.get("role"), message.get("content")] for message in messages])
