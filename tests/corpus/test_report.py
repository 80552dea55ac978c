import json
from pathlib import Path
from typing import Any

import pytest

from cygnet.corpus import dedup, facts
from cygnet.corpus.pipeline import parts_folder, prepare
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.report import Tally
from cygnet.corpus.scale import ScaleConfig
from cygnet.corpus.settings import DataConfig
from cygnet.corpus.table import KEPT, DocumentTable
from cygnet.corpus.what_if import what_if
from cygnet.files import read_jsonl
from tests.corpus.dirty_corpus import (
    decided,
    drawn_table,
    parts_of,
    prepared,
    settings,
    table_of,
    write_rows,
)


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
    of_email = {"email": {"documents": 5, "found": 5}}
    assert report["private"] == {"documents": 5, "found": 5, "by_kind": of_email, "privacy": "mask"}
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


@pytest.fixture(scope="module")
def footers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents with private data of several kinds, and a footer that all of them have."""
    folder = tmp_path_factory.mktemp("footers")
    telling = ["write to {}@mail.net and to {}.b@mail.net", "call +49 30 901820{}", "nothing {}"]
    footer = "This footer stands below every single document."
    rows = [
        f"{telling[i % 3].format(i + 10, i + 10)} now, {i * i} {i**3} {i**5}.\n{footer}"
        for i in range(60)
    ]
    write_rows(folder / "a.jsonl", rows)
    config = DataConfig(paths=(str(folder / "a.jsonl"),), repeated_spans="line")
    return prepare(config, folder / "out", ScaleConfig(workers=1))


def test_private_data_is_told_by_kind_and_never_shown(footers: Path) -> None:
    told = json.loads((footers / "report.json").read_text())["private"]
    assert told["by_kind"] == {
        "email": {"documents": 20, "found": 40},
        "phone": {"documents": 20, "found": 20},
    }
    assert told["found"] == 60 and told["documents"] == 40
    for name in ("report.md", "report.html"):
        shown = (footers / name).read_text()
        assert "[EMAIL]" in shown and "[PHONE]" in shown and "[IBAN]" not in shown
        assert "@mail.net" not in shown and "901820" not in shown
    assert "| [EMAIL] | e-mail addresses | 20 | 40 |" in (footers / "report.md").read_text()


def test_both_reports_tell_what_was_taken_out_of_documents(footers: Path, out: Path) -> None:
    report = json.loads((footers / "report.json").read_text())
    chars = len("This footer stands below every single document.") + 1
    told = {"documents": 59, "characters": 59 * chars, "spans": "line", "least": 10}
    assert report["repeated"] == told
    for name in ("report.md", "report.html"):
        shown = (footers / name).read_text()
        assert f"59 documents lost {59 * chars:,} characters" in shown
        assert "lines that stand in 10 documents or more" in shown
        assert "--corpus.repeated-spans" in (out / name).read_text()


def test_weights_are_seen_in_what_an_epoch_holds(tmp_path: Path, out: Path) -> None:
    for name in ("often", "once"):
        rows = [f"{name} {i} {i * i} {i**3} {i**5} and so on" for i in range(60)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    sources = "- path: often.jsonl\n  weight: 3\n- once.jsonl\n"
    (tmp_path / "sources.yaml").write_text(sources)
    config = DataConfig(paths=(str(tmp_path / "sources.yaml"),))
    folder = prepare(config, tmp_path / "out", ScaleConfig(workers=1))
    told = json.loads((folder / "report.json").read_text())["epoch"]
    rows = list(read_jsonl(folder / "train.jsonl.zst"))
    for name, copies in (("often", 3), ("once", 1)):
        mine = [len(row["text"].encode()) for row in rows if row["domain"] == name]
        assert told[name] == {
            "documents": len(mine), "bytes": sum(mine),
            "seen_documents": copies * len(mine), "seen_bytes": copies * sum(mine),
        }  # fmt: skip
    for name in ("report.md", "report.html"):
        assert "An epoch" in (folder / name).read_text()
        assert "An epoch" not in (out / name).read_text()


def test_private_data_that_documents_went_for_is_shown_nowhere(tmp_path: Path) -> None:
    rows = [f"{i} {i * i} {i**3} {i**5} and so on" for i in range(60)]
    rows += [f"write to jane{i}@mail.net on {i * 7} {i**3} now" for i in range(4)]
    write_rows(tmp_path / "a.jsonl", rows)
    config = DataConfig(paths=(str(tmp_path / "a.jsonl"),), privacy="drop")
    folder = prepare(config, tmp_path / "out", ScaleConfig(workers=1))
    for name in ("report.md", "report.html", "report.json"):
        shown = (folder / name).read_text()
        assert "write to [EMAIL] on" in shown and "mail.net" not in shown
    found = what_if(DocumentTable.load(folder, parts_folder(folder)), ["private=off"])
    shown = "\n".join(found.lines((), folder))
    assert "write to [EMAIL] on" in shown and "mail.net" not in shown
