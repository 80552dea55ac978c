"""What became of every document: counts by rule and domain, with examples, as JSON and Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cygnet.corpus import dedup, facts
from cygnet.corpus.clean.privacy import KINDS
from cygnet.corpus.clean.rules import BY_NAME, Rule
from cygnet.corpus.decide import REASONS, Decision, Parts
from cygnet.corpus.facts import Count
from cygnet.corpus.part_writer import CONTAMINATED
from cygnet.corpus.read.problems import FILE, LOST, MENDED, Problems, deed
from cygnet.corpus.settings import DataConfig
from cygnet.corpus.table import KEPT, DocumentTable

MAX_EXAMPLES = 3
EXAMPLE_CHARS = 160
ROW_SIDES = ("read", "kept")
MAX_SHARES = 40
"""Languages, licences... that are told one by one."""
COLUMNS = {"language": "language", "kind": "kind of file", "licence": "licence"}
"""What documents are counted by beside their domain, and how it is called."""
_WHY = {**{name: rule.told for name, rule in BY_NAME.items()}, **REASONS, **dedup.REASONS}
RULES = {name: _WHY[name] for name in facts.REASON_NAMES}
"""Every reason a document is dropped for, in the order in which they are tried."""


@dataclass(slots=True)
class Tally:
    """Counts each document once as read and once under its outcome (a rule, `train`, `heldout`)."""

    read: dict[str, Count] = field(default_factory=dict)
    outcomes: dict[str, dict[str, Count]] = field(default_factory=dict)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=lambda: dict(RULES))
    """What each reason means, with the thresholds of the run."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The further parts of `report.json`."""

    @classmethod
    def of(cls, parts: Parts, decision: Decision, config: DataConfig | None = None) -> Tally:
        """Count what was decided; the first documents of each reason are its examples.

        Args:
            parts: the documents.
            decision: what becomes of each.
            config: the settings of the run, whose thresholds are told.
        """
        config = config or DataConfig()
        table = DocumentTable.of(parts, decision, config)
        tally = cls(told=told(config.rules_in_force()))
        tally._count(table)
        tally.facts = _facts_of(table, decision)
        for name in table.outcomes.names:
            if name in RULES:
                for number in np.flatnonzero(decision.outcome == name)[:MAX_EXAMPLES].tolist():
                    tally._add_example(name, table, decision, number)
        return tally

    def _count(self, table: DocumentTable) -> None:
        domain, outcome = table.category("domain"), table.outcomes
        cells = domain.codes * len(outcome.names) + outcome.codes
        shape = len(domain.names), len(outcome.names)
        counts = [
            np.bincount(cells, values, minlength=shape[0] * shape[1])
            .reshape(shape)
            .astype(np.int64)
            for values in (np.ones(len(table)), table.column("chars"), table.bytes)
        ]
        for i, name in enumerate(domain.names):
            self.read[name] = Count(*(int(count[i].sum()) for count in counts))
            for j, result in enumerate(outcome.names):
                if counts[0][i, j]:
                    cell = Count(*(int(count[i, j]) for count in counts))
                    self.outcomes.setdefault(result, {})[name] = cell

    def _add_example(
        self, reason: str, table: DocumentTable, decision: Decision, number: int
    ) -> None:
        why = ""
        if number in decision.duplicates:
            duplicate = decision.duplicates[number]
            why = f"{duplicate.similarity:.2f} like {table.word('source', duplicate.of)}"
        elif reason == "contaminated":
            item, passage = (table.word(name, number) for name in CONTAMINATED)
            why = f"{shortened(passage)!r} stands in {item}"
        elif reason in BY_NAME:
            value = decision.numbers[BY_NAME[reason].number][number]
            why = f"{BY_NAME[reason].number} is {value:.4g}"
        self.examples.setdefault(reason, []).append(
            {
                "source": table.word("source", number),
                "why": why,
                "text": shortened(table.excerpt(number) or ""),
            }
        )

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
            "rules": self.told,
            **self.facts,
            "examples": {rule: self.examples[rule] for rule in RULES if rule in self.examples},
            "problems": problems.to_json(),
        }

    def to_markdown(self, problems: Problems) -> str:
        """Return `report.md`."""
        lines = ["# What became of the text", "", *self._waterfall_table()]
        lines += ["", "## By domain", "", *self._domain_table()]
        if self.facts["epoch"]:
            lines += ["", "## An epoch", "", *self._epoch_table()]
        lines += ["", "## By rule", "", *self._rule_table()]
        for name, label in COLUMNS.items():
            lines += ["", f"## By {label}", "", *self._share_table(name, label)]
        lines += [
            "",
            "## Duplicates, repeated lines, evaluation text",
            "",
            *self._duplicate_lines(),
        ]
        lines += ["", "## Private data", "", *self._private_lines()]
        lines += ["", "## Problems while reading", "", *_problem_lines(problems)]
        lines += ["", "## Examples of what was dropped"]
        for outcome in RULES:
            if examples := self.examples.get(outcome):
                lines += ["", f"### {outcome}: {self.told[outcome]}", ""]
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

    def _epoch_table(self) -> Iterator[str]:
        yield "A document is seen as often as the weight of its source says."
        yield "\n| domain | documents | seen | bytes | seen | share of the epoch |"
        yield "|---" + "|---:" * 5 + "|"
        rows = {name: facts.Epoch(**row) for name, row in self.facts["epoch"].items()}
        total = sum(row.seen_bytes for row in rows.values())
        for name, row in rows.items():
            counts = (row.documents, row.seen_documents, row.bytes, row.seen_bytes)
            cells = " | ".join(f"{count:,}" for count in counts)
            yield f"| {_cell(name)} | {cells} | {row.seen_bytes / total:.1%} |"

    def _rule_table(self) -> Iterator[str]:
        yield "| rule | drops a document with | held against | break it | go because of it |" + (
            " break no other |"
        )
        yield "|---|---" + "|---:" * 4 + "|"
        for name, row in self.facts["rule_counts"].items():
            if row["breaks"]:
                counts = [f"{row[key]:,}" for key in ("held", "breaks", "first", "alone")]
                yield f"| {name} | {_cell(self.told[name])} | " + " | ".join(counts) + " |"
        quiet = [n for n, row in self.facts["rule_counts"].items() if not row["breaks"]]
        if quiet:
            yield f"\nBroken by no document: {', '.join(quiet)}."

    def _share_table(self, name: str, label: str) -> Iterator[str]:
        yield f"| {label} | documents read | kept | bytes read | kept |"
        yield "|---" + "|---:" * 4 + "|"
        for word, row in self.facts["by"][name].items():
            cells = [
                f"{row[side][unit]:,}" for unit in ("documents", "bytes") for side in ROW_SIDES
            ]
            yield f"| {_cell(word or 'not known')} | " + " | ".join(cells) + " |"

    def _duplicate_lines(self) -> Iterator[str]:
        duplicates = self.facts["duplicates"]
        yield f"- {duplicates['clusters']:,} documents stand for duplicates that went;" + (
            f" the most for {max(duplicates['largest'] - 1, 0):,}"
        )
        yield f"- {facts.Repeated(**self.facts['repeated']).told}"
        for item, count in self.facts["contaminated_by"].items():
            yield f"- {count:,} went because of {_cell(item)}"

    def _private_lines(self) -> Iterator[str]:
        private = self.facts["private"]
        yield f"{private['found']:,} finds in {private['documents']:,} documents" + (
            f"; private data is {facts.PRIVACY_TOLD[private['privacy']]}."
        )
        if private["by_kind"]:
            yield "\n| kind | what | documents | finds |"
            yield "|---|---|---:|---:|"
        for kind, row in private["by_kind"].items():
            what = f"[{kind.upper()}] | {_cell(KINDS[kind])}"
            yield f"| {what} | {row['documents']:,} | {row['found']:,} |"


def told(rules: Sequence[Rule]) -> dict[str, str]:
    """Return what each of `RULES` means, with the thresholds that some rules have."""
    return RULES | {rule.name: rule.told for rule in rules}


def _facts_of(table: DocumentTable, decision: Decision) -> dict[str, Any]:
    found = facts.clusters(table)
    lengths = facts.lengths(table)
    documents, finds = facts.private_data(table)
    return {
        "rule_counts": {
            count.rule.name: count.to_json() for count in facts.rule_counts(table, decision.broken)
        },
        "by": {
            column: {
                share.name: {"read": share.read.to_json(), "kept": share.kept.to_json()}
                for share in facts.shares(table, column, MAX_SHARES)
            }
            for column in COLUMNS
        },
        "epoch": {name: asdict(share) for name, share in facts.epoch(table).items()},
        "lengths": {"read": lengths.read, "kept": lengths.kept},
        "duplicates": {
            "clusters": len(found.kept),
            "largest": int(found.sizes.max(initial=0)),
            "by_size": dict(found.by_size()),
        },
        "repeated": asdict(facts.repeated(table)),
        "private": {
            "documents": documents,
            "found": finds,
            "by_kind": {
                kind: {"documents": each[0], "found": each[1]}
                for kind, each in facts.private_by_kind(table).items()
            },
            "privacy": table.config.privacy,
        },
        "contaminated_by": dict(facts.contaminated_by(table, MAX_SHARES)),
    }


def shortened(text: str, most: int = EXAMPLE_CHARS) -> str:
    """Return the beginning of a text, on one line."""
    text = " ".join(text[: 4 * most].split()) + ("" if len(text) <= 4 * most else " ...")
    return text[:most] + ("..." if len(text) > most else "")


def removed_rows(parts: Parts, decision: Decision) -> Iterator[dict[str, Any]]:
    """Yield a row for each document that goes: where it was read, why, and because of what."""
    sources = parts.column("source")
    contaminated = [parts.column(name) for name in CONTAMINATED if parts.has(name)]
    for number in np.flatnonzero(~np.isin(decision.outcome, KEPT)).tolist():
        reason = str(decision.outcome[number])
        row: dict[str, Any] = {"source": sources[number], "reason": reason}
        if number in decision.duplicates:
            duplicate = decision.duplicates[number]
            row |= {"of": sources[duplicate.of], "similarity": round(duplicate.similarity, 4)}
        elif reason == "contaminated" and contaminated:
            row["of"], row["passage"] = (column[number] for column in contaminated)
        elif reason in BY_NAME:
            rule = BY_NAME[reason]
            value = float(decision.numbers[rule.number][number])
            row |= {"number": rule.number, "value": round(value, 4)}
            if rule.number == "heldout_overlap":
                row["of"] = sources[decision.most_like[number]]
        yield row


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
        yield f"- {kind} ({(LOST | MENDED)[kind]}), {deed(kind)}: {problem.count:,}"
        yield from (f"  - {_cell(example)}" for example in problem.examples)
        more = len(problem.places) - len(problem.examples)
        if more:
            yield f"  - … and {more:,} more, see {FILE}"


def _example_line(example: dict[str, str]) -> str:
    why = f" ({example['why']})" if example["why"] else ""
    return f"- `{example['source']}`{why}: {_cell(example['text'])}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
