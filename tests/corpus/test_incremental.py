"""What a run leaves behind is used by the next one, and never changes what comes out."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cygnet.corpus import manifest, parts, pipeline
from cygnet.corpus.instructions import InstructionConfig, build_instructions
from cygnet.corpus.pipeline import parts_folder, prepare
from cygnet.corpus.read.find import find_files
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.scale import ScaleConfig
from cygnet.corpus.settings import DataConfig
from cygnet.errors import UserError
from cygnet.files import read_jsonl

LEXICON = [f"word{i}" for i in range(800)]
SMALL = 0.003
"""Megabytes of a part here, so that a small corpus has many."""


def write_corpus(folder: Path, count: int = 120, seed: int = 0) -> Path:
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "rows.jsonl", "w") as file:
        for i in range(count):
            text = " ".join(rng.choices(LEXICON, k=40)) + "."
            file.write(json.dumps({"text": text, "n": i}) + "\n")
    for i in range(6):
        (folder / f"{i}.txt").write_text(" ".join(rng.choices(LEXICON, k=60)) + ".")
    return folder


def digest(out: Path) -> dict[str, str]:
    names = (*pipeline.OUTPUTS, "manifest.json")
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}


def config(source: Path, **changes: Any) -> DataConfig:
    settings = {"paths": (str(source),), "heldout_share": 0.2, "part_mb": SMALL}
    return DataConfig(**{**settings, **changes})


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that are read, in one process."""
    found: list[str] = []
    read = parts.read_file

    def noted(file: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(f"{file.source}@{file.start}")
        return read(file, *args, **kwargs)

    monkeypatch.setattr(parts, "read_file", noted)
    return found


ALONE = ScaleConfig(workers=1)


def test_a_changed_threshold_reads_nothing_again(tmp_path: Path, reads: list[str]) -> None:
    source, out = write_corpus(tmp_path / "in"), tmp_path / "out"
    prepare(config(source), out, ALONE)
    assert len(reads) > 6
    reads.clear()
    prepare(config(source, thresholds=("repeated_lines=off",), min_chars=100), out, ALONE)
    prepare(config(source, near_duplicate_threshold=0.9, heldout_share=0.1), out, ALONE)
    assert reads == []
    fresh = prepare(
        config(source, near_duplicate_threshold=0.9, heldout_share=0.1), tmp_path / "b", ALONE
    )
    assert digest(fresh) == digest(out)
    reads.clear()
    prepare(config(source, privacy="keep"), out, ALONE)
    assert len(reads) > 6


def test_a_new_file_is_read_alone_or_with_few(tmp_path: Path, reads: list[str]) -> None:
    source, out = write_corpus(tmp_path / "in"), tmp_path / "out"
    prepare(config(source), out, ALONE)
    every = set(reads)
    reads.clear()
    (source / "new.txt").write_text("a new one of ten words or so, to be read")
    prepare(config(source), out, ALONE)
    assert "in/new.txt@0" in reads and len(set(reads)) < len(every) / 2
    assert digest(prepare(config(source), tmp_path / "b", ALONE)) == digest(out)


def test_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "in")
    outs = [prepare(config(source), tmp_path / f"{n}", ScaleConfig(workers=n)) for n in (1, 2)]
    assert digest(outs[0]) == digest(outs[1])


RUN = """
import sys
from pathlib import Path
from cygnet.corpus import pipeline
from cygnet.corpus.scale import ScaleConfig
from cygnet.corpus.settings import DataConfig

if __name__ == "__main__":
    config = DataConfig(paths=(sys.argv[1],), heldout_share=0.2, part_mb={size})
    pipeline.prepare(config, Path(sys.argv[2]), ScaleConfig(workers=2))
"""


@pytest.mark.parametrize("after", [1, 4, 9])
def test_killed_and_continued_is_as_if_never_killed(tmp_path: Path, after: int) -> None:
    """SIGKILL to the whole group once some parts are there; those are not made again."""
    source, out = write_corpus(tmp_path / "in", 200), tmp_path / "out"
    script = tmp_path / "run.py"
    script.write_text(RUN.format(size=SMALL))
    command = [sys.executable, str(script), str(source), str(out)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    work = parts_folder(out)
    for _ in range(3000):
        if process.poll() is not None or len(list(work.glob("*.arrow"))) >= after:
            break
        time.sleep(0.02)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    made = {path.name: path.stat().st_mtime_ns for path in work.glob("[!.]*.arrow")}
    assert made
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    again = {path.name: path.stat().st_mtime_ns for path in work.glob("*.arrow")}
    assert {name: again[name] for name in made} == made
    assert digest(prepare(config(source), tmp_path / "b", ALONE)) == digest(out)
    assert not list(work.glob(".*.tmp"))  # what the killed process left is swept up


def test_tasks_cover_every_byte_once(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "in", 300)
    files = find_files([str(source)], Problems())
    hashes = {file.place: "h" for file in files}
    tasks = pipeline.make_tasks(files, hashes, config(source))
    assert len({task.key for task in tasks}) == len(tasks) > 5
    covered = sum(file.num_bytes() for task in tasks for file in task.files)
    assert covered == sum(file.num_bytes() for file in files)


def test_a_source_of_weight_two_is_written_as_two_copies_and_of_half_for_half(
    tmp_path: Path,
) -> None:
    write_corpus(tmp_path / "often", 60, seed=1)
    write_corpus(tmp_path / "rarely", 60, seed=2)
    sources = tmp_path / "mixture.yaml"
    sources.write_text("- path: often\n  weight: 2\n- path: rarely\n  epochs: 0.5\n")
    out = prepare(config(sources), tmp_path / "out", ALONE)
    rows = list(read_jsonl(out / "train.jsonl.zst"))
    often = [row for row in rows if row["domain"] == "often"]
    rarely = [row for row in rows if row["domain"] == "rarely"]
    assert {row.get("copies", 1) for row in often} == {2}
    assert {row.get("copies", 1) for row in rarely} == {1}
    report = json.loads((out / "report.json").read_text())
    not_drawn = report["domains"]["rarely"]["not_drawn"]["documents"]
    assert 15 < not_drawn < 51 and len(often) > 40


def test_conversations_of_a_source_of_weight_two_are_learnt_twice(tmp_path: Path) -> None:
    rng = random.Random(5)
    rows = [
        {
            "messages": [
                {"role": "user", "content": " ".join(rng.choices(LEXICON, k=12))},
                {"role": "assistant", "content": " ".join(rng.choices(LEXICON, k=12))},
            ]
        }
        for _ in range(40)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mixture.yaml").write_text("- path: chats.jsonl\n  weight: 2\n")
    data = prepare(config(tmp_path / "mixture.yaml"), tmp_path / "data", ALONE)
    made = build_instructions(data, tmp_path / "instructions", InstructionConfig())
    chats = [row for row in read_jsonl(made / "train.jsonl.zst") if row["kind"] == "chat"]
    assert len(chats) > 20 and {row["weight"] for row in chats} == {2}


def test_a_killed_worker_costs_no_finished_part(tmp_path: Path) -> None:
    source, out = write_corpus(tmp_path / "in", 400), tmp_path / "out"
    script = tmp_path / "run.py"
    script.write_text(RUN.format(size=SMALL / 2))
    command = [sys.executable, str(script), str(source), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    work = parts_folder(out)
    for _ in range(3000):
        if process.poll() is not None or len(list(work.glob("*.arrow"))) >= 3:
            break
        time.sleep(0.01)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for worker in workers:
        os.kill(int(worker), signal.SIGKILL)
    _, said = process.communicate()
    made = {path.name: path.stat().st_mtime_ns for path in work.glob("[!.]*.arrow")}
    assert len(made) >= 3 or process.returncode == 0, said
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    again = {path.name: path.stat().st_mtime_ns for path in work.glob("*.arrow")}
    assert {name: again[name] for name in made} == made


def test_two_at_once_take_turns(tmp_path: Path) -> None:
    source, out = write_corpus(tmp_path / "in", 200), tmp_path / "out"
    script = tmp_path / "run.py"
    script.write_text(RUN.format(size=SMALL))
    command = [sys.executable, str(script), str(source), str(out)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert digest(prepare(config(source), tmp_path / "b", ALONE)) == digest(out)


def test_a_fault_that_passes_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_corpus(tmp_path / "in"), tmp_path / "out"
    read = parts.read_file

    def faulty(file: Any, problems: Problems, **kwargs: Any) -> Any:
        if file.source == "in/3.txt":
            problems.add("unreadable", file.place, "Input/output error")
            return
        yield from read(file, problems, **kwargs)

    with monkeypatch.context() as context:
        context.setattr(parts, "read_file", faulty)
        prepare(config(source), out, ALONE)
    assert "3.txt" not in {
        row["source"].split("/")[1] for row in read_jsonl(out / "train.jsonl.zst")
    }
    prepare(config(source), out, ALONE)
    assert digest(prepare(config(source), tmp_path / "b", ALONE)) == digest(out)


@pytest.mark.parametrize("part_mb", [0.001, 0.01, 4])
def test_borders_between_parts_change_no_outcome(tmp_path: Path, part_mb: float) -> None:
    source = write_corpus(tmp_path / "in", 150)
    rows = [json.loads(line) for line in (source / "rows.jsonl").read_text().splitlines()]
    with open(source / "rows.jsonl", "a") as file:
        for i in range(0, 100, 7):  # near and exact copies far from their originals
            words = rows[i]["text"].split()
            words[3] = "changed"
            file.write(json.dumps({"text": " ".join(words if i % 2 else rows[i]["text"].split())}))
            file.write("\n")
    outs = [
        prepare(config(source, part_mb=mb), tmp_path / str(mb), ALONE) for mb in (SMALL, part_mb)
    ]
    for name in ("train.jsonl.zst", "heldout.jsonl.zst", pipeline.REMOVED):
        assert list(read_jsonl(outs[0] / name)) == list(read_jsonl(outs[1] / name))


def test_a_full_disk_is_a_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline, "write_plan", full)
    with pytest.raises(UserError, match=r"could not be written.*No space left.*start again"):
        prepare(config(write_corpus(tmp_path / "in")), tmp_path / "out", ALONE)


def test_another_library_reads_all_again(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    source, out = write_corpus(tmp_path / "in"), tmp_path / "out"
    prepare(config(source), out, ALONE)
    reads.clear()
    monkeypatch.setattr(manifest.metadata, "version", lambda name: "99")
    prepare(config(source), out, ALONE)
    assert len(reads) > 6 and "ftfy was" in capsys.readouterr().err
