"""Lines and paragraphs that stand in many documents, taken out of all but the first.

Menus, licence texts and footers come with every page of a collection. They are recognised by their
hash over the whole corpus; the documents that lose some are measured anew.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.array_file import save_array
from cygnet.corpus.clean.normalize import normalize
from cygnet.corpus.clean.words import Hashes, Ints, TextBatch
from cygnet.corpus.document import Document, document_id
from cygnet.corpus.part_writer import BATCH_CHARS, PartWriter, Row, is_whole, private_in, read_table
from cygnet.corpus.parts import read_plan, rule_set
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.scale import ScaleConfig, run_tasks
from cygnet.corpus.settings import DataConfig
from cygnet.files import digest_of, read_jsonl, write_json

MIN_CHARS = 20
"""Shorter lines and paragraphs are words of their own right: "Contents", "Yes.", verse."""
REPEATED, JOBS = "repeated.npz", "repeated.json"


def take_out_repeated(work: Path, keys: Sequence[str], scale: ScaleConfig) -> list[str]:
    """Make a part without repeated spans of each part; return their keys.

    Args:
        work: the work folder.
        keys: of its parts.
        scale: where to run.
    """
    config, _ = read_plan(work)
    write_json(work / JOBS, {"from": list(keys)})
    run_tasks("cygnet.corpus.repeated:find_spans", work, len(keys), scale, "find repeated spans")
    spans = [np.load(work / f"{key}.{config.repeated_spans}.spans.npy") for key in keys]
    offsets = np.cumsum([0, *(int(part["document"].max(initial=-1)) + 1 for part in spans)])
    hashes = np.concatenate([part["hash"] for part in spans])
    owners = np.concatenate(
        [part["document"] + at for part, at in zip(spans, offsets[:-1], strict=True)]
    )
    order = np.argsort(hashes, kind="stable")
    begins = np.flatnonzero(np.diff(hashes[order], prepend=~hashes[order[:1]]))
    counts = np.diff(begins, append=len(order))
    often = begins[counts >= config.repeated_in]
    np.savez(work / REPEATED, hashes=hashes[order[often]], owners=owners[order[often]])
    repeated = hashes[order[often]].tolist(), owners[order[often]].tolist()
    digest = digest_of([config.repeated_spans, MIN_CHARS, *repeated])
    new = [digest_of([key, digest])[:24] for key in keys]
    write_json(work / JOBS, {"from": list(keys), "to": new, "offsets": offsets.tolist()})
    run_tasks("cygnet.corpus.repeated:cut_part", work, len(keys), scale, "take out")
    return new


def find_spans(folder: Path, number: int) -> None:
    """Write the hashes of a part's lines or paragraphs, each once a document."""
    config, _ = read_plan(folder)
    key = json.loads((folder / JOBS).read_text(encoding="utf-8"))["from"][number]
    out = folder / f"{key}.{config.repeated_spans}.spans.npy"
    if out.exists():
        return
    hashes, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for first, documents in _read_batches(folder / f"{key}.jsonl"):
        spans = _Spans(documents, config.repeated_spans)
        hashes.append(spans.hashes)
        owners.append(spans.owners + first)
    table = np.empty(sum(map(len, hashes)), [("hash", np.uint64), ("document", np.int64)])
    table["hash"], table["document"] = np.concatenate(hashes), np.concatenate(owners)
    save_array(out, np.unique(table))


def cut_part(folder: Path, number: int) -> None:
    """Write a part whose documents lack the repeated spans that others had first."""
    config, _ = read_plan(folder)
    jobs = json.loads((folder / JOBS).read_text(encoding="utf-8"))
    key, new = jobs["from"][number], jobs["to"][number]
    if is_whole(folder, new):
        return
    state = json.loads((folder / f"{key}.problems.json").read_text(encoding="utf-8"))
    rows = _cut_rows(folder, key, jobs["offsets"][number], config)
    PartWriter(folder, new, config).write(rows, Problems.from_state(state))


def _cut_rows(folder: Path, key: str, offset: int, config: DataConfig) -> Iterator[Row]:
    repeated = np.load(folder / REPEATED)
    hashes, first_owners = repeated["hashes"], repeated["owners"]
    table = read_table(folder / f"{key}.arrow")
    columns = (table.column(name).to_pylist() for name in ("kind", "rules", "copies"))
    known = zip(private_in(table), *columns, strict=True)
    for first, documents in _read_batches(folder / f"{key}.jsonl"):
        spans = _Spans(documents, config.repeated_spans)
        if len(hashes):
            at = np.minimum(np.searchsorted(hashes, spans.hashes), len(hashes) - 1)
            goes = hashes[at] == spans.hashes
            goes &= first_owners[at] != spans.owners + first + offset
        else:
            goes = np.zeros(len(spans.hashes), bool)
        for i, document in enumerate(documents):
            cut, whole = spans.without(i, goes), document.text
            private, kind, rules, copies = next(known)
            if cut != whole:
                document = dataclasses.replace(document, text=cut, id=document_id(cut))
            of_web = rule_set(kind, rules, config) == "web"
            yield Row(document, private, kind, of_web, rules, copies, len(whole) - len(cut))


class _Spans:
    """The lines or paragraphs of some documents; conversations have none.

    Attributes:
        hashes: (spans) of them.
        owners: (spans), the number of each one's document.
    """

    def __init__(self, documents: Sequence[Document], unit: str) -> None:
        self._texts = ["" if document.messages else document.text for document in documents]
        self._whole = [document.text for document in documents]
        self._batch = TextBatch(self._texts)
        starts, ends = self._batch.line_spans if unit == "line" else self._batch.paragraph_spans
        long = ends - starts >= MIN_CHARS
        self._starts, self._ends = starts[long], ends[long]
        self.hashes: Hashes = self._batch.hashes(self._starts, self._ends)
        self.owners: Ints = np.searchsorted(self._batch.offsets, self._starts, side="right") - 1

    def without(self, document: int, goes: NDArray[np.bool_]) -> str:
        """Return a document's text without the spans that go."""
        first, last = np.searchsorted(self.owners, [document, document + 1])
        if not goes[first:last].any():
            return self._whole[document]
        text, kept, at = self._texts[document], [], 0
        origin = int(self._batch.offsets[document])
        for i in (first + np.flatnonzero(goes[first:last])).tolist():
            kept.append(text[at : int(self._starts[i]) - origin])
            at = int(self._ends[i]) - origin
        return normalize("".join([*kept, text[at:]]))


def _read_batches(path: Path) -> Iterator[tuple[int, list[Document]]]:
    """Yield some documents at a time, and the number of the first."""
    documents: list[Document] = []
    chars = first = 0
    for row in read_jsonl(path):
        documents.append(Document.from_json(row))
        chars += len(documents[-1].text)
        if chars >= BATCH_CHARS:
            yield first, documents
            first += len(documents)
            documents, chars = [], 0
    if documents:
        yield first, documents
