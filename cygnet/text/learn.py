"""Clean documents to a tokenizer folder, with a report that holds it against other vocabularies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cygnet.files import read_json, write_atomic, write_json
from cygnet.progress import say, track
from cygnet.text.measure import (
    ALL,
    HeldOutText,
    measure_known,
    measure_tokenizer,
    tables,
)
from cygnet.text.sample import Sample, SampleConfig, plan_sample
from cygnet.text.sweep import draw_sweep, sweep, sweep_table
from cygnet.text.tokenizer import Tokenizer, train_tokenizer
from cygnet.text.vocabularies import Vocabulary

REPORT, REPORT_TEXT, PLOT = "report.json", "report.md", "plots/vocabulary.png"
MEASURED = SampleConfig(sample_mb=32.0)
"""Of the held-out text, what is measured on."""
_EXPLAINED = """
A token stands for so many bytes of UTF-8: the more, the shorter a text becomes. Domains and
languages are those of the held-out text, the largest first; where a document does not say its
language, its script stands for it. A word is a run of letters or digits; where a script sets no
spaces, a character. Entries used: the share of the vocabulary that occurs in the held-out text.
"""


def make_tokenizer(
    documents: Path,
    out: Path,
    vocab_size: int = 6400,
    heldout: Path | None = None,
    sampling: SampleConfig | None = None,
) -> Tokenizer:
    """Train on the `text` of clean documents and write it to the folder `out`, with a report.

    Other files of the folder stay as they are.
    `report.json` and `report.md` hold UTF-8 bytes per token by domain and language, of the held-out
    documents where given.

    Args:
        documents: of a large file, a sample is learnt from.
        out: folder.
        vocab_size: entries.
        heldout: clean documents too.
        sampling: how much is learnt from, in what shares.
    """
    sample = plan_sample(documents, sampling or SampleConfig())
    if sample.shares is not None:
        say(f"tokenizer: learnt from {describe(sample)}")
    texts = (row["text"] for row in track(sample.rows(), "tokenizer"))
    tokenizer = train_tokenizer(texts, vocab_size)
    own = measure_tokenizer(tokenizer, heldout_text(heldout or documents))
    tokenizer.save(out)
    report: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "hash": tokenizer.hash,
        "bytes_per_token": {name: own.by_domain[name] for name in own.by_domain if name != ALL},
        "measured": own.to_json(),
    }
    if sample.shares is not None:
        report["sample"] = {" ".join(group): share for group, share in sample.shares.items()}
    write_json(out / REPORT, report)
    write_atomic(out / REPORT_TEXT, _title(tokenizer) + tables([own]) + _EXPLAINED)
    return tokenizer


def report_vocabularies(
    out: Path,
    documents: Path,
    heldout: Path,
    known: Sequence[Vocabulary],
    sizes: Sequence[int],
    width: int,
    sampling: SampleConfig,
) -> None:
    """Hold the tokenizer of a folder against known vocabularies, and against other sizes of it.

    Args:
        out: the folder; its report is written anew, with `plots/vocabulary.png` where there are
            sizes.
        documents: what it was learnt from.
        heldout: what is measured on.
        known: vocabularies of other makers; may be none.
        sizes: of a sweep; may be none.
        width: of a model, whose embedding's parameters are told.
        sampling: as the tokenizer was learnt with.
    """
    tokenizer, text = Tokenizer.load(out), heldout_text(heldout)
    own = measure_tokenizer(tokenizer, text)
    others = measure_known(track(known, "vocabularies"), text)
    parts = [_title(tokenizer) + tables([own, *others])]
    report = read_json(out / REPORT) | {"compared": [row.to_json() for row in others]}
    if sizes:
        swept = sweep(_texts(plan_sample(documents, sampling)), sizes, text)
        report["sweep"] = [row.to_json() for row in swept]
        parts.append(sweep_table(swept, width) + f"\n![Sizes of the vocabulary]({PLOT})\n")
        write_atomic(out / PLOT, draw_sweep(own, swept, others, width))
    write_json(out / REPORT, report)
    write_atomic(out / REPORT_TEXT, "\n".join(parts) + _EXPLAINED)


def heldout_text(path: Path) -> HeldOutText:
    """Read what is measured on: all of a file, or a balanced sample of a large one."""
    return HeldOutText.of(plan_sample(path, MEASURED).rows())


def describe(sample: Sample) -> str:
    """Say what share of each domain and language a sample takes."""
    shares = sorted((sample.shares or {}).items(), key=lambda item: -item[1])
    told = ", ".join(f"{100 * share:.3g} % of {' '.join(group)}" for group, share in shares[:8])
    return told + (f" and of {len(shares) - 8} more" if len(shares) > 8 else "")


def _texts(sample: Sample) -> Iterable[str]:
    return (row["text"] for row in track(sample.rows(), "sizes"))


def _title(tokenizer: Tokenizer) -> str:
    return f"# A vocabulary of {tokenizer.vocab_size:,} entries\n\n"
