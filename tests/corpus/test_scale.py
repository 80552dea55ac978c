"""Every task is done once, wherever it runs and whatever is killed meanwhile."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cygnet.corpus.scale import ScaleConfig, run_tasks
from cygnet.errors import UserError

SQUARE = "tests.corpus.scale_tasks:square"
ROOT = Path(__file__).parents[2]
TWO = ScaleConfig(workers=2)


def prepared(folder: Path, **trouble: str) -> Path:
    """Return a folder for tasks; `trouble` is such as `task_3="killed once"`."""
    folder.mkdir(exist_ok=True)
    (folder / "results").mkdir(exist_ok=True)
    by_number = {name.removeprefix("task_"): what for name, what in trouble.items()}
    (folder / "trouble.json").write_text(json.dumps(by_number))
    return folder


def results(folder: Path) -> dict[int, dict[str, Any]]:
    files = (folder / "results").iterdir()  # a temporary file left behind fails here
    return {int(file.stem): json.loads(file.read_text()) for file in files}


def squares(folder: Path) -> dict[int, int]:
    return {number: result["square"] for number, result in results(folder).items()}


def times_ended(folder: Path) -> list[int]:
    return list(Counter((folder / "ended.txt").read_text().split()).values())


def driver(folder: Path, num_tasks: int, **settings: Any) -> subprocess.Popen[bytes]:
    script = (
        "from pathlib import Path\n"
        "from cygnet.corpus.scale import ScaleConfig, run_tasks\n"
        "if __name__ == '__main__':\n"
        f"    run_tasks({SQUARE!r}, Path({str(folder)!r}), {num_tasks},"
        f" ScaleConfig(**{settings!r}), 'square')\n"
    )
    file = folder / "driver.py"
    file.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, file], cwd=ROOT, env=environment)


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.1)


def begun(folder: Path) -> list[tuple[int, int]]:
    with contextlib.suppress(FileNotFoundError):
        lines = (folder / "begun.txt").read_text().splitlines()
        return [(int(number), int(process)) for number, process in map(str.split, lines)]
    return []


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("num_tasks", "workers"), [(0, 2), (1, 2), (5, 1), (5, 2), (2, 3)])
def test_each_task_is_done_once(tmp_path: Path, num_tasks: int, workers: int) -> None:
    folder = prepared(tmp_path)
    for _ in range(2):
        run_tasks(SQUARE, folder, num_tasks, ScaleConfig(workers=workers), "square")
        assert squares(folder) == {number: number**2 for number in range(num_tasks)}
        assert len(begun(folder)) == num_tasks
    processes = {process for _, process in begun(folder)}
    assert (os.getpid() in processes) == (num_tasks > 0 and min(num_tasks, workers) == 1)


def test_workers_load_what_a_task_needs_and_keep_to_one_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    run_tasks(SQUARE, prepared(tmp_path), 2, TWO, "square")
    assert all(r["loaded"] == [] and r["threads"] == "1" for r in results(tmp_path).values())


def test_as_many_workers_as_cores_that_may_be_used(tmp_path: Path) -> None:
    folder = prepared(tmp_path, task_0="is slow", task_1="is slow", task_2="is slow")
    one = min(os.sched_getaffinity(0))
    process = subprocess.run(
        ["taskset", "--cpu-list", str(one), sys.executable, "-c",
         "from cygnet.cores import usable_cores; print(usable_cores())"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout.strip() == "1"
    run_tasks(SQUARE, folder, 3, ScaleConfig(), "square")
    cores = len(os.sched_getaffinity(0))
    assert len({process for _, process in begun(folder)}) == min(3, cores)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("trouble", "error", "message"),
    [
        ("user error", UserError, r"rows\.csv: line 3"),
        ("value error", ValueError, "bad row"),
    ],
)
def test_an_exception_comes_back_as_itself(
    tmp_path: Path, workers: int, trouble: str, error: type[Exception], message: str
) -> None:
    folder = prepared(tmp_path, task_1=trouble)
    with pytest.raises(error, match=message) as caught:
        run_tasks(SQUARE, folder, 50, ScaleConfig(workers=workers), "square")
    assert type(caught.value) is error
    if workers == 2:
        assert "scale_tasks.py" in caught.value.__notes__[0]
    assert len(squares(folder)) < 49
    prepared(folder)
    run_tasks(SQUARE, folder, 50, ScaleConfig(workers=workers), "square")
    assert len(squares(folder)) == 50
    assert set(times_ended(folder)) == {1}


def test_an_exception_that_cannot_travel_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Unsendable: 1 and 2"):
        run_tasks(SQUARE, prepared(tmp_path, task_1="unsendable"), 3, TWO, "square")


def test_a_killed_worker_is_named_and_the_rest_stops(tmp_path: Path) -> None:
    folder = prepared(tmp_path, task_2="killed once, while 3 hangs", task_3="hangs once")
    with pytest.raises(UserError, match=r"square: task 2 of 5: .*SIGKILL.*fewer workers"):
        run_tasks(SQUARE, folder, 5, TWO, "square")
    assert not any(is_alive(process) for _, process in begun(folder) if process != os.getpid())
    run_tasks(SQUARE, folder, 5, TWO, "square")
    assert squares(folder) == {number: number**2 for number in range(5)}
    assert set(times_ended(folder)) == {1}


@pytest.mark.parametrize(
    "how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name
)
def test_a_stopped_run_leaves_no_worker_and_continues(tmp_path: Path, how: signal.Signals) -> None:
    folder = prepared(tmp_path, task_2="hangs once", task_3="hangs once")
    process = driver(folder, 5, workers=2)
    wait_until(lambda: {2, 3} <= {number for number, _ in begun(folder)})
    process.send_signal(how)
    assert process.wait() != 0
    wait_until(lambda: not any(is_alive(worker) for _, worker in begun(folder)))
    run_tasks(SQUARE, folder, 5, TWO, "square")
    assert squares(folder) == {number: number**2 for number in range(5)}
    assert set(times_ended(folder)) == {1}


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"cpus_per_task": 0}, {"poll_s": 0}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        ScaleConfig(**wrong)


# Slurm


def test_without_slurm_it_says_where_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="scontrol: not found; start on a node"):
        run_tasks(SQUARE, prepared(tmp_path), 2, ScaleConfig(executor="slurm"), "square")


@pytest.mark.slow
def test_slurm_does_each_task_once(slurm: ScaleConfig, tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    for _ in range(2):
        run_tasks(SQUARE, folder, 7, slurm, "square")  # the cluster allows arrays of 5
        assert squares(folder) == {number: number**2 for number in range(7)}
        assert len(begun(folder)) == 7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("user error", r"^rows\.csv: line 3: has no text; mend it$"),
        ("value error", r"task 6 of 7: ValueError: bad row; see .*/00001\.log"),
        ("killed", r"task 6 of 7: was killed .* see .*/00001\.log"),
    ],
)
def test_slurm_names_a_task_that_failed(
    slurm: ScaleConfig, tmp_path: Path, trouble: str, message: str
) -> None:
    folder = prepared(tmp_path, task_6=trouble)
    with pytest.raises(UserError, match=message):
        run_tasks(SQUARE, folder, 7, slurm, "square")
    prepared(folder)
    run_tasks(SQUARE, folder, 7, slurm, "square")
    assert squares(folder) == {number: number**2 for number in range(7)}
    assert set(times_ended(folder)) == {1}


@pytest.mark.slow
def test_slurm_job_of_a_killed_driver_is_waited_for(slurm: ScaleConfig, tmp_path: Path) -> None:
    folder = prepared(tmp_path, **{f"task_{number}": "is slow" for number in range(7)})
    process = driver(folder, 7, **vars(slurm))
    wait_until(lambda: len(begun(folder)) >= 2)
    process.kill()
    process.wait()
    (record,) = folder.glob("slurm/*/job.json")
    job = json.loads(record.read_text())["job"]
    run_tasks(SQUARE, folder, 7, slurm, "square")
    assert json.loads(record.read_text())["job"] == job
    assert squares(folder) == {number: number**2 for number in range(7)}
    assert len(begun(folder)) == 7


@pytest.mark.slow
def test_slurm_job_of_an_interrupted_driver_is_cancelled(
    slurm: ScaleConfig, tmp_path: Path
) -> None:
    folder = prepared(tmp_path, task_1="hangs once")
    process = driver(folder, 2, **vars(slurm))
    wait_until(lambda: len(begun(folder)) == 2)
    process.send_signal(signal.SIGINT)
    process.wait()
    wait_until(lambda: not any(is_alive(worker) for _, worker in begun(folder)))
    run_tasks(SQUARE, folder, 2, slurm, "square")
    assert squares(folder) == {0: 0, 1: 1}


@pytest.mark.slow
def test_what_slurm_refuses_is_passed_on(slurm: ScaleConfig, tmp_path: Path) -> None:
    wrong = ScaleConfig(executor="slurm", partition="none")
    with pytest.raises(UserError, match="invalid partition"):
        run_tasks(SQUARE, prepared(tmp_path), 2, wrong, "square")


# Ray


ON_RAY = ScaleConfig(executor="ray", memory_per_task_gb=0.1)


@pytest.mark.slow
def test_ray_runs_on_both_nodes_and_starts_a_killed_task_again(
    ray_cluster: Any, tmp_path: Path
) -> None:
    # Nodes have a core each, so two tasks that wait for one another run on both.
    meeting = {"task_0": "meets 1", "task_1": "meets 0"}
    folder = prepared(tmp_path, **meeting, task_5="killed once")
    for _ in range(2):
        run_tasks(SQUARE, folder, 8, ON_RAY, "square")
        assert squares(folder) == {number: number**2 for number in range(8)}
        assert set(times_ended(folder)) == {1}
    assert len({result["node"] for result in results(folder).values()}) == 2
    assert all(r["threads"] == "1" and "torch" not in r["loaded"] for r in results(folder).values())
    for trouble, error in (("user error", UserError), ("value error", ValueError)):
        failing = prepared(tmp_path / trouble, task_1=trouble)
        with pytest.raises(error, match=r"rows\.csv: line 3|bad row"):
            run_tasks(SQUARE, failing, 3, ON_RAY, "square")
    hopeless = prepared(tmp_path / "hopeless", task_1="killed")
    with pytest.raises(UserError, match="task 1 of 3: lost 3 times"):
        run_tasks(SQUARE, hopeless, 3, ON_RAY, "square")


@pytest.mark.slow
def test_a_killed_driver_of_ray_goes_on_where_it_was(ray_cluster: Any, tmp_path: Path) -> None:
    folder = prepared(tmp_path, task_4="hangs once", task_5="hangs once")
    process = driver(folder, 8, **vars(ON_RAY))
    wait_until(lambda: {4, 5} <= {number for number, _ in begun(folder)})
    process.kill()
    process.wait()
    run_tasks(SQUARE, folder, 8, ON_RAY, "square")
    assert squares(folder) == {number: number**2 for number in range(8)}
    assert set(times_ended(folder)) == {1}


@pytest.mark.slow
def test_ray_outlives_the_loss_of_a_node(ray_cluster: Any, tmp_path: Path) -> None:
    folder = prepared(tmp_path, task_2="hangs once", task_3="hangs once")
    process = driver(folder, 6, **vars(ON_RAY))
    wait_until(lambda: {2, 3} <= {number for number, _ in begun(folder)})
    ray_cluster.remove_node(ray_cluster.workers[0], allow_graceful=False)
    other = [worker for number, worker in begun(folder) if number in (2, 3) and is_alive(worker)]
    for worker in other:
        os.kill(worker, signal.SIGKILL)
    assert process.wait() == 0
    assert squares(folder) == {number: number**2 for number in range(6)}
    assert set(times_ended(folder)) == {1}


def test_without_ray_it_says_what_to_install_or_start(tmp_path: Path) -> None:
    nowhere = ScaleConfig(executor="ray", ray_address="127.0.0.1:1")
    with pytest.raises(UserError, match=r"cygnet\[scale\]|no Ray cluster at 127"):
        run_tasks(SQUARE, prepared(tmp_path), 2, nowhere, "square")
