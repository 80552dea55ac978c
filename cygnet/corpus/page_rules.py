"""The part of the report's page that tells of the rules: counts, histograms, samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus import drawings, facts, markup
from cygnet.corpus.clean.rules import RULES, Rule
from cygnet.corpus.facts import RuleCount
from cygnet.corpus.part_writer import CONTAMINATED
from cygnet.corpus.table import DocumentTable

MAX_SAMPLES = 3


def rule_sections(table: DocumentTable, name: str) -> Iterator[str]:
    """Yield the markup.

    Args:
        table: all documents.
        name: of the data folder, for the commands.
    """
    found = table.broken(table.rules)
    counts = facts.rule_counts(table, found)
    yield "<h2>Rules</h2>\n<p>A rule drops a document whose number lies beyond its threshold. "
    yield "Breaks: by itself. Drops: as the first that the document breaks. Alone: breaks no other "
    yield "rule, so that it would stay without this one, unless it is a duplicate.</p>\n"
    broken = [count for count in counts if count.breaks]
    if broken:
        rows = [_row(count) for count in broken]
        headings = ("rule", "held against", "breaks", "drops", "alone", "drops a document with")
        yield markup.table(headings, rows, words=(5,))
    quiet = [count for count in counts if not count.breaks]
    if quiet:
        yield markup.note(f"Broken by no document: {', '.join(c.rule.name for c in quiet)}.")
    held = {count.rule.name for count in counts}
    left = [rule.name for rule in RULES if rule.name not in held]
    if left:
        told = "Not held against any document here (another set of rules, switched off, or a "
        yield markup.note(f"{told}number that was not asked for): {', '.join(left)}.")
    if counts:
        yield "<h3>Each rule, with samples</h3>\n" + markup.note(
            "Heights are square roots of counts. The dashed line is the threshold; what lies "
            "beyond an end of the axis is counted at that end."
        )
    sections = {
        count: _section(table, count, found[count.rule.name], name)
        for count in sorted(counts, key=lambda count: -count.first)
    }
    yield from (section for count, section in sections.items() if count.first)
    others = [section for count, section in sections.items() if not count.first]
    if others:
        told = "what they are held against, and what lies nearest to their thresholds"
        yield markup.fold(f"{len(others)} rules that drop nothing", told, "".join(others), True)


def _row(count: RuleCount) -> list[str]:
    counts = count.held, count.breaks, count.first, count.alone
    return [count.rule.name, *(f"{value:,}" for value in counts), count.rule.told]


def _section(table: DocumentTable, count: RuleCount, breaks: NDArray[np.bool_], name: str) -> str:
    rule = count.rule
    values = table.numbers[rule.number]
    shown = np.flatnonzero(table.held_to(rule) & np.isfinite(values))
    body = drawings.rule_histogram(
        values[shown], breaks[shown], rule.threshold, f"{rule.number}: how many documents"
    )
    body += markup.note(
        f"{rule.told}. {count.held:,} documents are held to it, {count.breaks:,} break it, "
        f"{count.first:,} go because of it, {count.alone:,} break no other rule."
    )
    body += "".join(_samples(table, rule, shown))
    command = f"cygnet data --out {name} --what-if {rule.name}={rule.threshold:g}"
    body += (
        f'<p class="small soft">Another threshold, tried in seconds: '
        f"<code>{markup.text(command, 300)}</code></p>\n"
    )
    return markup.fold(rule.name, f"{count.first:,} dropped · {rule.told}", body, not count.first)


def _samples(table: DocumentTable, rule: Rule, shown: NDArray[np.int64]) -> Iterator[str]:
    values = table.numbers[rule.number]
    went = shown[table.outcome[shown] == rule.name]
    went = went[np.argsort(np.abs(values[went] - rule.threshold), kind="stable")]
    # The nearest to the threshold, the middle one and the farthest tell what a rule does.
    for number in dict.fromkeys(went[[0, len(went) // 2, -1]].tolist() if len(went) else []):
        yield _sample(table, rule, number, "went")
    stayed = shown[table.is_kept[shown]]
    distance = np.abs(values[stayed] - rule.threshold)
    if not len(stayed) or np.median(distance) == distance.min():
        return  # most lie there: near says nothing
    count = min(MAX_SAMPLES, len(stayed))
    nearest = np.argpartition(distance, count - 1)[:count]
    for number in stayed[nearest[np.argsort(distance[nearest], kind="stable")]].tolist():
        yield _sample(table, rule, number, "stayed")


def _sample(table: DocumentTable, rule: Rule, number: int, kind: str) -> str:
    value = float(table.numbers[rule.number][number])
    why = f"{'dropped' if kind == 'went' else 'kept'}: {rule.number} is {value:,.4g}"
    if rule.name == "contaminated" and table.has("contaminated_by") and value:
        item, passage = (table.word(name, number) for name in CONTAMINATED)
        why += f" · in {item}: {passage}"
    return markup.sample(table.word("source", number), why, table.excerpt(number), kind)
