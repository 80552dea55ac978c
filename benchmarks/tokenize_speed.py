"""Tokenizing against what the `tokenizers` library does bare, on the same cores.

Bare: `encode_batch_fast` on texts that lie in memory, 1,000 at a time, its own threads on all
cores; the ids are thrown away. Ours: from a compressed file to checksummed shards in the order of
the documents' ids, worker processes, work folder and their start included. One after the other,
several times; text is the built-in one, repeated.

python benchmarks/tokenize_speed.py [--repeats 4] [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from cygnet.corpus import builtin
from cygnet.corpus.document import document_id
from cygnet.files import JsonlWriter
from cygnet.text.tokenize import tokenize_documents
from cygnet.text.tokenizer import CHUNK_TEXTS, Tokenizer, chunks, train_tokenizer


def timed(action: Callable[[], None]) -> tuple[float, float]:
    """Return seconds of the clock and of all processors, child processes included."""
    started, before = time.perf_counter(), _cpu_seconds()
    action()
    return time.perf_counter() - started, _cpu_seconds() - before


def _cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def write_corpus(path: Path, repeats: int) -> list[str]:
    rows = [document.to_json() for document in builtin.builtin_documents()]
    texts = []
    with JsonlWriter(path) as file:
        for number in range(repeats):
            for row in rows:
                file.write(row | {"id": document_id(f"{number} {row['id']}")})
                texts.append(row["text"])
    return texts


def bare(tokenizer: Tokenizer, texts: list[str]) -> None:
    for chunk in chunks(texts, CHUNK_TEXTS):
        tokenizer._inner.encode_batch_fast(chunk, add_special_tokens=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=4, help="how often the text is repeated")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = write_corpus(folder / "train.jsonl.zst", arguments.repeats)
        num_bytes = sum(len(text.encode()) for text in texts)
        tokenizer = train_tokenizer(texts[: len(texts) // arguments.repeats])
        cores = len(os.sched_getaffinity(0))
        print(f"{num_bytes / 1e6:.1f} MB in {len(texts):,} documents, {cores} cores")
        ratios: list[tuple[float, float]] = []
        for number in range(arguments.rounds):
            theirs = timed(lambda: bare(tokenizer, texts))
            out = folder / f"shards_{number}"
            ours = timed(
                lambda out=out: tokenize_documents(folder / "train.jsonl.zst", tokenizer, out)
            )
            ratios.append((theirs[0] / ours[0], theirs[1] / ours[1]))
            print(
                f"bare {theirs[0]:.2f} s ({num_bytes / 1e6 / theirs[0]:.2f} MB/s, processors "
                f"{theirs[1]:.2f} s), ours {ours[0]:.2f} s ({num_bytes / 1e6 / ours[0]:.2f} MB/s, "
                f"processors {ours[1]:.2f} s): {100 * ratios[-1][0]:.0f} % by the clock, "
                f"{100 * ratios[-1][1]:.0f} % by processor time"
            )
        for name, values in zip(
            ("clock", "processor time"), zip(*ratios, strict=True), strict=True
        ):
            print(
                f"ours against bare by the {name}: {100 * median(values):.0f} % (median of "
                f"{len(values)}; {100 * min(values):.0f} to {100 * max(values):.0f} %)"
            )


if __name__ == "__main__":
    main()
