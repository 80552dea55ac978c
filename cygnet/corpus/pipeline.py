"""Raw files to a data folder: read, normalise, filter, de-duplicate, split, report.

Three steps, all cores at work in each: `parts.make_part` reads and measures, `decide` says
what becomes of every document, `write_part` writes what stays. What a step leaves in the work
folder beside the data folder is found again by the next run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cygnet.corpus import builtin, near
from cygnet.corpus.arrow import to_arrow
from cygnet.corpus.decide import Decision, Parts, decide, nothing_left
from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.corpus.evaluation import read_evaluation
from cygnet.corpus.manifest import (
    COST,
    HASHES,
    NUMBERS,
    OUTPUTS,
    REMOVED,
    environment,
    hashes_of,
    make_manifest,
    what_changed,
)
from cygnet.corpus.page import PAGE, write_page
from cygnet.corpus.parts import Task, read_plan, task_key, write_plan
from cygnet.corpus.read.find import InputFile, find_files
from cygnet.corpus.read.kinds import READABLE
from cygnet.corpus.read.problems import FILE as PROBLEMS_FILE
from cygnet.corpus.read.problems import PASSING, Problems
from cygnet.corpus.read.slices import KnownCuts, slices
from cygnet.corpus.repeated import take_out_repeated
from cygnet.corpus.report import Tally, removed_rows
from cygnet.corpus.scale import ScaleConfig, run_tasks
from cygnet.corpus.settings import DataConfig
from cygnet.corpus.table import DocumentTable
from cygnet.errors import UserError
from cygnet.files import (
    JsonlWriter,
    digest_of,
    folder_atomic,
    locked_folder,
    sha256_file,
    write_atomic,
    write_json,
)
from cygnet.progress import say

USED_UP = (TRAIN, HELDOUT, ".sides.npy", ".tmp", near.JOB, near.DOCUMENTS, near.PAIRS)
"""Ends of the names of what no other run needs."""
CUTS = "cuts.json"
WRITE_BYTES = 1 << 20
MAX_TASK_FILES = 2_000
ALONE_BYTES = 256 << 20


def prepare(config: DataConfig, out: Path, scale: ScaleConfig | None = None) -> Path:
    """Make the data folder `out`: train and held-out documents, report, manifest.

    Does nothing but say so if `out` was made from the same files with the same settings. What was
    read stays in the `parts_folder` beside it, so that another run reads only what is new.

    Raises:
        UserError: a path cannot be read, nothing usable is left, no text is left to hold out or
            to train on, or `out` holds something else.
    """
    problems = Problems(strict=config.strict)
    files = find_files(config.paths, problems, exclude=out)
    if config.paths and not files:
        raise UserError(f"{', '.join(config.paths)}: no file to read there; {_first_of(problems)}")
    if not config.paths:
        files = [InputFile(p, f"builtin/{p.name}", "", "builtin") for p in builtin.builtin_files()]
    # Processes of other machines start in other folders.
    files = [
        dataclasses.replace(file, path=file.path.absolute(), given=str(file.path)) for file in files
    ]
    if config.quality_filter:
        config = dataclasses.replace(config, quality_filter=os.path.abspath(config.quality_filter))
    work = parts_folder(out)
    with _working(work):
        return _prepare(config, out, scale or ScaleConfig(), problems, work, files)


@contextlib.contextmanager
def _working(work: Path) -> Iterator[None]:
    """Keep other processes out of a work folder; leave it only where something in it is finished.

    Raises:
        UserError: something could not be written.
    """
    waiting = f"{work}: another process works there; waiting for it"
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
        with locked_folder(work, lambda: say(waiting)):
            try:
                yield
            finally:
                is_used = any(work.glob("*.arrow")) or (work / "slurm").exists()
                if work.exists() and not is_used:
                    shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{work}: could not be written ({error}); make room or mend that, and start again: "
            "what was read stays"
        ) from error


def _prepare(
    config: DataConfig,
    out: Path,
    scale: ScaleConfig,
    problems: Problems,
    work: Path,
    files: Sequence[InputFile],
) -> Path:
    hashes, states = hashes_of(files, work)
    manifest = make_manifest(config, files, hashes)
    changed = what_changed(out, manifest)
    if not changed:
        say(f"data: up to date, nothing to do ({out})")
        return out
    if changed != ["new"]:
        say(f"data: made again, for {'; '.join(changed)}")
    write_json(work / HASHES, states)
    tally = _Preparation(config, scale, problems, work, out).run(files, hashes, manifest)
    _say_outcome(tally, problems, out)
    if config.paths:
        size = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
        told = f"{work} ({size / 1e6:.1f} MB)"
        say(f"data: {told} spares the next run reading again; delete it freely")
    return out


def parts_folder(out: Path) -> Path:
    """Return where what was read for a data folder lies: hidden, so that it is never read as text.

    Whoever deletes it loses nothing but the time to read again.
    """
    return out.with_name(f".{out.name}.parts")


def make_tasks(
    files: Sequence[InputFile],
    hashes: dict[str, str],
    config: DataConfig,
    uses: str = "",
    known: KnownCuts | None = None,
) -> list[Task]:
    """Part the input into pieces of about `part_mb`: some files, or a slice of one.

    Borders between files are set by their names as by their sizes, so that a new file changes few
    pieces. `uses` is a hash of what else is read; `known` remembers where files were cut.
    """
    version = digest_of([environment(), uses])
    most = int(config.part_mb * 1e6)
    tasks: list[Task] = []
    group: list[InputFile] = []
    size = 0

    def end() -> None:
        nonlocal group, size
        if group:
            key = task_key([(file, hashes[file.place]) for file in group], config, version)
            tasks.append(Task(key, tuple(group)))
        group, size = [], 0

    for file in files:
        pieces = slices(file, most, known, hashes[file.place])
        if len(pieces) > 1 or size + file.num_bytes() > most or len(group) > MAX_TASK_FILES:
            end()
        if len(pieces) > 1:
            for piece in pieces:
                group = [piece]
                end()
            continue
        group.append(file)
        size += file.num_bytes()
        if hash_of_name(file.source) % 64 == 0:
            end()
    end()
    return tasks


def hash_of_name(name: str) -> int:
    """Return a number that depends on a name alone."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:4], "big")


class _Preparation:
    """One run of the pipeline."""

    def __init__(
        self, config: DataConfig, scale: ScaleConfig, problems: Problems, work: Path, out: Path
    ) -> None:
        self._config, self._scale, self._problems = config, scale, problems
        self._work, self._out = work, out
        self._cost: dict[str, float] = {}
        self._since = time.monotonic()
        self._passing: list[str] = []  # parts whose files may be read better another time

    def run(
        self, files: Sequence[InputFile], hashes: dict[str, str], manifest: dict[str, Any]
    ) -> Tally:
        """Make the data folder; return the counts."""
        config, work = self._config, self._work
        if config.evaluation:
            read_evaluation(config, self._problems).save(work)
        known = KnownCuts(work / CUTS)
        tasks = make_tasks(files, hashes, config, digest_of(manifest["uses"]), known)
        known.save()
        write_plan(work, config, tasks)
        keys = [task.key for task in tasks]
        make = "cygnet.corpus.parts:make_part"
        run_tasks(make, work, len(tasks), self._scale, "read", digest_of(keys))
        self._took("read")
        if config.repeated_spans != "keep":
            keys = take_out_repeated(work, keys, self._scale)
            self._took("take out repeated spans")
        for key in keys:
            state = json.loads((work / f"{key}.problems.json").read_text(encoding="utf-8"))
            found = Problems.from_state(state)
            self._problems.merge(found)
            if any(found.count(kind) for kind in PASSING):
                self._passing.append(key)
        parts = Parts(work, keys)
        if not len(parts):
            where = ", ".join(config.paths)
            raise UserError(f"{where}: no text found; {_first_of(self._problems)}")
        decision = decide(parts, config, config.rules_in_force(), self._scale)
        self._took("decide")
        self._check(decision)
        tally = Tally.of(parts, decision, config)
        self._write(parts, decision, keys, tally, manifest)
        self._clean_up(keys)
        return tally

    def _took(self, step: str) -> None:
        now = time.monotonic()
        self._cost[step], self._since = now - self._since, now

    def _check(self, decision: Decision) -> None:
        outcome = decision.outcome
        if not np.isin(outcome, ("train", "heldout")).any():
            raise nothing_left(outcome, ", ".join(self._config.paths))
        if not (outcome == "train").any():
            raise UserError(
                "no training text left: all that is not held out repeats held-out text; "
                "give more text"
            )

    def _write(
        self,
        parts: Parts,
        decision: Decision,
        keys: Sequence[str],
        tally: Tally,
        manifest: dict[str, Any],
    ) -> None:
        work = self._work
        copies = np.minimum(parts.column("copies"), 0xFFFF).astype(np.int32)
        sides = np.where(decision.outcome == "train", copies, 0)
        sides = np.where(decision.outcome == "heldout", -1, sides)
        for key, first, last in zip(keys, parts.offsets[:-1], parts.offsets[1:], strict=False):
            np.save(work / f"{key}.sides.npy", sides[first:last])
        write_json(work / "written.json", list(keys))
        for leftover in (*work.glob(f"*.{TRAIN}"), *work.glob(f"*.{HELDOUT}")):
            leftover.unlink()
        scale = self._scale
        if scale.executor == "local" and parts.column("length").sum() < ALONE_BYTES:
            scale = ScaleConfig(workers=1)  # it is written before other processes have started
        of = digest_of([list(keys), hashlib.sha256(sides.tobytes()).hexdigest()])
        run_tasks("cygnet.corpus.pipeline:write_part", work, len(keys), scale, "write", of)
        with folder_atomic(self._out) as folder:
            for name in (TRAIN, HELDOUT):
                with open(folder / name, "wb") as file:
                    for key in keys:
                        file.write((work / f"{key}.{name}").read_bytes())
            _write_numbers(parts, decision, folder / NUMBERS)
            with JsonlWriter(folder / REMOVED) as writer:
                for row in removed_rows(parts, decision):
                    writer.write(row)
            write_json(folder / "report.json", tally.to_json(self._problems))
            write_atomic(folder / "report.md", tally.to_markdown(self._problems))
            with JsonlWriter(folder / PROBLEMS_FILE) as writer:
                for row in self._problems.rows():
                    writer.write(row)
            manifest["incomplete"] = any(self._problems.count(kind) for kind in PASSING)
            manifest["outputs"] = {name: sha256_file(folder / name) for name in OUTPUTS}
            write_json(folder / "manifest.json", manifest)
            self._took("write")
            num_bytes = sum(entry["bytes"] for entry in manifest["inputs"])
            cost = {"bytes": num_bytes, "seconds": self._cost}
            write_json(folder / COST, cost)
            table = DocumentTable.of(parts, decision, self._config)
            write_page(folder / PAGE, table, self._problems, cost, str(self._out))

    def _clean_up(self, keys: Sequence[str]) -> None:
        """Leave in the work folder what the next run may need; of the built-in text, nothing."""
        if not self._config.paths:
            shutil.rmtree(self._work)
            return
        wanted = {task.key for task in read_plan(self._work)[1]} | set(keys)
        wanted -= set(self._passing)
        for path in self._work.iterdir():
            if path.is_dir():
                continue
            key, _, kind = path.name.partition(".")
            is_of_part = kind.endswith(("arrow", "jsonl", "npy", "problems.json"))
            is_used_up = path.name.endswith(USED_UP)
            if is_used_up or (is_of_part and key not in wanted):
                path.unlink()


def write_part(folder: Path, number: int) -> None:
    """Write what stays of a part, as compressed streams of their own that can be joined."""
    key = json.loads((folder / "written.json").read_text(encoding="utf-8"))[number]
    if all((folder / f"{key}.{name}").exists() for name in (TRAIN, HELDOUT)):
        return
    sides = np.load(folder / f"{key}.sides.npy")
    temporary = {name: folder / f".{key}.{os.getpid()}.{name}" for name in (TRAIN, HELDOUT)}
    try:
        with (
            open(folder / f"{key}.jsonl", "rb") as texts,
            _packed(temporary[TRAIN]) as train,
            _packed(temporary[HELDOUT]) as heldout,
        ):
            for side, line in zip(sides.tolist(), texts, strict=True):
                if side == -1:
                    heldout.write(line)
                elif side == 1:
                    train.write(line)
                elif side > 1:
                    value = json.loads(line) | {"copies": side}
                    train.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        for name, path in temporary.items():
            os.replace(path, folder / f"{key}.{name}")
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _packed(path: Path) -> io.BufferedWriter:
    """Open a file that is compressed with zstd, some documents at a time."""
    import pyarrow

    return io.BufferedWriter(pyarrow.output_stream(str(path), compression="zstd"), WRITE_BYTES)


def _write_numbers(parts: Parts, decision: Decision, path: Path) -> None:
    """Write a row for each document: where it comes from, its numbers, what became of it."""
    import pyarrow.parquet

    table = parts.table
    assert table is not None
    table = table.drop_columns(["exact", "phrases", "num_words", "start", "length"])
    if "heldout_overlap" in decision.numbers:
        overlap = to_arrow(decision.numbers["heldout_overlap"])
        table = table.append_column("heldout_overlap", overlap)
    of = np.full(len(parts), -1, np.int64)
    similarity = np.full(len(parts), np.nan, np.float32)
    for number, duplicate in decision.duplicates.items():
        of[number], similarity[number] = duplicate.of, duplicate.similarity
    table = table.append_column("outcome", to_arrow(decision.outcome))
    table = table.append_column("duplicate_of", to_arrow(of))
    table = table.append_column("similarity", to_arrow(similarity))
    pyarrow.parquet.write_table(table, path, compression="zstd")


def _first_of(problems: Problems) -> str:
    lines = problems.lines()
    return lines[0] if lines else f"give {READABLE}"


def _say_outcome(tally: Tally, problems: Problems, out: Path) -> None:
    for line in problems.lines():
        say(f"data: {line}")
    counts = dict(tally.waterfall())
    num_read = counts.pop("read").documents
    train, heldout = counts.pop("train"), counts.pop("heldout")
    dropped = ", ".join(f"{name} {c.documents:,}" for name, c in counts.items() if c.documents)
    say(
        f"data: {num_read:,} documents read, {train.documents:,} to train on "
        f"({train.bytes / 1e6:.2f} MB), {heldout.documents:,} held out "
        f"({heldout.bytes / 1e6:.2f} MB); dropped: {dropped or 'none'}; see {out / 'report.md'}"
    )
