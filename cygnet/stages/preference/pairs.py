"""Preference pairs from real text and from the model's own answers.

Poems: the model answers a request several times. An answer that breaks the form asked for is
rejected: against an answer of its own that keeps the form where there is one (what differs is then
little but the form), against the real poem else. Recipes: the real one is chosen over the same
with its steps shuffled, a part missing, or the ingredients of another. A person's own texts: the
real continuation is chosen over one that the model wrote. By choice real poems are chosen over the
same with a character or a couplet too few or too many, which costs no answers.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.corpus.small_talk import KIND as SMALL_TALK
from cygnet.errors import UserError
from cygnet.files import JsonlWriter, folder_atomic, read_jsonl, write_json
from cygnet.generate.generator import Generator
from cygnet.generate.sampling import Sampling
from cygnet.messages import validate
from cygnet.progress import say
from cygnet.stages.given_rows import numbered_rows
from cygnet.text.chat import encode_chat
from cygnet.text.forms import is_poem_of_form
from cygnet.text.tokenizer import Tokenizer

Row = dict[str, Any]
OWN_HELDOUT_SHARE = 0.05
_STEPS = re.compile(r"(?m)^(## Steps\n)((?:\d+\. .*\n?)+)")
_INGREDIENTS = re.compile(r"(?m)^(## Ingredients\n)((?:- .*\n?)+)")


class NoPairsError(UserError):
    """The instructions give no preference pair to train on."""


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """How many pairs are made, and how the model is sampled for them.

    Raises:
        UserError: a number is out of its range.
    """

    num_poem_prompts: int = 200
    """Requests for poems that are answered, for training."""
    samples_per_prompt: int = 3
    """Answers to each."""
    num_recipe_pairs: int = 150
    """Pairs of recipes to train on."""
    num_spoilt_poems: int = 0
    """Pairs to train on of a real poem and the same with a character or a couplet too few or too
    many."""
    num_own_prompts: int = 150
    """Requests to continue a person's own text that are answered, for training."""
    heldout_share: float = 0.25
    """Held-out pairs are made from so many times the prompts of training."""
    temperature: float = 0.8
    """Of the answers."""
    max_new_tokens: int = 160
    """Longest answer."""
    seed: int = 0
    """Of the answers and of what is shuffled."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise UserError(f"pairs.{field.name}: must not be below zero")
        if self.samples_per_prompt < 1 or self.max_new_tokens < 1:
            raise UserError("pairs: samples_per_prompt and max_new_tokens must be above zero")


def build_pairs(
    instructions: Path, generator: Generator, out: Path, config: PairConfig, max_seq_len: int
) -> dict[str, dict[str, int]]:
    """Write `train.jsonl.zst`, `heldout.jsonl.zst` and a manifest to the folder `out`.

    A row is {"prompt": messages, "chosen", "rejected", "kind", "why"}, and `source` where that of
    the instruction is known. Held-out pairs come from held-out instructions. Returns how many pairs
    of each kind there are in each file.

    Args:
        instructions: as `build_instructions` writes them.
        generator: the model that answers.
        out: replaced if it is there.
        config: how many pairs.
        max_seq_len: positions in a row, which holds both answers of a pair; the model is not asked
            what cannot lead to a pair that fits.

    Raises:
        NoPairsError: no pair could be made for training, or none that fits.
    """
    counts = {}
    with folder_atomic(out) as folder:
        for name, share in ((TRAIN, 1.0), (HELDOUT, config.heldout_share)):
            room = _Room(generator.tokenizer, max_seq_len, config.max_new_tokens)
            rows = list(read_jsonl(instructions / name))
            pairs = [
                *_sampled_pairs(rows, generator, config, share, room),
                *_recipes(rows, config, share, room),
                *_spoilt_poems(rows, config, share, room),
            ]
            pairs.sort(key=lambda pair: _hash(config.seed, pair))
            counts[name] = dict(Counter(pair["why"] for pair in pairs))
            if name == TRAIN and not pairs:
                raise NoPairsError(f"{instructions}: {room.why_no_pair()}")
            with JsonlWriter(folder / name) as writer:
                for pair in pairs:
                    writer.write(pair)
        write_json(folder / "manifest.json", {"counts": counts})
    told = "; ".join(f"{count} {why}" for why, count in sorted(counts[TRAIN].items()))
    say(f"pairs: {sum(counts[TRAIN].values())} to train on ({told})")
    return counts


def take_pairs(paths: Sequence[str], out: Path, labelled: bool = False) -> Path:
    """Check a person's own pairs, hold some out by a hash of the prompt, and write them to `out`.

    Args:
        paths: JSON lines {"prompt": text or messages, "chosen": text, "rejected": text}.
        out: replaced if it is there; left as it is when a pair is damaged.
        labelled: whether {"prompt", "answer", "label": true or false} are taken as well.

    Raises:
        UserError: a file cannot be read, a row is no pair (names file and line), or all pairs
            have one prompt, so that none can be held out.
    """
    rows = [
        row | {"source": f"{Path(path).name}:{line}"}
        for path in paths
        for line, row in _numbered_pairs(Path(path), labelled)
    ]
    keys = sorted({_hash(row["prompt"]) for row in rows})
    if len(keys) < 2:
        raise UserError(f"{', '.join(paths)}: pairs of at least two prompts are needed")
    held = set(keys[: max(round(OWN_HELDOUT_SHARE * len(keys)), 1)])
    with folder_atomic(out) as folder:
        for name, is_held in ((TRAIN, False), (HELDOUT, True)):
            with JsonlWriter(folder / name) as writer:
                for row in rows:
                    if (_hash(row["prompt"]) in held) == is_held:
                        writer.write(row)
    return out


def read_pairs(path: Path, labelled: bool = False) -> list[Row]:
    """Read pairs and check them; a prompt that is text becomes one user message.

    Args:
        path: JSON lines.
        labelled: whether {"prompt", "answer", "label": true or false} are taken as well.

    Raises:
        UserError: the file cannot be read, a line is no JSON, a row lacks `prompt`, `chosen` or
            `rejected`, or its prompt is no conversation; names file and line.
    """
    return [row for _, row in _numbered_pairs(path, labelled)]


def _numbered_pairs(path: Path, labelled: bool = False) -> list[tuple[int, Row]]:
    return [
        (number, checked_pair(row, f"{path}:{number}", labelled))
        for number, row in numbered_rows(path)
    ]


def checked_pair(row: Any, where: str, labelled: bool = False) -> Row:
    """Return a row whose prompt is messages, and that has all it must have.

    Raises:
        UserError: it lacks something; begins with `where`.
    """
    has_label = isinstance(row, dict) and ("label" in row or "answer" in row)
    sides = ("answer",) if has_label and labelled else ("chosen", "rejected")
    for name in ("prompt", *sides):
        value = row.get(name) if isinstance(row, dict) else None
        if not value or (isinstance(value, str) and not value.strip()):
            hint = " (rows of an answer and its label are for --loss kto)" if has_label else ""
            raise UserError(f"{where}: `{name}` is missing or empty{'' if labelled else hint}")
    if sides == ("answer",) and not isinstance(row.get("label"), bool):
        raise UserError(
            f"{where}: `label` is {json.dumps(row.get('label'))}; it must be true where the answer "
            "is wanted, and false where it is not"
        )
    if isinstance(row["prompt"], str):
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    for name in sides:
        try:
            validate([*row["prompt"], {"role": "assistant", "content": row[name]}])
        except (UserError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: `{name}`: {error}") from error
    return row


class _Room:
    """Whether a pair of an instruction can fit a row, and what those that cannot would need."""

    def __init__(self, tokenizer: Tokenizer, seq_len: int, answer_tokens: int) -> None:
        self.tokenizer, self.seq_len, self.answer_tokens = tokenizer, seq_len, answer_tokens
        self.shortest: int | None = None

    def first(self, rows: Sequence[Row], count: int) -> list[Row]:
        """Return the first `count` rows of which a pair can fit."""
        return list(islice((row for row in rows if self._can_hold(row)), count))

    def _can_hold(self, row: Row) -> bool:
        prompt = encode_chat(self.tokenizer, row["messages"][:-1], add_generation_prompt=True).ids
        # The chosen answer with its prompt, and the prompt again with the least of answers.
        needed = len(encode_chat(self.tokenizer, row["messages"]).ids) + len(prompt)
        if needed <= self.seq_len:
            return True
        # What is certain to hold the longest answer too.
        needed += self.answer_tokens
        self.shortest = min(needed, self.shortest or needed)
        return False

    def why_no_pair(self) -> str:
        """Say what to do where there is no pair at all."""
        if self.shortest is not None:
            return (
                f"no preference pair fits max_seq_len {self.seq_len}, where both answers stand in "
                f"one row; give --max_seq_len {self.shortest} or more"
            )
        return (
            "no preference pair could be made from these instructions; raise "
            "pairs.num_poem_prompts, pairs.num_recipe_pairs, pairs.num_spoilt_poems or "
            "pairs.num_own_prompts"
        )


def _sampled_pairs(
    rows: Sequence[Row], generator: Generator, config: PairConfig, share: float, room: _Room
) -> Iterator[Row]:
    """Let the model answer, and judge."""
    answered = [row for row in rows if _ends_with_answer(row["messages"])]
    poems = [row for row in answered if "form" in row]
    asked = room.first(poems, round(config.num_poem_prompts * share))
    own = [row for row in answered if row["kind"] in ("continuation", "chat")]
    if not asked:
        own = own or [row for row in answered if row["kind"] != SMALL_TALK]
    asked += room.first(own, round(config.num_own_prompts * share))
    prompts = [
        encode_chat(generator.tokenizer, row["messages"][:-1], add_generation_prompt=True).ids
        for row in asked
    ]
    asked = [row for row, ids in zip(asked, prompts, strict=True) if len(ids) < generator.context]
    prompts = [ids for ids in prompts if len(ids) < generator.context]
    if not asked:
        return
    repeated = [ids for ids in prompts for _ in range(config.samples_per_prompt)]
    sampling = Sampling(
        temperature=config.temperature,
        top_p=1.0,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
    )
    answers = generator.generate(repeated, sampling, title="answers")
    texts = [generator.tokenizer.decode(ids, skip_special=True).strip() for ids in answers]
    for number, row in enumerate(asked):
        first = number * config.samples_per_prompt
        given = texts[first : first + config.samples_per_prompt]
        judge = _poem_pairs if "form" in row else _own_pairs
        yield from judge(row, [text for text in given if text])


def _ends_with_answer(messages: Sequence[Row]) -> bool:
    last = messages[-1]
    return last["role"] == "assistant" and bool((last.get("content") or "").strip())


def _poem_pairs(row: Row, answers: Sequence[str]) -> Iterator[Row]:
    keeps = [text for text in answers if is_poem_of_form(text, row["form"])]
    breaks = [text for text in answers if text not in keeps]
    for number, broken in enumerate(breaks):
        if keeps:
            chosen = keeps[number % len(keeps)]
            yield _pair(row, chosen, broken, "own poem that keeps the form over one that does not")
        else:
            real = row["messages"][-1]["content"]
            yield _pair(row, real, broken, "real poem over one that breaks the form")


def _own_pairs(row: Row, answers: Sequence[str]) -> Iterator[Row]:
    real = row["messages"][-1]["content"]
    for answer in answers[:1]:
        if answer != real:
            yield _pair(row, real, answer, "real answer over the model's own")


def _spoilt_poems(
    rows: Sequence[Row], config: PairConfig, share: float, room: _Room
) -> Iterator[Row]:
    poems = [row for row in rows if "form" in row and _ends_with_answer(row["messages"])]
    for row in room.first(poems, round(config.num_spoilt_poems * share)):
        real = row["messages"][-1]["content"]
        chooser = random.Random(_hash(config.seed, row["messages"]))
        wrong, way = chooser.choice(list(_SPOILT.items()))
        spoilt = way(real, chooser)
        if spoilt and not is_poem_of_form(spoilt, row["form"]):
            yield _pair(row, real, spoilt, f"real poem over the same with {wrong}")


def _one_character(text: str, chooser: random.Random, times: int) -> str:
    """Return a text in which one of its characters stands so many times."""
    at = chooser.choice([place for place, sign in enumerate(text) if sign.isalpha()])
    return text[:at] + text[at] * times + text[at + 1 :]


_SPOILT: dict[str, Callable[[str, random.Random], str]] = {
    "a character too few": lambda text, chooser: _one_character(text, chooser, 0),
    "a character too many": lambda text, chooser: _one_character(text, chooser, 2),
    "a couplet too few": lambda text, _: text.rpartition("\n")[0],
    "a couplet too many": lambda text, _: f"{text}\n{text.splitlines()[0]}",
}


def _recipes(rows: Sequence[Row], config: PairConfig, share: float, room: _Room) -> Iterator[Row]:
    recipes = [row for row in rows if row["kind"] == "recipe"]
    for row in room.first(recipes, round(config.num_recipe_pairs * share)):
        real = row["messages"][-1]["content"]
        other = recipes[(recipes.index(row) + 1) % len(recipes)]["messages"][-1]["content"]
        chooser = random.Random(_hash(config.seed, row["subject"]))
        ways = (_shuffle_steps, _drop_part, _swap_ingredients)
        for way in chooser.sample(ways, len(ways)):
            spoilt, why = way(real, other, chooser)
            if spoilt != real:
                yield _pair(row, real, spoilt, f"recipe over the same with {why}")
                break


def _shuffle_steps(text: str, other: str, chooser: random.Random) -> tuple[str, str]:
    def shuffled(match: re.Match[str]) -> str:
        steps = [line.partition(". ")[2] for line in match[2].splitlines()]
        order = list(steps)
        while len(set(steps)) > 1 and order == steps:
            chooser.shuffle(order)
        return match[1] + "\n".join(f"{i}. {step}" for i, step in enumerate(order, start=1))

    return _STEPS.sub(shuffled, text, count=1), "its steps shuffled"


def _drop_part(text: str, other: str, chooser: random.Random) -> tuple[str, str]:
    part = chooser.choice((_STEPS, _INGREDIENTS))
    return part.sub("", text, count=1).strip(), "a part missing"


def _swap_ingredients(text: str, other: str, chooser: random.Random) -> tuple[str, str]:
    found = _INGREDIENTS.search(other)
    if found is None:
        return text, ""
    swapped = _INGREDIENTS.sub(lambda match: match[1] + found[2], text, count=1)
    return swapped, "the ingredients of another"


def _pair(row: Row, chosen: str, rejected: str, why: str) -> Row:
    kept: Row = {name: row[name] for name in ("form", "source") if name in row}
    return {
        "prompt": row["messages"][:-1],
        "chosen": chosen,
        "rejected": rejected,
        "kind": row["kind"],
        "why": why,
        **kept,
    }


def _hash(*key: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big")
