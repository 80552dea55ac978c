"""datatrove's own pipeline over a folder of JSON lines: how fast, and which documents it keeps.

What `cygnet data` is held against: the same rules in datatrove's words (Gopher repetition, Gopher
quality, C4 lines, FineWeb quality, PII, MinHash), in as many local processes. datatrove needs an
environment of its own, for its pins (xxhash<4, trafilatura<1.12) are not ours:

    python -m venv datatrove-venv
    datatrove-venv/bin/pip install 'datatrove[io,processing]==0.10.1' 'spacy==3.8.18'
    datatrove-venv/bin/python benchmarks/peers/datatrove_pipeline.py INPUT OUT --processes 2

INPUT holds *.jsonl with `text` and maybe `id`. datatrove does not split a file over tasks, so the
rows are dealt out over as many files as there are tasks first (`OUT/input`, not timed; give the
other pipeline the same files). OUT gets `kept.txt` (ids), `dropped.jsonl` (id, by which filter, for
which reason), `figures.json` and the texts (`kept/`). Left out: language identification, which
wants a download. Different from datatrove's defaults: nothing is compressed on writing, since gzip
would take much of the time, and workers are spawned, so that their CPU time is counted.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import resource
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


def id_and_reason(_: JsonlWriter, document: Document) -> dict[str, Any]:
    return {"id": document.id, "reason": document.metadata.get("filter_reason", "")}


def id_and_text(_: JsonlWriter, document: Document) -> dict[str, Any]:
    return {"id": document.id, "text": document.text}


def dropped_by(name: str, out: Path) -> JsonlWriter:
    return JsonlWriter(str(out / "dropped" / name), compression=None, adapter=id_and_reason)


def filter_steps(source: Path, out: Path, only_punctuated: bool) -> list[PipelineStep]:
    return [
        JsonlReader(str(source), glob_pattern="*.jsonl"),
        GopherRepetitionFilter(exclusion_writer=dropped_by("gopher_repetition", out)),
        GopherQualityFilter(exclusion_writer=dropped_by("gopher_quality", out)),
        C4QualityFilter(
            exclusion_writer=dropped_by("c4", out), filter_no_terminal_punct=only_punctuated
        ),
        FineWebQualityFilter(exclusion_writer=dropped_by("fineweb", out)),
        PIIFormatter(),
        JsonlWriter(str(out / "filtered"), compression=None, adapter=id_and_text),
    ]


def deal_out(source: Path, target: Path, num_files: int, every: int) -> float:
    """Write every so many rows of `source`, with an id, in turn to the files of `target`.

    Returns the megabytes written.
    """
    target.mkdir(parents=True)
    documents = (
        (f"{file.stem}:{number}", json.loads(line))
        for file in sorted(source.glob("*.jsonl"))
        for number, line in enumerate(file.open("rb"))
    )
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(open(target / f"{number:03d}.jsonl", "wb"))
            for number in range(num_files)
        ]
        chosen = itertools.islice(documents, 0, None, every)
        for (name, row), file in zip(chosen, itertools.cycle(files)):
            file.write(json.dumps({"id": name, **row}, ensure_ascii=False).encode() + b"\n")
        return sum(file.tell() for file in files) / 1e6


def stages(
    out: Path, num_files: int, only_punctuated: bool
) -> list[tuple[str, int, list[PipelineStep]]]:
    """Return each stage's name, number of tasks and steps."""
    config = MinhashConfig()
    signatures, buckets, remove = (
        str(out / "minhash" / name) for name in ("signatures", "buckets", "remove")
    )
    filtered = JsonlReader(str(out / "filtered"))
    return [
        ("filter", num_files, filter_steps(out / "input", out, only_punctuated)),
        ("signatures", num_files, [filtered, MinhashDedupSignature(signatures, config)]),
        (
            "buckets",
            config.num_buckets,
            [MinhashDedupBuckets(signatures, buckets, config=config)],
        ),
        ("clusters", 1, [MinhashDedupCluster(buckets, remove, config=config)]),
        (
            "remove",
            num_files,
            [
                filtered,
                MinhashDedupFilter(remove, exclusion_writer=dropped_by("minhash", out)),
                JsonlWriter(str(out / "kept"), compression=None, adapter=id_and_text),
            ],
        ),
    ]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for file in sorted(folder.glob("*.jsonl"))
        for line in file.open(encoding="utf-8")
    ]


def write_outcome(out: Path) -> Counter[str]:
    """Write which documents were kept and why the others were not; return the counts."""
    kept = [row["id"] for row in rows(out / "kept")]
    (out / "kept.txt").write_text("".join(f"{name}\n" for name in kept), encoding="utf-8")
    counts = Counter(kept=len(kept))
    with open(out / "dropped.jsonl", "w", encoding="utf-8") as file:
        for folder in sorted((out / "dropped").iterdir()):
            for row in rows(folder):
                row = {"id": row["id"], "filter": folder.name, "reason": row["reason"]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                counts[f"{folder.name} {row['reason']}".strip()] += 1
    return counts


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def timed(
    steps: list[PipelineStep], num_tasks: int, processes: int, logs: Path
) -> dict[str, float]:
    started, cpu_before = time.perf_counter(), cpu_seconds()
    LocalPipelineExecutor(
        steps, tasks=num_tasks, workers=processes, logging_dir=str(logs), start_method="spawn"
    ).run()
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": cpu_seconds() - cpu_before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("input", type=Path, help="folder of *.jsonl with id and text")
    parser.add_argument("out", type=Path, help="folder for what is kept; emptied first")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=8, help="files of the input, and tasks")
    parser.add_argument("--every", type=int, default=1, help="10: every tenth document")
    parser.add_argument(
        "--any-line",
        action="store_true",
        help="keep lines without end punctuation in the C4 filter, as FineWeb's pipeline does",
    )
    arguments = parser.parse_args()
    out = arguments.out
    shutil.rmtree(out, ignore_errors=True)
    megabytes = deal_out(arguments.input, out / "input", arguments.tasks, arguments.every)

    figures: dict[str, dict[str, float]] = {}
    for name, num_tasks, steps in stages(out, arguments.tasks, not arguments.any_line):
        figures[name] = timed(steps, num_tasks, arguments.processes, out / "logs" / name)
    figures["total"] = {
        unit: sum(stage[unit] for stage in figures.values()) for unit in ("seconds", "cpu_seconds")
    }
    counts = write_outcome(out)

    print(f"{megabytes:.1f} MB in {arguments.tasks} files, {arguments.processes} processes")
    for name, spent in figures.items():
        rate = f"{megabytes / spent['seconds']:8.3f} MB/s of input"
        print(f"  {name:<12} {spent['seconds']:8.1f} s {rate} {spent['cpu_seconds']:8.1f} s of CPU")
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"  largest process: {largest:.2f} GB")
    for name, count in counts.most_common():
        print(f"  {count:8,} {name}")
    summary = {
        "megabytes": megabytes,
        "processes": arguments.processes,
        "stages": figures,
        "largest_process_gb": largest,
        "documents": counts,
    }
    (out / "figures.json").write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
