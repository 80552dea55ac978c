"""Prompts for the stages that let the model answer: JSON lines, or what instructions ask.

A row is {"prompt": text or messages, "tools"?, ...whatever the rewards read}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cygnet.corpus.pipeline import HELDOUT, TRAIN
from cygnet.errors import UserError
from cygnet.files import read_jsonl
from cygnet.progress import say
from cygnet.stages.reinforcement.groups import is_held_out
from cygnet.stages.reinforcement.rollout import (
    MIN_ANSWER_TOKENS,
    Environment,
    Roller,
    Row,
    prompt_messages,
)

CHECKED = {"poem": "poem_form", "recipe": "recipe"}
"""The built-in reward that can check an answer to this kind of instruction."""
Split = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Rows to learn from, and those that are only judged."""


def read_prompts(paths: Sequence[str | Path], heldout_share: float) -> Split:
    """Read prompts and hold some out, by a hash of the prompt: a file may grow, the split stays.

    Raises:
        UserError: a file cannot be read, or a row has no prompt.
    """
    train: list[dict[str, Any]] = []
    heldout: list[dict[str, Any]] = []
    for path in paths:
        for number, row in enumerate(read_jsonl(Path(path)), 1):
            try:
                prompt_messages(row)
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from error
            (heldout if is_held_out(row, heldout_share) else train).append(row)
    return train, heldout


def checkable_prompts(instructions: Path, rewards: Iterable[str]) -> Split:
    """Return the prompts of an instructions folder whose answers the named rewards can check.

    The split is the folder's own. Each row names its reward, so that several kinds go together.
    """
    asked = set(rewards)
    found: list[list[dict[str, Any]]] = []
    for name in (TRAIN, HELDOUT):
        rows: dict[str, Any] = {}
        for row in read_jsonl(instructions / name):
            reward = CHECKED.get(str(row.get("kind")))
            if reward not in asked or (reward == "poem_form" and not row.get("form")):
                continue
            prompt = list(row["messages"])
            while prompt and prompt[-1]["role"] == "assistant":
                prompt.pop()
            if prompt:
                kept = {key: row[key] for key in ("form", "subject", "tools") if key in row}
                rows[str(prompt)] = kept | {"prompt": prompt, "rewards": [reward]}
        found.append(list(rows.values()))
    # What is asked in both is held out.
    judged = {str(row["prompt"]) for row in found[1]}
    return [row for row in found[0] if str(row["prompt"]) not in judged], found[1]


def asked_prompts(instructions: Path) -> Split:
    """Return every prompt of an instructions folder: a conversation up to its last answer.

    The split is the folder's own.
    """
    train, heldout = (
        [
            {**row, "prompt": row["messages"][:-1]}
            for row in read_jsonl(instructions / name)
            if len(row["messages"]) > 1 and row["messages"][-1]["role"] == "assistant"
        ]
        for name in (TRAIN, HELDOUT)
    )
    return train, heldout


def with_room(
    rows: Sequence[Row],
    roller: Roller,
    room: int,
    what: str,
    environment: Callable[[], Environment] | None = None,
) -> list[Row]:
    """Return the prompts that leave room for an answer; say how many do not.

    Args:
        rows: prompts.
        roller: encodes them.
        room: tokens of prompt and answer together.
        what: the rows' name, for the message.
        environment: begins the episodes, see `Roller.roll`.

    Raises:
        UserError: none does.
    """
    lengths = [len(ids) for ids in roller.encode(rows, environment)]
    kept = [row for row, n in zip(rows, lengths, strict=True) if n + MIN_ANSWER_TOKENS <= room]
    if rows and not kept:
        raise UserError(
            f"{what}: no prompt leaves room for an answer in {room} tokens (the shortest has "
            f"{min(lengths)}); raise --max_seq_len"
        )
    if len(kept) < len(rows):
        say(
            f"{what}: {len(rows) - len(kept)} of {len(rows)} prompts leave no room for an answer "
            f"in {room} tokens and are skipped"
        )
    return kept
