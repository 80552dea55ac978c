"""From raw files to parts: documents read, repaired and measured, each part by a process alone.

A part is made of a few files, or of a slice of one, and named by a hash of all that it depends on:
so a run that was killed goes on where it was, a changed threshold reads nothing again, and a new
file is read alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cygnet.corpus import builtin
from cygnet.corpus.clean.normalize import normalize
from cygnet.corpus.clean.privacy import mask
from cygnet.corpus.clean.rules import SET_OF_KIND
from cygnet.corpus.clean.web import web_lines
from cygnet.corpus.document import Document, document_id
from cygnet.corpus.part_writer import PartWriter, Row
from cygnet.corpus.read.find import InputFile
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import read_file, transcript
from cygnet.corpus.settings import DataConfig
from cygnet.files import digest_of, write_json

PLAN = "plan.json"
READ_FIELDS = (
    "max_chars", "text_field", "strict", "chinese", "languages", "privacy", "private", "seed",
)  # fmt: skip
"""The settings that a part depends on; all others bear on what is decided afterwards."""


@dataclass(frozen=True, slots=True)
class Task:
    """A part to be made."""

    key: str
    files: tuple[InputFile, ...]


def read_plan(folder: Path) -> tuple[DataConfig, list[Task]]:
    """Return the settings and the tasks that `write_plan` left in a work folder."""
    plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in plan["settings"].items()
    }
    tasks = [
        Task(task["key"], tuple(_file_from(file) for file in task["files"]))
        for task in plan["tasks"]
    ]
    return DataConfig(**settings), tasks


def write_plan(folder: Path, config: DataConfig, tasks: Sequence[Task]) -> None:
    """Say in a work folder what is to be done, for processes that share nothing else."""
    write_json(
        folder / PLAN,
        {
            "settings": dataclasses.asdict(config),
            "tasks": [
                {"key": task.key, "files": [_file_to(file) for file in task.files]}
                for task in tasks
            ],
        },
    )


def _file_to(file: InputFile) -> dict[str, Any]:
    return dataclasses.asdict(file) | {"path": os.fspath(file.path)}


def _file_from(value: dict[str, Any]) -> InputFile:
    return InputFile(**(value | {"path": Path(value["path"])}))


def make_part(folder: Path, number: int) -> None:
    """Make the part of a plan's task, unless it is there."""
    config, tasks = read_plan(folder)
    task = tasks[number]
    if not (folder / f"{task.key}.arrow").exists():
        problems = Problems(strict=config.strict)
        PartWriter(folder, task.key, config).write(_read(task, config, problems), problems)


def _read(task: Task, config: DataConfig, problems: Problems) -> Iterator[Row]:
    for file in task.files:
        of_web = rule_set(file.kind, file.rules, config) == "web"
        if file.kind == "builtin":
            documents = builtin.documents_of(file.path)
        else:
            documents = read_file(
                file,
                problems,
                max_chars=config.max_chars,
                text_field=file.text_field or config.text_field,
            )
        for document in documents:
            document, private = cleaned(document, config, of_web)
            times = copies(file, document.id)
            yield Row(document, private, file.kind, of_web, file.rules, times)


def copies(file: InputFile, document: str) -> int:
    """Return how often a document is seen in an epoch, by its id: 1.5 times is once or twice."""
    times = file.weight * file.epochs
    return int(times) + (int(document, 16) / 16**16 < times % 1)


def rule_set(kind: str, wanted: str, config: DataConfig) -> str:
    """Return the rules that a file of a kind is held to; `wanted` is what its source asks for."""
    wanted = wanted or config.rules
    return SET_OF_KIND.get(kind, "basic") if wanted == "auto" else wanted


def cleaned(document: Document, config: DataConfig, of_web: bool) -> tuple[Document, int]:
    """Return a document normalised and, where asked for, masked, and its private data's number.

    Args:
        document: as it was read.
        config: what is to be done.
        of_web: take lines that web pages alone have out.
    """
    num_private = 0

    def clean(text: str) -> str:
        nonlocal num_private
        text = normalize(text, config.chinese)
        if of_web:
            text = web_lines(text)
        if config.privacy == "keep":
            return text
        masked, found = mask(text, _kinds(config.private))
        num_private += sum(found.values())
        return masked if config.privacy == "mask" else text

    messages = document.messages
    if messages is not None:
        messages = [
            {**message, "content": clean(message["content"])}
            if isinstance(message.get("content"), str)
            else message
            for message in messages
        ]
        text = transcript(messages)
    else:
        text = clean(document.text)
    if text == document.text and messages == document.messages:
        return document, num_private
    changed = dataclasses.replace(document, id=document_id(text), text=text, messages=messages)
    return changed, num_private


@lru_cache(maxsize=8)
def _kinds(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(names)


def task_key(files: Sequence[tuple[InputFile, str]], config: DataConfig, version: str) -> str:
    """Return the name of the part of some files with their hashes, read with some settings."""
    settings = {name: getattr(config, name) for name in READ_FIELDS}
    inputs = [
        [_file_to(file), digest, rule_set(file.kind, file.rules, config) == "web"]
        for file, digest in files
    ]
    return digest_of([version, settings, inputs])[:24]
