"""Pairs and ratings of a person: recognised, checked line by line, parted without overlap."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.errors import UserError
from cygnet.files import read_json, read_jsonl
from cygnet.stages.preference.reward_data import (
    MOST_LEVELS,
    Scale,
    conversations,
    pairs_of,
    read_preferences,
    take_preferences,
)

Rows = list[dict[str, Any]]


def chat(*said: str) -> Rows:
    return [
        {"role": "user" if i % 2 == 0 else "assistant", "content": text}
        for i, text in enumerate(said)
    ]


def pair(n: int) -> dict[str, Any]:
    return {"prompt": f"question {n}", "chosen": f"good {n}", "rejected": f"bad {n}"}


def written(path: Path, rows: Rows) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def both(folder: Path) -> tuple[Rows, Rows]:
    train, heldout = (list(read_jsonl(folder / f"{n}.jsonl.zst")) for n in ("train", "heldout"))
    return train, heldout


def test_the_same_prompt_is_never_on_both_sides(tmp_path: Path) -> None:
    rows = [{**pair(n % 30), "rejected": f"bad {n}"} for n in range(120)]
    out = take_preferences([written(tmp_path / "a.jsonl", rows)], tmp_path / "out", 0.2)
    train, heldout = both(out)
    assert len(train) + len(heldout) == 120
    assert len(heldout) == 6 * 4
    asked = [{str(row["prompt"]) for row in side} for side in (train, heldout)]
    assert not asked[0] & asked[1]


def test_rated_conversations_of_the_chit_chat_form_are_recognised(tmp_path: Path) -> None:
    """`messages` and `ratings` by name, null where nobody rated."""
    rows: Rows = [
        {
            "messages": chat(f"hi {n % 40}", "hello", f"bye {n % 40}"),
            "ratings": {"witty": 1 + n % 40, "upbeat": 4 + n % 40},
        }
        for n in range(80)
    ]
    rows += [{"messages": chat("hm", "ja"), "ratings": None}] * 3
    rows += [{"messages": chat("is anyone there?"), "ratings": {"witty": 1}}] * 2
    path = tmp_path / "chats.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    out = take_preferences([str(path)], tmp_path / "out", 0.1)
    train, heldout = both(out)
    assert len(train) == 72
    assert len(heldout) == 8  # four conversations, each of them twice
    said = [{json.dumps(row["messages"]) for row in side} for side in (train, heldout)]
    assert not said[0] & said[1]
    first = next(row for row in train + heldout if row["source"] == "chats.jsonl.gz:1")
    assert first["rating"] == 2.5
    assert read_json(out / "manifest.json")["left_out"] == {
        "without a rating": 3, "in which no assistant speaks": 2,
    }  # fmt: skip


def test_rated_answers_to_one_prompt_stay_together(tmp_path: Path) -> None:
    rows: Rows = [{"prompt": f"q {n % 10}", "answer": f"a {n}", "rating": n % 3} for n in range(60)]
    rows += [{"prompt": chat(f"q {n}"), "answer": "as messages", "rating": 2} for n in range(10)]
    out = take_preferences([written(tmp_path / "a.jsonl", rows)], tmp_path / "out", 0.3)
    train, heldout = both(out)
    asked = [{row["messages"][0]["content"] for row in side} for side in (train, heldout)]
    assert len(asked[1]) == 3
    assert not asked[0] & asked[1]
    assert len(heldout) == 21
    assert conversations(heldout[0]) == [heldout[0]["messages"]]


def test_pairs_of_equal_sides_are_left_out_and_counted(tmp_path: Path) -> None:
    equal = {"prompt": "q", "chosen": "same", "rejected": "same"}
    rows = [*(pair(n) for n in range(4)), equal]
    out = take_preferences([written(tmp_path / "a.jsonl", rows)], tmp_path / "out", 0.25)
    assert read_json(out / "manifest.json")["left_out"] == {"of two equal sides": 1}
    assert len([*both(out)[0], *both(out)[1]]) == 4
    with pytest.raises(UserError, match="nothing left to learn from"):
        take_preferences([written(tmp_path / "b.jsonl", [equal])], tmp_path / "out", 0.25)
    assert len(both(out)[0]) == 3  # what was there stays


def test_margin_and_kind_of_a_pair_are_kept(tmp_path: Path) -> None:
    rows = [{**pair(n), "margin": 0.5, "why": "clearer", "more": 1} for n in range(3)]
    out = take_preferences([written(tmp_path / "a.jsonl", rows)], tmp_path / "out", 0.3)
    (row, *_) = read_preferences(out / "train.jsonl.zst")
    assert (row["margin"], row["why"]) == (0.5, "clearer")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a\.jsonl:3: not JSON"),
        ("[1]", r"a\.jsonl:3: list given, an object wanted"),
        ('{"text": "x"}', r"a\.jsonl:3: neither a pair .* nor rated"),
        ('{"prompt": "q", "chosen": "x"}', r"a\.jsonl:3: `rejected` is missing"),
        ('{"chosen": "y", "rejected": "x"}', r"a\.jsonl:3: `prompt` is missing"),
        (json.dumps({**pair(1), "margin": "big"}), r"`margin` is \"big\"; a number is wanted"),
        (json.dumps({**pair(1), "margin": -1}), r"a\.jsonl:3: `margin` is -1; .* below zero"),
        ('{"prompt": "q", "answer": "a", "rating": true}', r"`rating` is true; a number"),
        ('{"prompt": "q", "answer": "a", "rating": NaN}', r"`rating` is NaN; a number"),
        ('{"prompt": "q", "answer": "a", "ratings": {"x": "1"}}', r"`ratings.x` is \"1\""),
        ('{"rating": 3}', r"a\.jsonl:3: rated, but neither"),
        ('{"prompt": "q", "answer": "a", "rating": 3}', "pairs and ratings together"),
    ],
)
def test_a_damaged_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    rows = "\n".join([json.dumps(pair(1)), "", line])
    (tmp_path / "a.jsonl").write_text(rows)
    with pytest.raises(UserError, match=message):
        take_preferences([str(tmp_path / "a.jsonl")], tmp_path / "out", 0.2)
    assert not (tmp_path / "out").exists()


def test_what_teaches_nothing_is_refused(tmp_path: Path) -> None:
    same = [{"prompt": f"q {n}", "answer": "a", "rating": 5} for n in range(9)]
    with pytest.raises(UserError, match="all 9 ratings are 5"):
        take_preferences([written(tmp_path / "a.jsonl", same)], tmp_path / "out", 0.2)
    with pytest.raises(UserError, match="at least two different prompts"):
        take_preferences([written(tmp_path / "b.jsonl", [pair(1)] * 4)], tmp_path / "out", 0.2)
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        take_preferences([str(tmp_path / "none.jsonl")], tmp_path / "out", 0.2)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="nothing left to learn from"):
        take_preferences([str(tmp_path / "empty.jsonl")], tmp_path / "out", 0.2)


@given(
    st.lists(st.floats(-100, 100) | st.integers(0, 3), min_size=2, max_size=200).filter(
        lambda ratings: len(set(ratings)) > 1
    )
)
def test_levels_keep_the_order_and_each_occurs(ratings: list[float]) -> None:
    levels = Scale.of(ratings).levels(ratings)
    assert sorted(set(levels)) == list(range(max(levels) + 1))
    assert 2 <= len(set(levels)) <= min(MOST_LEVELS, len(set(ratings)))
    ordered = sorted(zip(ratings, levels, strict=True))
    assert [level for _, level in ordered] == sorted(levels)
    if len(set(ratings)) <= MOST_LEVELS:
        assert len(set(levels)) == len(set(ratings))


def test_nearly_all_at_the_top_still_are_two_levels() -> None:
    ratings = [float(n) for n in range(20)] + [50.0] * 5000
    assert set(Scale.of(ratings).levels(ratings)) == {0, 1}


@given(st.lists(st.integers(0, 4), max_size=60))
def test_pairs_share_no_conversation_and_their_ratings_differ(ratings: list[float]) -> None:
    pairs = pairs_of(ratings, range(len(ratings)))
    used = [place for both in pairs for place in both]
    assert len(used) == len(set(used))
    assert all(ratings[better] > ratings[worse] for better, worse in pairs)
