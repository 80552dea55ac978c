import dataclasses
import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cygnet.commands.data import DataCommand
from cygnet.corpus.clean.rules import BY_NAME
from cygnet.corpus.dedup import REASONS
from cygnet.corpus.pipeline import parts_folder
from cygnet.corpus.table import DocumentTable
from cygnet.corpus.what_if import FIRST_RULES, WhatIf, what_if
from cygnet.errors import UserError
from cygnet.flags import parse
from tests.corpus.dirty_corpus import decided, prepared, table_of

CHANGES = st.lists(
    st.sampled_from(
        [
            "gopher_min_words=10", "gopher_min_words=45", "gopher_min_words=off",
            "gopher_hashes=0.02", "gopher_hashes=off", "c4_curly_bracket=3", "c4_sentences=off",
            "c4_sentences=8", "too_short=90", "too_short=160", "symbols=off",
            "character_runs=off", "gopher_alpha_words=0.5", "contaminated=off",
            "repeated_phrases=0.9", "code_max_line=off", "code_mean_line=10",
        ]
    ),
    max_size=5,
    unique_by=lambda change: change.partition("=")[0],
)  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def table(out: Path) -> DocumentTable:
    return table_of(out)


def is_rule(outcome: np.ndarray) -> np.ndarray:
    return np.isin(outcome.astype(str), list(FIRST_RULES))


@given(changes=CHANGES)
@hypothesis_settings(max_examples=40, deadline=None)
def test_rules_drop_what_they_drop_in_a_run_with_the_changed_thresholds(
    table: DocumentTable, out: Path, changes: list[str]
) -> None:
    guessed = what_if(table, changes)
    run = decided(out, guessed.config).outcome
    assert (is_rule(run) == is_rule(guessed.after)).all()
    assert (run[is_rule(run)] == guessed.after[is_rule(run)]).all()
    stays = [np.isin(words.astype(str), ("train", "heldout")) for words in (run, guessed.after)]
    assert (run == guessed.after)[stays[0] & stays[1]].all()  # on the same side
    if guessed.is_certain.all():
        assert (run == guessed.after).all()
    # Of what is certain, all that can differ is that a newcomer was found to be its original.
    differs = guessed.is_certain & (run != guessed.after)
    assert set(run[differs]) <= {*REASONS, "heldout_overlap", "train"}


@given(changes=CHANGES)
@hypothesis_settings(max_examples=20, deadline=None)
def test_all_documents_are_told_of_once(table: DocumentTable, changes: list[str]) -> None:
    guessed = what_if(table, changes)
    kept = np.isin(guessed.after.astype(str), ("train", "heldout"))
    assert kept.sum() == table.is_kept.sum() + len(guessed.comes_back) - len(guessed.goes)
    lines = list(guessed.lines(["raw"], Path("out")))
    if len(guessed.comes_back) or len(guessed.goes):
        total = next(line.split() for line in lines if line.startswith("all "))
        assert [int(cell.replace(",", "")) for cell in total[1:4]] == [
            table.is_kept.sum(), kept.sum(), kept.sum() - table.is_kept.sum()
        ]  # fmt: skip


def test_what_comes_back_is_held_out_by_its_place_as_in_a_run(
    table: DocumentTable, out: Path
) -> None:
    guessed = what_if(table, ["gopher_min_words=off", "c4_sentences=off"])
    sides = set(guessed.after[guessed.comes_back])
    assert sides == {"train", "heldout"}
    run = decided(out, guessed.config).outcome
    assert (run == guessed.after)[guessed.comes_back].all()


def test_without_a_change_nothing_changes(table: DocumentTable) -> None:
    guessed = what_if(
        table, [f"{r.name}={r.threshold}" for r in table.rules if r.number in table.numbers]
    )
    assert (guessed.after == table.outcome).all() and guessed.is_certain.all()


def test_a_copy_of_a_document_that_goes_comes_back(table: DocumentTable, out: Path) -> None:
    """Three equal rows, of which one is kept: where it breaks a rule, so do the others; a near
    copy that is longer does not."""
    near = np.flatnonzero(table.outcome == "near_duplicate")
    shorter = [
        i for i in near
        if table.numbers["chars"][table.duplicate_of[i]] < table.numbers["chars"][i]
    ]  # fmt: skip
    assert shorter
    one = shorter[0]
    least = table.numbers["chars"][table.duplicate_of[one]] + 1
    guessed = what_if(table, [f"too_short={least}"])
    assert guessed.after[table.duplicate_of[one]] == "too_short"
    assert guessed.after[one] in ("train", "heldout")
    assert decided(out, guessed.config).outcome[one] == guessed.after[one]


def test_a_higher_threshold_for_duplicates_is_a_bound(table: DocumentTable, out: Path) -> None:
    counts = []
    for threshold in (0.8, 0.9, 0.95):
        guessed = what_if(table, [f"near_duplicate_threshold={threshold}"])
        run = decided(out, guessed.config).outcome
        kept = np.isin(run.astype(str), ("train", "heldout")).sum()
        assert table.is_kept.sum() <= kept <= table.is_kept.sum() + len(guessed.comes_back)
        assert not len(guessed.goes)
        counts.append(len(guessed.comes_back))
    assert counts == sorted(counts) and counts[-1] > 5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("near_duplicate_threshold=0.4", "were not compared"),
        ("near_duplicate_threshold=x", "give a number"),
        ("heldout_share=0.1", "any other setting needs a run"),
        ("gopher_min_words", "NAME=NUMBER"),
        ("gopher_min_wods=3", "did you mean 'gopher_min_words'"),
        ("gopher_min_words=few", "no threshold"),
        ("private=0", "--corpus.privacy drop alone"),
        ("low_quality=0.4", "did not take the number 'quality'"),
    ],
)
def test_what_cannot_be_known_is_said(table: DocumentTable, change: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        what_if(table, [change])
    assert "\n" not in str(error.value)


def lines_of(guessed: WhatIf) -> str:
    return "\n".join(guessed.lines(["raw folder", "b.jsonl"], Path("out")))


def test_samples_show_what_comes_and_goes_and_why(table: DocumentTable) -> None:
    shown = lines_of(what_if(table, ["gopher_min_words=off", "c4_sentences=off", "too_short=60"]))
    assert "would come back, such as:" in shown and "would go, such as:" in shown
    assert "gopher_min_words, then train" in shown and "then too_short (chars is " in shown
    assert "no longer at hand" not in shown
    without = dataclasses.replace(table, text_of=lambda number: None)
    assert "no longer at hand" in lines_of(what_if(without, ["too_short=90"]))


@given(changes=CHANGES)
@hypothesis_settings(max_examples=20, deadline=None)
def test_the_command_that_is_told_has_the_changed_settings(
    table: DocumentTable, changes: list[str]
) -> None:
    guessed = what_if(table, changes)
    words = shlex.split(lines_of(guessed).splitlines()[-1])
    assert words[:2] == ["cygnet", "data"]
    understood = parse(DataCommand, words[2:], "cygnet data", "", ())
    assert understood.data == ("raw folder", "b.jsonl") and understood.out == Path("out")
    assert understood.corpus == guessed.config


def test_thresholds_of_the_run_stay_unless_they_are_changed(table: DocumentTable) -> None:
    config = what_if(table, ["gopher_min_words=7"]).config
    assert config.thresholds == ("symbols=0.38", "gopher_min_words=7")
    assert "gopher_min_words" in BY_NAME


def test_texts_of_another_run_are_not_shown(
    table: DocumentTable, out: Path, tmp_path: Path
) -> None:
    for number, (name, value) in enumerate((("max_chars", 400), ("privacy", "keep"))):
        other = prepared(tmp_path / name, **{name: value})
        mixed = DocumentTable.load(out, parts_folder(other))
        is_shown = np.array([mixed.text_of(i) is not None for i in range(len(table))])
        assert (is_shown == (table.numbers["private"] == 0)).all() if number else not is_shown.any()


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data folder"):
        DocumentTable.load(tmp_path)
