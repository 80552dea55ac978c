import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.corpus.read import problems as module
from cygnet.corpus.read.problems import LOST, MENDED, Problems
from cygnet.errors import UserError

ADDED = st.lists(
    st.tuples(st.sampled_from([*LOST, *MENDED]), st.text(max_size=5), st.text(max_size=5))
)


def of(added: list[tuple[str, str, str]]) -> Problems:
    problems = Problems()
    for kind, where, why in added:
        problems.add(kind, where, why)
    return problems


@given(ADDED, ADDED, st.integers(0, 4))
def test_merged_readings_are_one_reading(
    first: list[tuple[str, str, str]], second: list[tuple[str, str, str]], named: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "NAMED", named)
        merged = of(first)
        merged.merge(of(second))
        assert merged == of(first + second)


@given(ADDED)
def test_problems_travel_as_json(added: list[tuple[str, str, str]]) -> None:
    problems = of(added)
    state = json.loads(json.dumps(problems.to_state()))
    assert Problems.from_state(state) == problems
    "".join(row["where"] for row in problems.rows()).encode()


def test_strict_problems_stop_at_the_first_and_name_it() -> None:
    problems = Problems.from_state(Problems(strict=True).to_state())
    said = r"^a\.txt:3: broken row \(not JSON.*\): no value; .*--strict"
    with pytest.raises(UserError, match=said):
        problems.add("broken row", "a.txt:3", "no value")
    with pytest.raises(UserError, match=r"^b\.txt: other encoding"):
        problems.add("other encoding", "b.txt")


def test_names_in_no_utf8_can_be_written_down() -> None:
    problems = of([("unreadable", "caf\udce9.txt", "\ud800")])
    assert problems.kinds["unreadable"].places == [("caf?.txt", "?")]
