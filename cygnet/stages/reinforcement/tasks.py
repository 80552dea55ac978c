"""Task sets made by rule, whose answers can be checked: to try reinforcement learning on.

A set is a folder of three files: `sft.jsonl` (conversations that show the format, few of them),
`prompts.jsonl` (what is asked in reinforcement learning) and `heldout.jsonl` (prompts whose numbers
or words occur in neither). A prompt row is {"prompt", "kind", "answer", ...}: what the built-in
rewards read.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from cygnet.config import plain
from cygnet.corpus.builtin import builtin_rows
from cygnet.corpus.numbers import in_chinese, in_words
from cygnet.errors import UserError
from cygnet.files import JsonlWriter, folder_atomic, read_json, sha256_text, write_json
from cygnet.progress import say
from cygnet.stages.reinforcement.environments.signature import tool_schema
from cygnet.stages.reinforcement.environments.tools import calculator, unit_converter

Row = dict[str, Any]
Task = Literal["arithmetic", "spelling", "json", "tools"]
REWARD_OF: dict[Task, str] = {
    "arithmetic": "arithmetic", "spelling": "spelling", "json": "json_schema", "tools": "tool_use",
}  # fmt: skip
"""The built-in reward that checks each."""
HELDOUT_SHARE = 10
"""Of so many keys (pairs of numbers, words, names), one is held out."""

_WORD = re.compile(r"[a-z]{4,8}")
_NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jack", "Karen",
    "Leo", "Mary", "Nora", "Oscar", "Paula",
)  # fmt: skip
_CITIES = (
    "Paris", "London", "Berlin", "Rome", "Madrid", "Vienna", "Tokyo", "Oslo", "Cairo", "Delhi",
    "Lima", "Seoul",
)  # fmt: skip
_JOBS = (
    "baker", "teacher", "farmer", "doctor", "painter", "driver", "writer", "singer", "pilot",
    "cook",
)  # fmt: skip
_CONVERSIONS = (
    ("km", "m"), ("m", "cm"), ("kg", "g"), ("hours", "minutes"), ("minutes", "seconds"),
    ("days", "hours"), ("weeks", "days"), ("l", "ml"), ("miles", "km"), ("cups", "ml"),
    ("pounds", "kg"), ("feet", "cm"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What set is made.

    Raises:
        UserError: a number is out of its range.
    """

    task: Task = "arithmetic"
    """arithmetic: two-digit addition in digits, English and Chinese words; spelling: letters of a
    word; json: fields of a sentence as JSON; tools: questions for the calculator and the unit
    converter."""
    num_sft: int = 300
    """Conversations that show how it is done."""
    num_prompts: int = 2000
    """Prompts for reinforcement learning."""
    num_heldout: int = 300
    """Prompts to measure with."""
    two_calls: float = 0.2
    """Of the tools set: share of questions that need two calls, one after the other."""
    seed: int = 0
    """Another seed makes another set; what is held out stays held out."""

    def __post_init__(self) -> None:
        if self.task not in get_args(Task):
            raise UserError(f"task {self.task!r}: there are {', '.join(get_args(Task))}")
        if min(self.num_sft, self.num_prompts, self.num_heldout) < 1:
            raise UserError("tasks: num_sft, num_prompts and num_heldout must be at least 1")
        if not 0 <= self.two_calls <= 1:
            raise UserError(f"tasks: two_calls is {self.two_calls}: a share from 0 to 1")


def build_tasks(out: Path, config: TaskConfig) -> Path:
    """Write a task set to the folder `out`; the same set that is there already is replaced.

    The same settings give the same files.

    Raises:
        UserError: the folder holds something else.
    """
    made = {"made_by": "cygnet tasks", "settings": plain(config)}
    found = read_json(out / "manifest.json")
    is_free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not is_free and any(found.get(name) != value for name, value in made.items()):
        raise UserError(f"{out}: holds something else than this task set; choose another --out")
    counts = {"sft": config.num_sft, "prompts": config.num_prompts, "heldout": config.num_heldout}
    with folder_atomic(out) as folder:
        for name, count in counts.items():
            rows = islice(_rows(config, name), count)
            with JsonlWriter(folder / f"{name}.jsonl") as writer:
                for row, turns in rows:
                    writer.write(_conversation(row, turns) if name == "sft" else row)
        write_json(folder / "manifest.json", {**made, "counts": counts})
    say(
        f"{config.task}: {', '.join(f'{count:,} {name}' for name, count in counts.items())} ({out})"
    )
    return out


def _rows(config: TaskConfig, part: str) -> Iterator[tuple[Row, list[Row]]]:
    """Yield prompt rows of a part, each with the turns that answer it, without an end."""
    makers: dict[Task, Callable[[random.Random], tuple[str, Row, list[Row]]]] = {
        "arithmetic": _arithmetic,
        "spelling": _spelling,
        "json": _json,
        "tools": lambda rng: _tools(rng, config.two_calls),
    }
    make = makers[config.task]
    rng = random.Random(f"{config.seed}:{config.task}:{part}")
    while True:
        key, row, turns = make(rng)
        if _is_heldout(config.task, key) == (part == "heldout"):
            yield row, turns


def _is_heldout(task: str, key: str) -> bool:
    return int(sha256_text(f"{task}\0{key}")[:16], 16) % HELDOUT_SHARE == 0


def _conversation(row: Row, turns: list[Row]) -> Row:
    messages = [{"role": "user", "content": row["prompt"]}, *turns]
    tools = {"tools": row["tools"]} if "tools" in row else {}
    return {"messages": messages, "kind": row["kind"], **tools}


def _said(content: str) -> Row:
    return {"role": "assistant", "content": content}


def _arithmetic(rng: random.Random) -> tuple[str, Row, list[Row]]:
    """Make an addition; the answer writes it in digits, adds ones and tens, and says the sum.

    Small models add digit by digit and not at one glance: what an answer needs next always stands
    a few tokens before.
    """
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    script = rng.choice(("digits", "words", "chinese"))
    question, spelt = {
        "digits": (f"What is {a} plus {b}?", ""),
        "words": (f"What is {in_words(a)} plus {in_words(b)}?", f", {in_words(a + b)}"),
        "chinese": (f"{in_chinese(a)}加{in_chinese(b)}等于多少？", f"，{in_chinese(a + b)}"),
    }[script]
    ones = a % 10 + b % 10
    carry = ones // 10
    working = f"{a % 10}+{b % 10}={ones}, {a // 10}+{b // 10}+{carry}={a // 10 + b // 10 + carry}"
    row = {
        "prompt": question,
        "kind": f"arithmetic in {script}",
        "answer": a + b,
        "script": script,
    }
    return f"{min(a, b)}+{max(a, b)}", row, [_said(f"{a}+{b}: {working}: {a + b}{spelt}")]


def _spelling(rng: random.Random) -> tuple[str, Row, list[Row]]:
    """Ask for the letters of a word, or how often one of them occurs."""
    word = rng.choice(_words())
    spelt = "-".join(word)
    row: Row = {"word": word}
    if rng.random() < 0.5:
        row |= {"prompt": f"Spell {word}.", "kind": "spelling", "answer": spelt}
        return word, row, [_said(spelt)]
    letter = rng.choice(word)
    count = word.count(letter)
    question = f"How often does the letter {letter} occur in {word}?"
    row |= {"prompt": question, "kind": "counting", "answer": count}
    return word, row, [_said(f"{spelt}: {count}")]


def _json(rng: random.Random) -> tuple[str, Row, list[Row]]:
    """Ask for the fields of a sentence as JSON of a schema."""
    name, city, age = rng.choice(_NAMES), rng.choice(_CITIES), rng.randint(18, 80)
    values: Row = {"name": name, "age": age, "city": city}
    sentence = f"{name}, aged {age}, lives in {city}"
    if rng.random() < 0.5:
        values["job"] = rng.choice(_JOBS)
        sentence += f" and is a {values['job']}"
    kinds = {field: "integer" if field == "age" else "string" for field in values}
    row = {
        "prompt": f"Give the fields {', '.join(values)} as JSON: {sentence}.",
        "kind": "json",
        "schema": {
            "type": "object",
            "properties": {field: {"type": kind} for field, kind in kinds.items()},
            "required": list(values),
            "additionalProperties": False,
        },
        "answer": values,
    }
    return f"{name} {city} {age}", row, [_said(json.dumps(values))]


def _tools(rng: random.Random, two_calls: float) -> tuple[str, Row, list[Row]]:
    """Ask for a product, a conversion, or a conversion and then a sum."""
    if rng.random() < two_calls:
        return _time_in_all(rng)
    return _product(rng) if rng.random() < 0.5 else _conversion(rng)


def _product(rng: random.Random) -> tuple[str, Row, list[Row]]:
    a, b = rng.randint(12, 99), rng.randint(12, 99)
    expression = f"{a}*{b}"
    result = calculator(expression)
    row = _tool_row(f"What is {a} times {b}?", "product", ("calculator",), result)
    turns = [*_called("calculator", {"expression": expression}, result), _said(f"{result}")]
    return f"{min(a, b)}*{max(a, b)}", row, turns


def _conversion(rng: random.Random) -> tuple[str, Row, list[Row]]:
    value = rng.randint(2, 99)
    source, target = rng.choice(_CONVERSIONS)
    result = unit_converter(value, source, target)
    row = _tool_row(
        f"How many {target} are {value} {source}?", "conversion", ("unit_converter",), result
    )
    arguments = {"value": value, "from_unit": source, "to_unit": target}
    turns = [*_called("unit_converter", arguments, result), _said(f"{result} {target}")]
    return f"{value} {source} {target}", row, turns


def _time_in_all(rng: random.Random) -> tuple[str, Row, list[Row]]:
    large, small = rng.choice((("hours", "minutes"), ("minutes", "seconds"), ("days", "hours")))
    value, more = rng.randint(2, 40), rng.randint(2, 59)
    converted = unit_converter(value, large, small)
    expression = f"{converted}+{more}"
    result = calculator(expression)
    row = _tool_row(
        f"How many {small} are {value} {large} and {more} {small}?",
        "conversion and sum",
        ("calculator", "unit_converter"),
        result,
    )
    arguments = {"value": value, "from_unit": large, "to_unit": small}
    turns = [
        *_called("unit_converter", arguments, converted),
        *_called("calculator", {"expression": expression}, result),
        _said(f"{result} {small}"),
    ]
    return f"{value} {large} {more}", row, turns


def _tool_row(question: str, kind: str, tools: tuple[str, ...], result: str) -> Row:
    return {
        "prompt": question,
        "kind": kind,
        "tools": [_schema(name) for name in tools],
        "answer": int(result) if result.lstrip("-").isdigit() else result,
    }


@lru_cache(maxsize=8)
def _schema(name: str) -> dict[str, Any]:
    return tool_schema(f"cygnet.stages.reinforcement.environments.tools:{name}")


def _called(name: str, arguments: Row, result: str) -> list[Row]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": name, "content": result},
    ]


@lru_cache(maxsize=1)
def _words() -> list[str]:
    """Return the lower-case words of the recipes' steps that occur at least 20 times, in order."""
    counts: dict[str, int] = {}
    for row in builtin_rows("recipes_en"):
        for step in row["steps"]:
            for word in re.findall(r"\b[a-z]+\b", step):
                counts[word] = counts.get(word, 0) + 1
    return sorted(word for word, count in counts.items() if count >= 20 and _WORD.fullmatch(word))
