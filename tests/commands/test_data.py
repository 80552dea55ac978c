from pathlib import Path

import numpy as np
import pytest

from cygnet import cli
from cygnet.commands.data import DataCommand
from cygnet.commands.token_counts import count_tokens
from cygnet.corpus.clean.rules import RULES
from cygnet.corpus.document import TRAIN
from cygnet.corpus.page import PAGE, write_page
from cygnet.corpus.read.problems import Problems
from cygnet.errors import UserError
from cygnet.files import read_jsonl
from cygnet.flags import parse
from cygnet.text.tokenizer import Tokenizer, train_tokenizer
from tests.corpus.dirty_corpus import prepared, table_of, write_rows


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("corpus"), evaluation=())


@pytest.fixture(scope="module")
def tokenizer(out: Path) -> Tokenizer:
    texts = [row["text"] for row in read_jsonl(out / TRAIN)]
    return train_tokenizer(texts, vocab_size=400)


def data(*arguments: object) -> None:
    cli.main(["data", *map(str, arguments)])


def test_rules_are_listed_with_the_thresholds_that_hold(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data("--rules", "--corpus.thresholds", "gopher_min_words=31", "c4_curly_bracket=off")
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    for rule in RULES:
        assert ", ".join(rule.sets) in shown[rule.name] and rule.why in shown[rule.name]
    assert " words < 31 " in shown["gopher_min_words"]
    assert " curly_brackets off " in shown["c4_curly_bracket"]
    assert " words > 100000 " in shown["gopher_max_words"]


def test_what_if_reads_the_finished_folder_alone(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    data("--out", out, "--what-if", "gopher_min_words=10", "c4_sentences=off")
    shown = capsys.readouterr().out
    assert "would come back" in shown
    assert f"cygnet data --data {out.parent / 'sources.yaml'} --out {out} " in shown
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}


def test_strict_stops_at_the_first_problem(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    write_rows(source, [f"{i} {i * i} {i**3} row {7 * i} of {99 - i}" for i in range(60)])
    source.write_text(source.read_text() + "{broken\n")
    for flag in ("--strict", "--corpus.strict"):
        with pytest.raises(SystemExit) as stop:
            data("--data", source, "--out", tmp_path / "out", flag, "--scale.workers", 1)
        assert stop.value.code == 2 and not (tmp_path / "out").exists()
    data("--data", source, "--out", tmp_path / "out", "--scale.workers", 1)


def test_the_flags_reach_the_settings() -> None:
    words = ["--data", "a", "b", "--scale.workers", "3", "--what-if", "a=1", "b=off"]
    command = parse(DataCommand, words, "cygnet data", "", ())
    assert command.data == ("a", "b") and command.scale.workers == 3
    assert command.what_if == ("a=1", "b=off") and not command.strict


def test_tokens_are_counted_exactly_where_there_are_few(out: Path, tokenizer: Tokenizer) -> None:
    table = table_of(out)
    counts = count_tokens(table, out, tokenizer)
    texts = [row["text"] for row in read_jsonl(out / TRAIN)]
    total = sum(len(tokenizer.encode(text)) for text in texts)
    assert counts[0].kind == "all" and counts[0].tokens == pytest.approx(total, abs=1e-6)
    assert counts[0].documents == counts[0].sampled == len(texts) and counts[0].error == 0
    assert counts[0].bytes == sum(len(text.encode()) for text in texts)
    for kind in ("domain", "language"):
        parts = [count for count in counts if count.kind == kind]
        for unit in ("documents", "bytes", "tokens", "sampled"):
            whole = getattr(counts[0], unit)
            assert sum(getattr(part, unit) for part in parts) == pytest.approx(whole)


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of one domain seen three times an epoch, one one and a half times, one once."""
    folder = tmp_path_factory.mktemp("weighted")
    rng = np.random.default_rng(5)
    for name, length in (("often", 9), ("half", 30), ("once", 80)):
        rows = [" ".join(map(str, rng.integers(0, 10**6, length))) for _ in range(60)]
        write_rows(folder / f"{name}.jsonl", rows)
    lines = [("often", "epochs: 3"), ("half", "weight: 1.5"), ("once", "weight: 1")]
    sources = "".join(f"- path: {name}.jsonl\n  {told}\n" for name, told in lines)
    (folder / "sources.yaml").write_text(sources)
    data("--data", folder / "sources.yaml", "--out", folder / "out", "--scale.workers", 1)
    return folder / "out"


def test_an_epochs_tokens_are_those_that_training_sees(
    weighted: Path, tokenizer: Tokenizer
) -> None:
    counts = {count.name: count for count in count_tokens(table_of(weighted), weighted, tokenizer)}
    for domain, least, most in (("often", 3, 3), ("half", 1, 2), ("once", 1, 1)):
        rows = [row for row in read_jsonl(weighted / TRAIN) if row["domain"] == domain]
        lengths = [len(tokenizer.encode(row["text"])) for row in rows]
        copies = [row.get("copies", 1) for row in rows]
        assert (min(copies), max(copies)) == (least, most)
        count = counts[domain]
        assert count.tokens == pytest.approx(sum(lengths))
        assert count.epoch_tokens == pytest.approx(np.dot(lengths, copies)) and not count.error
    parts = [count.epoch_tokens for count in counts.values() if count.kind == "domain"]
    assert counts[""].epoch_tokens == pytest.approx(sum(parts))
    assert counts[""].epoch_tokens > counts[""].tokens


def test_both_are_shown_where_they_differ(
    weighted: Path, tokenizer: Tokenizer, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tokenizer.save(tmp_path / "tokenizer")
    once = weighted.parent / "once.jsonl", tmp_path / "plain", False
    for source, folder, is_shown in ((weighted.parent / "sources.yaml", weighted, True), once):
        words = ("--data", source, "--out", folder, "--scale.workers", 1)
        data(*words, "--tokenizer", tmp_path / "tokenizer")
        total = count_tokens(table_of(folder), folder, tokenizer)[0]
        for shown in (capsys.readouterr().out, (folder / PAGE).read_text()):
            assert ("in an epoch" in shown) == is_shown
            assert (f"{total.epoch_tokens:,.0f}" in shown) and f"{total.tokens:,.0f}" in shown


def test_a_sample_is_within_its_standard_error(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    words = "river stone winter garden 1 2 3 4 5 zyx wvu".split()
    rows = [" ".join(rng.choice(words, rng.integers(8, 80))) + f" {i}" for i in range(700)]
    write_rows(tmp_path / "a.jsonl", rows)
    data("--data", tmp_path / "a.jsonl", "--out", tmp_path / "out", "--scale.workers", 1)
    table = table_of(tmp_path / "out")
    exact = count_tokens(table, tmp_path / "out", tokenizer)[0]
    deviations = []
    for seed in range(12):
        found = count_tokens(table, tmp_path / "out", tokenizer, sample=100, seed=seed)[0]
        assert found.bytes == exact.bytes and found.sampled < exact.sampled and found.error > 0
        deviations.append((found.tokens - exact.tokens) / found.error)
    assert max(map(abs, deviations)) < 4
    assert 0.4 < np.std(deviations) < 2


def test_a_text_that_is_not_the_tables_is_refused(
    out: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / TRAIN).write_bytes(b"")
    (tmp_path / TRAIN).unlink()
    import pyarrow

    with pyarrow.output_stream(str(tmp_path / TRAIN), compression="zstd") as file:
        file.write(b'{"text": "one"}\n')
    with pytest.raises(UserError, match="run `cygnet data` again"):
        count_tokens(table_of(out), tmp_path, tokenizer)


def test_a_tokenizer_brings_its_counts_onto_the_page(
    out: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    raw, built = out.parent / "sources.yaml", tmp_path / "out"
    data("--data", raw, "--out", built, "--scale.workers", 1)
    write_page(built / PAGE, table_of(built), Problems(), {}, "out")
    data("--data", raw, "--out", built, "--tokenizer", tmp_path / "tokenizer")
    shown = capsys.readouterr()
    assert "bytes per token" in shown.out and "up to date" in shown.err
    total = count_tokens(table_of(built), built, tokenizer)[0]
    told = total.told(False)[0]
    assert told in (built / PAGE).read_text() and told in shown.out
    with pytest.raises(SystemExit):
        data("--data", raw, "--out", built, "--tokenizer", tmp_path / "none")
    assert "no tokenizer.json" in capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the line that a command is refused with."""
    with pytest.raises(SystemExit) as stop:
        data(*arguments)
    told = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in told and told.startswith("cygnet: ")
    return told


def test_the_built_in_text_never_takes_the_place_of_ones_own(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "a.jsonl", [f"{i} {i * i} {i**3} row {7 * i}" for i in range(60)])
    out = tmp_path / "out"
    data("--data", tmp_path / "a.jsonl", "--out", out, "--scale.workers", 1)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    assert "was made of a.jsonl" in refused(capsys, "--out", out)
    assert "was made of a.jsonl" in refused(capsys, "--out", out, "--what-if")
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    tokenizer.save(tmp_path / "tokenizer")  # as the page says it
    data("--out", out, "--tokenizer", tmp_path / "tokenizer")
    assert "bytes per token" in capsys.readouterr().out
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert before.pop(PAGE) != after.pop(PAGE) and before == after
    told = refused(capsys, "--out", out, "--tokenizer", tmp_path / "tokenizer", "--strict")
    assert "was made of a.jsonl" in told


def test_no_flag_is_passed_over_in_silence(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "a.jsonl"
    write_rows(source, [f"{i} {i * i} {i**3} row {7 * i}" for i in range(60)])
    new = ("--data", source, "--out", tmp_path / "new")
    tried = ("--out", out, "--what-if", "gopher_min_words=10")
    for words, told in [
        ((*tried, "--corpus.rules", "web"), "--what-if tries thresholds alone"),
        ((*tried, "--tokenizer", "x"), "--what-if tries thresholds alone"),
        ((*new, "--corpus.paths", source), "--corpus.paths is another name of --data"),
        ((*new, "--corpus.repeated-in", 3), "--corpus.repeated-spans line"),
        ((*new, "--corpus.private"), "--corpus.privacy keep"),
        ((*new, "--corpus.quality-filter", tmp_path / "none"), "no such quality filter"),
        (("--data", source, "--out", source), "is a file; give a folder"),
    ]:
        assert told in refused(capsys, *words)
        assert not (tmp_path / "new").exists()
    data("--corpus.paths", source, "--out", tmp_path / "new", "--scale.workers", 1)
    assert "a.jsonl" in (tmp_path / "new" / "manifest.json").read_text()
