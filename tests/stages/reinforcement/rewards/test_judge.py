"""A reward that fails drops its answer with a line, and nothing it does reaches the training."""

import math
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from cygnet.errors import UserError
from cygnet.stages.reinforcement.rewards.judge import Judge, check_failures
from cygnet.train.guards import RunStopped

REWARDS = """
import os, sys, time
import numpy

def good(answer, row):
    print("a reward may print")
    return numpy.float32(len(answer))

def raises(answer, row):
    return 1 / 0

def nan(answer, row):
    return float("nan")

def infinite(answer, row):
    return float("inf")

def text(answer, row):
    return "good"

def nothing(answer, row):
    pass

def loops(answer, row):
    while True:
        pass

def leaves(answer, row):
    os._exit(3)

def exits(answer, row):
    sys.exit()

def gigabytes(answer, row):
    return "x" * 10_000_000

def large(answer, row):
    return 10**400

def nearly_largest(answer, row):
    return 1e308

def takes_memory(answer, row):
    return len(bytearray(12 << 30))

def seen(answer, row):
    return row["messages"][-1]["content"] == answer

def one(answer):
    return 1

number = 1
"""
ROW = {"prompt": [{"role": "user", "content": "Write a poem."}], "form": "五言绝句"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "mine.py"
    path.write_text(REWARDS)
    return path


@pytest.fixture
def failing(file: Path) -> Iterator[Judge]:
    names = "raises nan infinite text nothing loops leaves exits gigabytes large takes_memory"
    with Judge([f"{file}:{name}" for name in ("good", *names.split())], timeout_s=1.0) as judge:
        yield judge


def test_rewards_are_weighted_and_summed(file: Path) -> None:
    with Judge([f"{file}:good=0.5", "length=2"]) as judge:
        verdict = judge.judge("x" * 500, ROW)
    assert verdict.parts == {f"{file}:good": 500, "length": -0.5}
    assert verdict.total == 249 and verdict.failure is None


def test_a_row_may_name_which_rewards_count_for_it(file: Path) -> None:
    own, other = f"{file}:good", f"{file}:seen"
    with Judge(["length", "poem_form", own]) as judge:
        named = {**ROW, "rewards": ["poem_form"]}
        assert set(judge.judge("x", named).parts) == {"length", "poem_form", own}
        named["rewards"] = ["recipe"]  # a penalty and one's own rule are for every row
        assert set(judge.judge("x", named).parts) == {"length", own}
        assert "rhyme" not in judge.judge("x", named).parts
        named["rewards"] = [other]
        assert set(judge.judge("x", named).parts) == {"length"}
    with Judge(["poem_form", "rhyme", "recipe"]) as judge:  # a poem may be judged by its rhyme, too
        parts = judge.judge("x", {**ROW, "rewards": ["poem_form"]}).parts
        assert set(parts) == {"poem_form", "rhyme"}
    with Judge(["poem_form"]) as judge:
        assert "none of the row's rewards" in str(judge.judge("x", named).failure)


def test_the_conversation_is_shown(file: Path) -> None:
    with Judge([f"{file}:seen"]) as judge:
        assert judge.judge("hi", ROW, [{"role": "assistant", "content": "hi"}]).total == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "ZeroDivisionError: division by zero (mine.py, line 10)"),
        ("nan", "gave nan"),
        ("infinite", "gave inf"),
        ("large", "gave a number that is too large"),
        ("takes_memory", "asked for more memory"),
        ("text", "gave 'good', no number"),
        ("nothing", "gave None, no number"),
        ("loops", "took longer than 1 s"),
        ("leaves", "its process ended (exit code 3)"),
        ("exits", "SystemExit"),
        ("gigabytes", "gave more than 1,048,576 bytes"),
    ],
)
def test_a_failing_reward_drops_the_answer_and_the_next_is_judged(
    failing: Judge, file: Path, name: str, said: str
) -> None:
    verdict = failing.judge("hi", {**ROW, "rewards": [f"{file}:{name}"]})
    assert math.isnan(verdict.total) and verdict.failure is not None
    for part in (f"{file}:{name}", said, "Write a poem."):
        assert part in verdict.failure
    assert "\n" not in verdict.failure
    assert failing.judge("hi", {**ROW, "rewards": [f"{file}:good"]}).total == 2
    assert (failing.num_failures, failing.first_failure) == (1, verdict.failure)


def test_a_sum_that_is_not_finite_is_a_failure(file: Path) -> None:
    with Judge([f"{file}:nearly_largest=10"]) as judge:
        verdict = judge.judge("hi", ROW)
    assert math.isnan(verdict.total) and "come to inf" in str(verdict.failure)


SLOW = """
import time
time.sleep(1.0)  # as a file that loads a model

def hangs(answer, row):
    time.sleep(1000 if answer == "hang" else 0)
    return 1.0
"""


def test_a_file_that_loads_slowly_is_loaded_anew_outside_of_the_calls_time(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    with Judge([f"{tmp_path}/slow.py:hangs"], timeout_s=0.8) as judge:
        failures = [judge.judge(text, ROW).failure for text in ("ok", "hang", "ok", "hang", "ok")]
    assert [failure is None for failure in failures] == [True, False, True, False, True]


def test_a_process_that_was_ended_is_forgotten(file: Path) -> None:
    with Judge([f"{file}:leaves"]) as judge:
        before = len(weakref.finalize._registry)  # type: ignore[attr-defined]
        for _ in range(3):
            judge.judge("hi", ROW)
        assert len(weakref.finalize._registry) <= before  # type: ignore[attr-defined]


def test_too_many_failures_stop_the_run_with_the_first_line() -> None:
    check_failures(10, 10, "reward mine: ...")
    with pytest.raises(RunStopped, match=r"11 answers could not be judged, 10 are allowed.*mine"):
        check_failures(11, 10, "reward mine: ...")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{file}:good=heavy", "'heavy' is no weight"),
        ("length=nan", "must be a finite number"),
        ("length=inf", "must be a finite number"),
        ("{file}:god", "did you mean 'good'"),
        ("{file}:one", "must take 2 arguments and is one"),
        ("{file}:number", "is int, a function is wanted"),
        ("{file}", "name the function behind the file"),
        ("missing.py:good", "there is no file"),
        ("poem_from", "did you mean 'poem_form'"),
    ],
)
def test_what_is_no_reward_is_refused_before_anything_starts(
    file: Path, text: str, said: str
) -> None:
    with pytest.raises(UserError, match=said) as refused:
        Judge([text.format(file=file)])
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_run_is_refused(tmp_path: Path) -> None:
    for content, said in (("import no_such_module", "ModuleNotFound"), ("def", "SyntaxError")):
        (tmp_path / "broken.py").write_text(content)
        with pytest.raises(UserError, match=said):
            Judge([f"{tmp_path}/broken.py:x"])


def test_a_file_that_starts_a_judge_itself_does_not_start_processes_without_end(
    tmp_path: Path,
) -> None:
    (tmp_path / "again.py").write_text(
        "from cygnet.stages.reinforcement.rewards.judge import Judge\n"
        "def x(answer, row): return 1\n"
        "Judge([__file__ + ':x'])\n"
    )
    with pytest.raises(UserError, match="must not start Cygnet itself"):
        Judge([f"{tmp_path}/again.py:x"])


def test_the_process_ends_with_its_judge(file: Path) -> None:
    with Judge([f"{file}:good"]) as judge:
        process = judge._sandbox._process
        assert process is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
