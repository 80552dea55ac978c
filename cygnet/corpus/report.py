"""What became of every document: counts by rule and domain, with examples, as JSON and Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cygnet.corpus import dedup
from cygnet.corpus.clean import filters
from cygnet.corpus.document import Document
from cygnet.corpus.read.problems import FILE, LOST, MENDED, Problems

MAX_EXAMPLES = 3
EXAMPLE_CHARS = 160
KEPT = ("train", "heldout")
RULES = {**filters.RULES, **dedup.REASONS}
"""Every reason a document is dropped for, in the order in which the rules are tried."""


@dataclass(slots=True)
class Count:
    """How much text."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0

    def add(self, text: str) -> None:
        """Count one document; `bytes` are those of UTF-8."""
        self.documents += 1
        self.characters += len(text)
        self.bytes += len(text.encode())

    def to_json(self) -> dict[str, int]:
        """Return the JSON object of the report."""
        return {"documents": self.documents, "characters": self.characters, "bytes": self.bytes}


@dataclass(slots=True)
class Tally:
    """Counts each document once as read and once under its outcome (a rule, `train`, `heldout`)."""

    read: dict[str, Count] = field(default_factory=dict)
    outcomes: dict[str, dict[str, Count]] = field(default_factory=dict)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def add_read(self, document: Document) -> None:
        """Count a document that was read (after normalising)."""
        self.read.setdefault(document.domain, Count()).add(document.text)

    def add_outcome(self, document: Document, outcome: str, why: str = "") -> None:
        """Count what became of a document: a key of `RULES`, `train` or `heldout`."""
        assert outcome in RULES or outcome in KEPT
        by_domain = self.outcomes.setdefault(outcome, {})
        by_domain.setdefault(document.domain, Count()).add(document.text)
        examples = self.examples.setdefault(outcome, [])
        if outcome in RULES and len(examples) < MAX_EXAMPLES:
            text = " ".join(document.text.split())
            text = text[:EXAMPLE_CHARS] + ("..." if len(text) > EXAMPLE_CHARS else "")
            examples.append({"source": document.source, "why": why, "text": text})

    def count(self, outcome: str, domain: str | None = None) -> Count:
        """Return the count of an outcome, of one domain or of all."""
        return _total(self.outcomes.get(outcome, {}), domain)

    def waterfall(self, domain: str | None = None) -> Iterator[tuple[str, Count]]:
        """Yield (`read` or rule or `train` or `heldout`, count); all but `read` add up to it."""
        yield "read", _total(self.read, domain)
        for outcome in (*RULES, *KEPT):
            yield outcome, self.count(outcome, domain)

    def to_json(self, problems: Problems) -> dict[str, Any]:
        """Return `report.json`."""
        return {
            "waterfall": {name: count.to_json() for name, count in self.waterfall()},
            "domains": {
                domain: {name: count.to_json() for name, count in self.waterfall(domain)}
                for domain in self.read
            },
            "rules": RULES,
            "examples": {rule: self.examples[rule] for rule in RULES if rule in self.examples},
            "problems": problems.to_json(),
        }

    def to_markdown(self, problems: Problems) -> str:
        """Return `report.md`."""
        lines = ["# What became of the text", "", *self._waterfall_table()]
        lines += ["", "## By domain", "", *self._domain_table()]
        lines += ["", "## Problems while reading", "", *_problem_lines(problems)]
        lines += ["", "## Examples of what was dropped"]
        for outcome in RULES:
            if examples := self.examples.get(outcome):
                lines += ["", f"### {outcome}: {RULES[outcome]}", ""]
                lines += [_example_line(example) for example in examples]
        return "\n".join(lines) + "\n"

    def _waterfall_table(self) -> Iterator[str]:
        yield "| step | documents | characters | share of documents |"
        yield "|---|---:|---:|---:|"
        num_read = max(_total(self.read, None).documents, 1)
        for name, count in self.waterfall():
            if count.documents or name in (*KEPT, "read"):
                label = f"dropped: {name}" if name in RULES else name
                share = f"{count.documents / num_read:.2%}"
                yield f"| {label} | {count.documents:,} | {count.characters:,} | {share} |"

    def _domain_table(self) -> Iterator[str]:
        rules = [rule for rule in RULES if self.count(rule).documents]
        columns = ["read", *rules, *KEPT]
        yield "| domain | " + " | ".join([*columns, "train bytes", "heldout bytes"]) + " |"
        yield "|---" + "|---:" * (len(columns) + 2) + "|"
        for domain in self.read:
            row = dict(self.waterfall(domain))
            cells = [f"{row[column].documents:,}" for column in columns]
            cells += [f"{row[kept].bytes:,}" for kept in KEPT]
            yield f"| {_cell(domain)} | " + " | ".join(cells) + " |"


def _total(counts: dict[str, Count], domain: str | None) -> Count:
    if domain is not None:
        return counts.get(domain, Count())
    total = Count()
    for count in counts.values():
        total.documents += count.documents
        total.characters += count.characters
        total.bytes += count.bytes
    return total


def _problem_lines(problems: Problems) -> Iterator[str]:
    if not problems.kinds:
        yield "None."
    for kind, problem in sorted(problems.kinds.items()):
        what = "left out" if kind in LOST else "mended"
        yield f"- {kind} ({(LOST | MENDED)[kind]}), {what}: {problem.count:,}"
        yield from (f"  - {_cell(example)}" for example in problem.examples)
        more = len(problem.places) - len(problem.examples)
        if more:
            yield f"  - … and {more:,} more, see {FILE}"


def _example_line(example: dict[str, str]) -> str:
    why = f" ({example['why']})" if example["why"] else ""
    return f"- `{example['source']}`{why}: {_cell(example['text'])}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
