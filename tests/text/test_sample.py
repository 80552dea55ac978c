from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.errors import UserError
from cygnet.files import JsonlWriter
from cygnet.text.sample import SampleConfig, plan_sample, share_out
from cygnet.text.scripts import count_words, language_of


def write(path, rows):
    with JsonlWriter(path) as file:
        for row in rows:
            file.write(row)
    return path


def mixture():
    """Return 1 MB of English, 100 kB of Chinese and 10 kB of Greek, mixed."""
    sizes = (("en", "the soup is hot ", 1000), ("zh", "床前明月光", 100), ("el", "το φως ", 10))
    for number in range(1000):
        for domain, text, count in sizes:
            if number < count:
                words = text * (1000 // len(text.encode()))
                yield {"domain": domain, "text": f"{number} {words}"}


def taken(path, **options):
    sizes: Counter[str] = Counter()
    for row in plan_sample(path, SampleConfig(**options)).rows():
        sizes[row["domain"]] += len(row["text"].encode())
    return sizes


def test_a_small_file_is_taken_whole_in_its_order(tmp_path):
    path = write(tmp_path / "d.jsonl.zst", mixture())
    assert [*plan_sample(path, SampleConfig()).rows()] == [*mixture()]
    just_above = sum(len(row["text"].encode()) for row in mixture()) / 1e6
    assert sum(taken(path, sample_mb=just_above).values()) == just_above * 1e6


def test_a_large_file_is_sampled_in_balanced_shares_the_same_each_time(tmp_path):
    path = write(tmp_path / "d.jsonl.zst", mixture())
    flat = taken(path, sample_mb=0.2, balance=0)
    assert flat["el"] == sum(len(r["text"].encode()) for r in mixture() if r["domain"] == "el")
    assert flat["zh"] == pytest.approx(flat["en"], rel=0.35)
    assert sum(flat.values()) == pytest.approx(0.2e6, rel=0.15)
    as_is = taken(path, sample_mb=0.2, balance=1)
    assert as_is["en"] / as_is["zh"] == pytest.approx(10, rel=0.6)
    half = taken(path, sample_mb=0.2, balance=0.5)
    assert half["en"] / half["zh"] == pytest.approx(10**0.5, rel=0.4)
    again = [*plan_sample(path, SampleConfig(sample_mb=0.2)).rows()]
    assert again == [*plan_sample(path, SampleConfig(sample_mb=0.2)).rows()]
    shuffled = write(tmp_path / "s.jsonl.zst", reversed([*mixture()]))
    assert again == [*plan_sample(shuffled, SampleConfig(sample_mb=0.2)).rows()][::-1]


def test_copies_count_as_text_that_is_there_more_often(tmp_path):
    rows = [row | {"copies": 10 if row["domain"] == "zh" else 1} for row in mixture()]
    sizes = taken(write(tmp_path / "d.jsonl", rows), sample_mb=0.1, balance=1)
    assert sizes["zh"] == pytest.approx(sizes["en"], rel=0.35)


@given(
    st.dictionaries(
        st.integers(0, 9).map(lambda n: ("d", str(n))),
        st.tuples(st.floats(0.1, 1e6), st.integers(0, 10**6)),
        min_size=1,
    ),
    st.floats(0, 1e7),
)
def test_shares_add_up_and_no_one_gets_more_than_there_is(groups, total):
    weights = {group: weight for group, (weight, _) in groups.items()}
    limits = {group: limit for group, (_, limit) in groups.items()}
    amounts = share_out(total, weights, limits)
    assert amounts.keys() == groups.keys()
    assert all(amounts[group] <= limits[group] * (1 + 1e-9) for group in groups)
    assert sum(amounts.values()) == pytest.approx(min(total, sum(limits.values())), abs=1e-3)
    open_groups = [group for group in groups if amounts[group] < limits[group] * (1 - 1e-9)]
    units = [amounts[group] / weights[group] for group in open_groups]
    assert not units or max(units) == pytest.approx(min(units), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("wrong", [{"sample_mb": 0}, {"balance": 1.5}, {"balance": -1}])
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        SampleConfig(**wrong)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cook stirs.", "latin"), ("床前明月光 moon", "han"), ("これは日本語です", "kana"),
        ("Русский текст", "cyrillic"), ("한국어 글", "hangul"), ("نص عربي", "arabic"),
        ("12 + 3", "other"), ("ไทย", "thai"),
    ],
)  # fmt: skip
def test_the_script_stands_for_a_language_that_is_not_said(text, language):
    assert language_of({"text": text}) == language
    assert language_of({"text": text, "language": "xx"}) == "xx"


def test_words_are_runs_of_letters_and_characters_where_there_are_no_spaces():
    assert count_words("The cook's 12 soups, 床前 a_b") == 9
