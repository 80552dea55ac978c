"""Prompts for the stages that let the model answer: JSON lines, or what instructions ask.

A row is {"prompt": text or messages, "tools"?, ...whatever the rewards read}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.errors import UserError
from cygnet.files import digest_of
from cygnet.messages import parse_messages, parse_tools, validate
from cygnet.progress import say
from cygnet.stages.given_rows import numbered_rows
from cygnet.stages.reinforcement.groups import is_held_out
from cygnet.stages.reinforcement.rewards.builtin import BESIDE
from cygnet.stages.reinforcement.rollout import (
    MIN_ANSWER_TOKENS,
    Environment,
    Roller,
    Row,
    prompt_messages,
)

CHECKED = {"poem": "poem_form", "recipe": "recipe"}
"""The built-in reward that can check an answer to this kind of instruction."""
_CONVERSATION = ("messages", "conversations", "conversation")
Split = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Rows to learn from, and those that are only judged."""


def read_prompts(
    paths: Sequence[str | Path],
    heldout_share: float,
    with_tools: bool = True,
    prompt_alone: bool = False,
) -> Split:
    """Read prompts and hold some out, by a hash of the prompt: a file may grow, the split stays.

    Args:
        paths: JSON lines {"prompt": text or messages, "tools"?, ...}, or conversations, of which
            the last answer is left out. Rows that occur twice are taken once.
        heldout_share: of the prompts.
        with_tools: whether prompts with tools are taken.
        prompt_alone: whether rows of the same prompt are the same whatever else they hold.

    Raises:
        UserError: a file cannot be read, or a row is no prompt; names file and line. There is no
            prompt.
    """
    found = [
        row for path in paths for row in _prompts(Path(path)) if with_tools or not row.get("tools")
    ]
    if paths and not found:
        raise UserError(f"{', '.join(map(str, paths))}: holds no prompt")
    both: Split = ([], [])
    for row in _once(found, prompt_alone):
        both[is_held_out(row, heldout_share)].append(row)
    return both


def checkable_prompts(instructions: Path, rewards: Iterable[str]) -> Split:
    """Return the prompts of an instructions folder whose answers the named rewards can check.

    The split is the folder's own. Each row names its reward, so that several kinds go together;
    `rhyme` goes with the form of a poem.
    """
    asked = set(rewards)
    asked |= {BESIDE[name] for name in asked if name in BESIDE}
    found: list[list[dict[str, Any]]] = []
    for part in asked_prompts(instructions):
        rows = []
        for row in part:
            reward = CHECKED.get(str(row.get("kind")))
            if reward in asked and (reward != "poem_form" or row.get("form")):
                kept = {key: row[key] for key in ("form", "subject", "tools") if key in row}
                rows.append(kept | {"prompt": row["prompt"], "rewards": [reward]})
        found.append(rows)
    return found[0], found[1]


def asked_prompts(instructions: Path, with_tools: bool = True) -> Split:
    """Return every prompt of an instructions folder: a conversation up to its last answer.

    The split is the folder's own; what is asked in both parts is held out, and what is asked twice
    is taken once.

    Args:
        instructions: the folder.
        with_tools: whether prompts with tools are taken.

    Raises:
        UserError: a file cannot be read, or a row is no conversation; names file and line.
    """
    train, heldout = (
        _once(
            (row for row in _prompts(instructions / name) if with_tools or not row.get("tools")),
            prompt_alone=True,
        )
        for name in (TRAIN, HELDOUT)
    )
    judged = {_key(row, prompt_alone=True) for row in heldout}
    return [row for row in train if _key(row, prompt_alone=True) not in judged], heldout


def prompt_of(row: Any) -> dict[str, Any] | None:
    """Return a row as a prompt's: with what it asks as `prompt`, and whatever else it has.

    None for a conversation in which nothing comes before the assistant.

    Raises:
        UserError: it is no prompt and no conversation, or one that no chat template can render.
    """
    if not isinstance(row, dict):
        raise UserError(f'{type(row).__name__} given; an object such as {{"prompt": "..."}} wanted')
    row = dict(row)
    messages = None if "prompt" in row else parse_messages(row)
    if messages is not None:
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if not messages:
            return None
        for name in _CONVERSATION:
            row.pop(name, None)
        row["prompt"] = messages
    tools = parse_tools(row)
    row.pop("tools", None)
    if tools:
        row["tools"] = tools
    try:
        validate(prompt_messages(row), needs_answer=False)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f'"prompt" is neither a text nor a list of messages ({error})') from error
    return row


def _prompts(path: Path) -> Iterator[dict[str, Any]]:
    for number, given in numbered_rows(path):
        try:
            row = prompt_of(given)
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from error
        if row is not None:
            yield row


def _once(rows: Iterable[dict[str, Any]], prompt_alone: bool) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(_key(row, prompt_alone), row)
    return list(found.values())


def _key(row: Row, prompt_alone: bool) -> str:
    asked = {"prompt": prompt_messages(row), "tools": row.get("tools")}
    return digest_of(asked if prompt_alone else {**row, **asked})


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
