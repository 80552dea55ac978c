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
from pathlib import Path, PurePath
from typing import Any

from cygnet.corpus import builtin
from cygnet.corpus.clean.rules import SET_OF_KIND
from cygnet.corpus.cleaning import Cleaner
from cygnet.corpus.part_writer import PartWriter, Row, is_whole
from cygnet.corpus.read.find import InputFile
from cygnet.corpus.read.kinds import ARCHIVES, kind_of
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import read_file
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
    return _plan(folder / PLAN, (folder / PLAN).stat().st_mtime_ns)


@lru_cache(maxsize=1)  # a worker has many tasks of one plan
def _plan(path: Path, _: int) -> tuple[DataConfig, list[Task]]:
    plan = json.loads(path.read_text(encoding="utf-8"))
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
    if not is_whole(folder, task.key):
        problems = Problems(strict=config.strict)
        PartWriter(folder, task.key, config).write(_read(task, config, problems), problems)


def _read(task: Task, config: DataConfig, problems: Problems) -> Iterator[Row]:
    for file in task.files:
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
            kind = member_kind(document.source, file) if file.kind in ARCHIVES else file.kind
            of_web = rule_set(kind, file.rules, config) == "web"
            cleaner = Cleaner(config, of_web)
            document = cleaner.document(document)
            times = copies(file, document.id)
            yield Row(document, cleaner.private, kind, of_web, file.rules, times)


def copies(file: InputFile, document: str) -> int:
    """Return how often a document is seen in an epoch, by its id: 1.5 times is once or twice."""
    times = file.weight * file.epochs
    return int(times) + (int(document, 16) / 16**16 < times % 1)


def member_kind(source: str, file: InputFile) -> str:
    """Return how a member of an archive was read, by its name in a document's source."""
    name = source.rpartition("!")[2]
    while name:
        if kind := kind_of(PurePath(name)):
            return kind
        name = name.rpartition(":")[0]  # what tells the place in the member
    return file.kind


def rule_set(kind: str, wanted: str, config: DataConfig) -> str:
    """Return the rules that a file of a kind is held to; `wanted` is what its source asks for."""
    wanted = wanted or config.rules
    return SET_OF_KIND.get(kind, "basic") if wanted == "auto" else wanted


def task_key(files: Sequence[tuple[InputFile, str]], config: DataConfig, version: str) -> str:
    """Return the name of the part of some files with their hashes, read with some settings."""
    settings = {name: getattr(config, name) for name in READ_FIELDS}
    inputs = []
    for file, digest in files:
        # Where it lies does not count, but how it was named: problems tell of it so.
        described = _file_to(file) | {"path": ""}
        is_web = rule_set(file.kind, file.rules, config) == "web"
        inputs.append([described, digest, config.rules if file.kind in ARCHIVES else is_web])
    return digest_of([version, settings, inputs])[:24]
