"""What a model is asked where it learns from its own answers.

A row is {"prompt": text or messages, ...}, with `tools` where the model has some, and whatever else
a reward reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cygnet.corpus.pipeline import HELDOUT, TRAIN
from cygnet.errors import UserError
from cygnet.files import open_bytes, read_jsonl
from cygnet.messages import validate
from cygnet.stages.rollout import prompt_messages

Row = dict[str, Any]
HELDOUT_SHARE = 0.05


def read_prompts(paths: Iterable[Path]) -> list[Row]:
    """Read rows from JSON lines; each prompt becomes messages.

    Raises:
        UserError: a file cannot be read, or a row is no JSON or has no prompt; names file and line.
    """
    return [row for path in paths for row in _read(path)]


def _read(path: Path) -> list[Row]:
    try:
        with open_bytes(path) as file:
            lines = file.readlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            messages = prompt_messages(row)
            validate(messages)
        except (ValueError, AttributeError, TypeError, UserError) as error:
            raise UserError(f"{path}:{number}: no prompt ({error})") from error
        rows.append({**row, "prompt": messages})
    return rows


def split_prompts(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return rows to train on and held-out ones; which is which hangs on the prompt alone.

    Raises:
        UserError: there are fewer than two prompts.
    """
    keys = [hashlib.sha256(repr(row["prompt"]).encode()).digest() for row in rows]
    distinct = sorted(set(keys))
    if len(distinct) < 2:
        raise UserError("prompts: at least two are needed, one of them to be held out")
    held = set(distinct[: max(round(HELDOUT_SHARE * len(distinct)), 1)])
    both: tuple[list[Row], list[Row]] = ([], [])
    for row, key in zip(rows, keys, strict=True):
        both[key in held].append(row)
    return both


def prompts_of(instructions: Path) -> tuple[list[Row], list[Row]]:
    """Return what is asked in an instructions folder, to train on and held out.

    A conversation is asked up to its last answer.

    Args:
        instructions: what `build_instructions` wrote.
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
