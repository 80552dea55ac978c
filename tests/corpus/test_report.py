import json
from pathlib import Path
from typing import Any

import pytest

from cygnet.corpus import dedup, facts
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.report import Tally
from cygnet.corpus.table import KEPT
from tests.corpus.dirty_corpus import decided, drawn_table, parts_of, prepared, settings, table_of


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def test_the_counts_of_each_rule_agree_with_what_became_of_the_documents(
    report: dict[str, Any],
) -> None:
    dropped = {name: count["documents"] for name, count in report["waterfall"].items()}
    total = dropped.pop("read")
    counts = report["rule_counts"]
    for name, row in counts.items():
        assert row["first"] == dropped[name]
        assert total >= row["held"] >= row["breaks"] >= row["first"] >= row["alone"] >= 0
    others = ("not_drawn", *dedup.REASONS, *KEPT)
    assert sum(row["first"] for row in counts.values()) + sum(map(dropped.get, others)) == total
    assert sum(row["breaks"] > 0 for row in counts.values()) >= 6
    assert any(row["breaks"] > row["first"] > row["alone"] for row in counts.values())


def test_alone_is_what_would_pass_all_other_rules(out: Path, report: dict[str, Any]) -> None:
    table = table_of(out)
    for name, row in report["rule_counts"].items():
        others = tuple(r for r in table.rules if r.name not in (name, "heldout_overlap"))
        passes = ~sum(table.broken(others).values()).astype(bool)
        if name != "heldout_overlap":
            assert row["alone"] == ((table.outcome == name) & passes).sum()


def test_every_distribution_adds_up_to_all_documents(report: dict[str, Any]) -> None:
    read = report["waterfall"]["read"]
    kept = [report["waterfall"][name] for name in KEPT]
    for rows in report["by"].values():
        for unit in ("documents", "characters", "bytes"):
            assert sum(row["read"][unit] for row in rows.values()) == read[unit]
            assert sum(row["kept"][unit] for row in rows.values()) == sum(k[unit] for k in kept)
    assert sum(report["lengths"]["read"]) == read["documents"]
    assert sum(report["lengths"]["kept"]) == sum(k["documents"] for k in kept)
    duplicates = report["duplicates"]
    assert sum(duplicates["by_size"].values()) == duplicates["clusters"] > 0
    assert duplicates["largest"] == 3
    assert report["private"] == {"documents": 5, "found": 5}
    assert (
        sum(report["contaminated_by"].values())
        == report["waterfall"]["contaminated"]["documents"]
        > 0
    )


@pytest.mark.parametrize("most", [1, 5, 36, 37, 40])
def test_small_shares_are_put_together_and_none_is_lost(most: int) -> None:
    table = drawn_table(400, 37, "domain ")
    found = facts.shares(table, "domain", most)
    assert len(found) == min(most + 1, 37)
    assert sum(share.read.documents for share in found) == 400
    assert sum(share.kept.bytes for share in found) == table.bytes[table.is_kept].sum()
    sizes = [share.read.bytes for share in found[:most]]
    assert sizes == sorted(sizes, reverse=True)


def test_the_thresholds_told_are_those_of_the_run(out: Path) -> None:
    changed = settings(out.parent, thresholds=("gopher_min_words=31",), min_chars=33)
    tally = Tally.of(parts_of(out), decided(out, changed), changed)
    report = tally.to_json(Problems())
    assert report["rules"]["gopher_min_words"].endswith("(words < 31)")
    assert report["rules"]["too_short"].endswith("(chars < 33)")
    assert report["rule_counts"]["too_short"]["threshold"] == 33
    assert "few words (words < 31)" in tally.to_markdown(Problems())


def test_markdown_and_json_tell_the_same(out: Path, report: dict[str, Any]) -> None:
    shown = (out / "report.md").read_text()
    for name, row in report["rule_counts"].items():
        counts = " | ".join(f"{row[key]:,}" for key in ("held", "breaks", "first", "alone"))
        line = f"| {name} | {report['rules'][name]} | {counts} |"
        assert (line in shown) == (row["breaks"] > 0)
    for word, row in report["by"]["kind"].items():
        counts = [f"{row[side]['documents']:,}" for side in ("read", "kept")]
        assert f"| {word} | {' | '.join(counts)} |" in shown
