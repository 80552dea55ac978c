"""How fast `cygnet data` is on a folder of raw text, with how much memory; and against datatrove.

Each run is a command of its own with a fresh output folder, so the start of the interpreter and of
the worker processes is in its time. Memory is that of the whole process tree, read every 0.2 s from
`/proc/PID/smaps_rollup`: Pss (pages that processes share are counted once) and of it the anonymous
part (Pss_Anon), which the kernel cannot give back as it can mapped files.

    python benchmarks/corpus_speed.py FOLDER [--workers 2] [--repeats 3] [--rules basic]
    python benchmarks/corpus_speed.py FOLDER --datatrove VENV/bin/python --every 20 --repeats 2

With `--datatrove` (an environment made as benchmarks/peers/datatrove_pipeline.py says) both read
every so many documents of FOLDER/*.jsonl, the same files with as many processes, in turn; ours with
the rules that datatrove's pipeline has, at its thresholds (`LIKE_DATATROVE`). datatrove's time is
the sum of its stages, without its driver's imports and the dealing out of rows; ours is that of the
whole command. A run of each on a fifth of the part says what starting costs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
SAMPLE_S = 0.2
TASKS = 8
"""Files that datatrove's input is dealt out over."""

_NOT_DATATROVES = (
    "too_short", "unreadable", "symbols", "character_runs", "repeated_lines", "repeated_phrases",
    "harmful", "heldout_overlap",
)  # fmt: skip
LIKE_DATATROVE = (
    "--corpus.rules", "web",
    "--corpus.thresholds", "fineweb_dup_chars=0.01", *(f"{n}=off" for n in _NOT_DATATROVES),
    "--corpus.private", "email", "ipv4",
    "--corpus.heldout-share", "1e-6",
    "--corpus.max-chars", "10000000",
    "--corpus.near-duplicate-threshold", "0.87", "--corpus.near-duplicate-edits", "0",
)  # fmt: skip
"""Whole documents, datatrove's rules. Its near duplicates share 0.72 of their runs of five words,
which is where one word in 28 differs; then 0.87 of their word pairs are shared."""

NUMBER_OF_REASON = {
    "gopher_short_doc": "words",
    "gopher_below_avg_threshold": "mean_word_length",
    "gopher_below_alpha_threshold": "alpha_words",
    "gopher_enough_stop_words": "stop_words",
    "dup_line_frac": "dup_lines",
    "dup_line_char_frac": "dup_line_chars",
    "too_few_sentences": "sentences",
    "line_punct_ratio": "punctuated_lines",
    "short_line_ratio": "short_lines",
    "char_dup_ratio": "dup_chars",
    "list_ratio": "newlines",
    **{f"top_{n}_gram": f"top_{n}" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"dup_{n}" for n in range(5, 11)},
}
"""datatrove's reasons, and the number that our rule for the same looks at."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The memory of a process tree at a time."""

    at: float
    pss: float
    """MB, of all processes."""
    anonymous: float
    """MB, of all processes, of it."""
    driver: float
    """MB of Pss of the first process."""


@dataclass(frozen=True, slots=True)
class Run:
    """One command, measured."""

    seconds: float
    cpu_seconds: float
    """Of all its processes."""
    megabytes: float
    steps: dict[str, float]
    """Seconds of each."""
    peaks: dict[str, tuple[float, float, float]]
    """MB at most in each step: Pss of all processes, anonymous Pss of all, Pss of the first."""

    @property
    def rate(self) -> float:
        """MB of input per second, end to end."""
        return self.megabytes / self.seconds


def process_tree(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [root]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def memory_of(process: int) -> tuple[float, float]:
    """Return MB of Pss and of anonymous Pss; nothing for a process that has ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, 0.0
    values = {line.split()[0]: line.split()[1] for line in text.splitlines()[1:]}
    return int(values.get("Pss:", 0)) * 1.024e-3, int(values.get("Pss_Anon:", 0)) * 1.024e-3


@dataclass(frozen=True, slots=True)
class Watched:
    """When a command began and ended, in seconds since 1970, and what it took meanwhile."""

    began: float
    ended: float
    cpu_seconds: float
    samples: list[Sample]


def watched(command: Sequence[str]) -> Watched:
    """Run a command to its end, which must be a good one."""
    began, cpu_before = time.time(), _cpu_seconds()
    samples = []
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(command, cwd=ROOT, stdout=told, stderr=told)
        while process.poll() is None:
            each = [memory_of(number) for number in process_tree(process.pid)]
            pss, anonymous = (sum(values) for values in zip(*each, strict=True))
            samples.append(Sample(time.time(), pss, anonymous, each[0][0]))
            time.sleep(SAMPLE_S)
        ended, cpu_seconds = time.time(), _cpu_seconds() - cpu_before
        if process.returncode:
            told.seek(0)
            raise SystemExit(f"{' '.join(command)}: {told.read()[-3000:].decode()}")
    return Watched(began, ended, cpu_seconds, samples)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_ours(source: Path, out: Path, workers: int, flags: Sequence[str]) -> Run:
    """Make a data folder of `source` at `out`, which must not be there yet."""
    command = [sys.executable, "-m", "cygnet", "data", "--data", str(source), "--out", str(out),
               "--scale.workers", str(workers), *flags]  # fmt: skip
    found = watched(command)
    cost = json.loads((out / "cost.json").read_text())
    seconds: dict[str, float] = cost["seconds"]
    written = (out / "cost.json").stat().st_mtime
    steps = {
        "start": written - sum(seconds.values()) - found.began,  # with finding and hashing
        **seconds,
        "report": found.ended - written,
    }
    peaks = _peaks(found.samples, found.began, steps)
    took = found.ended - found.began
    return Run(took, found.cpu_seconds, cost["bytes"] / 1e6, steps, peaks)


def _peaks(
    samples: list[Sample], began: float, steps: dict[str, float]
) -> dict[str, tuple[float, float, float]]:
    peaks = {}
    since = began
    for step, seconds in steps.items():
        of_step = [sample for sample in samples if since <= sample.at < since + seconds]
        since += seconds
        if of_step:
            peaks[step] = (
                max(sample.pss for sample in of_step),
                max(sample.anonymous for sample in of_step),
                max(sample.driver for sample in of_step),
            )
    return peaks


def run_datatrove(
    python: Path, source: Path, out: Path, workers: int, every: int
) -> dict[str, Any]:
    """Run datatrove's pipeline; return its figures."""
    command = [str(python), "benchmarks/peers/datatrove_pipeline.py", str(source), str(out),
               "--processes", str(workers), "--tasks", str(TASKS), "--every", str(every),
               "--any-line"]  # fmt: skip
    found = watched(command)
    figures: dict[str, Any] = json.loads((out / "figures.json").read_text())
    return figures | {"peak_megabytes": max(sample.pss for sample in found.samples)}


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Return the median, the least and the most."""
    values = list(values)
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table: the first column is text, the others are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def told_of(runs: Sequence[Run]) -> str:
    """Return the table of some runs on the same input: steps, rate and memory."""
    rows = []
    for step in runs[0].steps:
        seconds = spread((run.steps[step] for run in runs), 2)
        peaks = [
            f"{max(run.peaks.get(step, (0, 0, 0))[number] for run in runs):.0f}"
            for number in range(3)
        ]
        rows.append([step, seconds, *peaks])
    whole = [f"{max(max(p[n] for p in run.peaks.values()) for run in runs):.0f}" for n in range(3)]
    rows.append(["all", spread((run.seconds for run in runs), 2), *whole])
    head = ["step", "s", "peak MB (Pss)", "peak MB (anonymous)", "peak MB (driver)"]
    rate = spread((run.rate for run in runs), 2)
    cpu = spread((run.cpu_seconds for run in runs), 1)
    return (
        f"{runs[0].megabytes:.1f} MB of input, {len(runs)} runs: {rate} MB/s end to end "
        f"(median [least, most]), {cpu} s of CPU\n\n" + table(head, rows)
    )


def outcomes_of_ours(out: Path, source: Path) -> dict[str, dict[str, Any]]:
    """Return what became of each document, and its numbers, by the id that `source` gives it."""
    import pyarrow.parquet

    names = {
        f"{file.name}:{number}": json.loads(line)["id"]
        for file in sorted(source.glob("*.jsonl"))
        for number, line in enumerate(file.open("rb"), start=1)
    }
    rows = pyarrow.parquet.read_table(out / "numbers.parquet").to_pylist()
    found = {names[row["source"].rpartition("/")[2]]: row for row in rows}
    assert len(found) == len(rows), "a document was cut"
    return {name: found.get(name, {"outcome": "not read"}) for name in names.values()}


def outcomes_of_datatrove(out: Path) -> dict[str, str]:
    """Return `kept`, or why it went, of each document."""
    outcomes = dict.fromkeys((out / "kept.txt").read_text().split("\n"), "kept")
    with open(out / "dropped.jsonl", encoding="utf-8") as file:
        for row in map(json.loads, file):
            outcomes[row["id"]] = row["reason"] or "near duplicate"
    return outcomes


def compared(ours: dict[str, dict[str, Any]], theirs: dict[str, str]) -> str:
    """Return tables: how many both kept, and by which rule the others went on either side."""
    agreement = Counter[tuple[str, str]]()
    theirs_alone: dict[str, list[dict[str, Any]]] = {}
    ours_alone: dict[str, list[str]] = {}
    for name, row in ours.items():
        kept = row["outcome"] in ("train", "heldout")
        kept_there = theirs.get(name, "not read") == "kept"
        group = "all" if row.get("language") == "en" else "other"
        agreement[group, f"{kept} {kept_there}"] += 1
        if kept and not kept_there:
            theirs_alone.setdefault(theirs.get(name, "not read"), []).append(row)
        if kept_there and not kept:
            ours_alone.setdefault(row["outcome"], []).append(name)
    cases = ("True True", "False False", "True False", "False True")
    rows = []
    for told, groups in (("all", ("all", "other")), ("English", ("all",)), ("other", ("other",))):
        counts = [sum(agreement[group, case] for group in groups) for case in cases]
        share = sum(counts[:2]) / max(sum(counts), 1)
        rows.append([told, *counts, f"{share:.1%}"])
    head = ["documents", "both keep", "both drop", "ours alone keeps", "datatrove alone keeps",
            "the same"]  # fmt: skip
    dropped_there = [
        [reason, len(of_reason), *_numbers_of(reason, of_reason)]
        for reason, of_reason in sorted(theirs_alone.items(), key=lambda item: -len(item[1]))
    ]
    dropped_here = [
        [rule, len(names), ", ".join(names[:3])]
        for rule, names in sorted(ours_alone.items(), key=lambda item: -len(item[1]))
    ]
    return "\n".join(
        [
            table(head, rows),
            "Dropped by datatrove alone:\n",
            table(["its reason", "documents", "our number", "ours: median [least, most]",
                   "not English"], dropped_there),
            "Dropped by ours alone:\n",
            table(["our rule", "documents", "such as"], dropped_here),
        ]
    )  # fmt: skip


def _numbers_of(reason: str, rows: Sequence[dict[str, Any]]) -> tuple[str, str, int]:
    others = sum(row["language"] != "en" for row in rows)
    name = NUMBER_OF_REASON.get(reason, "")
    values = [row[name] for row in rows if name and row[name] == row[name]]  # NaN: not asked for
    return name, spread(values, 2) if values else "", others


def measure_alone(arguments: argparse.Namespace, folder: Path) -> str:
    flags = ["--corpus.rules", arguments.rules] if arguments.rules else []
    runs = []
    for number in range(arguments.repeats):
        runs.append(run_ours(arguments.folder, folder / f"{number}", arguments.workers, flags))
        print(f"  run {number}: {runs[-1].seconds:.1f} s, {runs[-1].rate:.2f} MB/s", flush=True)
    return told_of(runs)


def measure_both(arguments: argparse.Namespace, folder: Path) -> str:
    """Return the tables of both pipelines on the same part of the input, and of ours on all."""
    python, workers = arguments.datatrove, arguments.workers

    def both(name: str, every: int) -> tuple[dict[str, Any], Run]:
        there = folder / f"datatrove_{name}"
        theirs = run_datatrove(python, arguments.folder, there, workers, every)
        ours = run_ours(there / "input", folder / name, workers, LIKE_DATATROVE)
        seconds = theirs["stages"]["total"]["seconds"]
        print(f"  {name}: datatrove {seconds:.1f} s, ours {ours.seconds:.1f} s", flush=True)
        return theirs, ours

    start_theirs, start = both("start", arguments.every * 5)
    rounds = [both(f"round_{number}", arguments.every) for number in range(arguments.repeats)]
    totals = [theirs["stages"]["total"] for theirs, _ in rounds]
    start_total = start_theirs["stages"]["total"]
    rows = []
    for name, megabytes, seconds, cpu, start_megabytes, start_cpu, peak in (
        ("datatrove", rounds[0][0]["megabytes"],
         [total["seconds"] for total in totals], [total["cpu_seconds"] for total in totals],
         start_theirs["megabytes"], start_total["cpu_seconds"],
         max(theirs["peak_megabytes"] for theirs, _ in rounds)),
        ("cygnet", rounds[0][1].megabytes,
         [ours.seconds for _, ours in rounds], [ours.cpu_seconds for _, ours in rounds],
         start.megabytes, start.cpu_seconds,
         max(peaks[0] for _, ours in rounds for peaks in ours.peaks.values())),
    ):  # fmt: skip
        further = [(each - start_cpu) / (megabytes - start_megabytes) for each in cpu]
        rows.append([name, f"{megabytes:.1f}", spread(seconds),
                     spread((megabytes / s for s in seconds), 3), spread(cpu),
                     f"{start_cpu:.1f}", spread(further, 2), f"{peak:.0f}"])  # fmt: skip
    head = ["pipeline", "MB", "s", "MB/s", "s of CPU", "of a fifth", "of a further MB",
            "peak MB (Pss)"]  # fmt: skip
    ratios = [theirs["stages"]["total"]["seconds"] / ours.seconds for theirs, ours in rounds]
    whole = [
        run_ours(arguments.folder, folder / f"whole_{number}", workers, LIKE_DATATROVE)
        for number in range(arguments.repeats)
    ]
    last = f"round_{arguments.repeats - 1}"
    there = folder / f"datatrove_{last}"
    ours = outcomes_of_ours(folder / last, there / "input")
    return "\n".join(
        [
            table(head, rows),
            f"Ours is {spread(ratios)} times as fast, start-up of both included.\n",
            "Ours with the same rules on the part:\n",
            told_of([ours for _, ours in rounds]),
            "Ours with the same rules on all of it:\n",
            told_of(whole),
            compared(ours, outcomes_of_datatrove(there)),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="what to read; *.jsonl for --datatrove")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rules", default="", help="basic, web, ...: --corpus.rules of our runs")
    parser.add_argument("--datatrove", type=Path, help="the Python of its environment")
    parser.add_argument("--every", type=int, default=20, help="20: every twentieth document")
    parser.add_argument("--table", type=Path, help="write what is found there too, as Markdown")
    arguments = parser.parse_args()
    arguments.folder = arguments.folder.resolve()
    with tempfile.TemporaryDirectory() as folder:
        measure = measure_both if arguments.datatrove else measure_alone
        told = measure(arguments, Path(folder))
    print(told)
    if arguments.table:
        arguments.table.write_text(told, encoding="utf-8")


if __name__ == "__main__":
    main()
