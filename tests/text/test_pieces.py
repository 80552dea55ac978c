"""Encoding in pieces: the same bytes whatever the cores, the pieces and the kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.errors import UserError
from cygnet.files import JsonlWriter
from cygnet.text import pieces
from cygnet.text.conversation_rows import ConversationSummary, _Place
from cygnet.text.shards import ShardReader
from cygnet.text.tokenize import tokenize_conversations, tokenize_documents
from tests.conversations import TEXTS
from tests.shards import stored_documents

RUNNER = Path(__file__).with_name("tokenize_runner.py")
ROWS = {"documents": tokenize_documents, "conversations": tokenize_conversations}


def write(path, rows):
    with JsonlWriter(path) as file:
        for row in rows:
            file.write(row)
    return path


def documents(count, seed=0):
    draw = random.Random(seed)
    for _ in range(count):
        text = " ".join(draw.choices(TEXTS, k=draw.randrange(1, 20)))
        row = {"id": f"{draw.getrandbits(64):016x}", "text": text, "domain": "demo"}
        yield row | ({"copies": draw.randrange(4)} if draw.random() < 0.2 else {})


def conversations(count, seed=0):
    draw = random.Random(seed)
    for number in range(count):
        asked = {"role": "user", "content": " ".join(draw.choices(TEXTS, k=draw.randrange(1, 9)))}
        answer = {"role": "assistant", "content": draw.choice(TEXTS)}
        row = {"messages": [asked, answer] * draw.randrange(1, 3), "kind": draw.choice("abc")}
        yield row | ({"source": f"mine.jsonl:{number}"} if draw.random() < 0.01 else {})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def cut_small(monkeypatch, num_bytes=20_000):
    monkeypatch.setattr(pieces, "MIN_PIECE_BYTES", num_bytes)


@pytest.fixture(params=ROWS)
def rows(request, tmp_path):
    made = {"documents": documents, "conversations": conversations}[request.param]
    return request.param, write(
        tmp_path / "rows.jsonl.zst", made({"documents": 1200, "conversations": 500}[request.param])
    )


def tokenized(rows, tokenizer, out, num_workers):
    name, path = rows
    settings = {"max_seq_len": 200} if name == "conversations" else {}
    ROWS[name](path, tokenizer, out, num_workers=num_workers, **settings)
    return contents(out)


def test_the_bytes_are_the_same_whatever_the_pieces_and_the_workers(
    tmp_path, tokenizer, rows, monkeypatch
):
    one = tokenized(rows, tokenizer, tmp_path / "one", 1)
    cut_small(monkeypatch)
    assert tokenized(rows, tokenizer, tmp_path / "pieces", 1) == one
    assert tokenized(rows, tokenizer, tmp_path / "three", 3) == one
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []


@pytest.mark.parametrize("num_workers", [1, 2])
def test_killed_at_any_moment_and_started_again_is_never_interrupted(
    tmp_path, tokenizer, rows, num_workers
):
    """SIGKILL after a random number of pieces, in the middle of one, and while shards are written;
    what was finished is not encoded again, and no process outlives the one that was killed."""
    whole = tokenized(rows, tokenizer, tmp_path / "whole", 1)
    tokenizer.save(tmp_path / "tokenizer")
    out, work = tmp_path / "out", tmp_path / ".out.work"
    command = [rows[0], rows[1], tmp_path / "tokenizer", out, num_workers]
    draw = random.Random(num_workers)
    kept: dict[str, tuple[int, int]] = {}
    num_pieces = 0
    for kill in range(4):
        process = subprocess.Popen([sys.executable, RUNNER, *map(str, command)])
        is_last, wanted = kill == 3, len(kept) + draw.randrange(1, 4)
        while process.poll() is None and not (
            any(tmp_path.glob(".out.*.tmp")) if is_last else len(finished(work)) >= wanted
        ):
            time.sleep(0.002)
        if not is_last:
            time.sleep(draw.random() * 0.05)
        workers = children(process.pid)
        process.kill()
        process.wait()
        now = finished(work)
        assert kept.items() <= now.items() or out.exists()
        assert out.exists() or len(now) >= num_pieces
        kept, num_pieces = now, len(now)
        wait_for_the_end(workers)
        assert not out.exists() or contents(out) == whole
    said = subprocess.run(
        [sys.executable, RUNNER, *map(str, command)], check=True, stderr=subprocess.PIPE, text=True
    ).stderr
    assert contents(out) == whole
    assert not work.exists()
    if kept:
        assert f"{len(kept)} of " in said and "were encoded before" in said


def finished(work):
    """Return the pieces that are there whole, each with what changes when it is written again."""
    found = {}
    for path in work.glob("*.index"):
        state = path.stat()
        found[path.name] = (state.st_ino, state.st_mtime_ns)
    return found


def children(pid):
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except FileNotFoundError:
        return []


def wait_for_the_end(processes):
    """Return once none of them runs; the test's own limit is that of the whole suite."""
    for process in processes:
        while is_running(process):
            time.sleep(0.01)


def is_running(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_worker_that_dies_is_said_and_the_next_start_goes_on(
    tmp_path, tokenizer, rows, monkeypatch
):
    whole = tokenized(rows, tokenizer, tmp_path / "whole", 1)
    cut_small(monkeypatch)
    started = subprocess.Popen

    def shot(*arguments, **options):
        process = started(*arguments, **options)
        os.kill(process.pid, signal.SIGKILL)
        return process

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", shot)
        with pytest.raises(RuntimeError, match=r"process that encodes piece \d+ died"):
            tokenized(rows, tokenizer, tmp_path / "out", 2)
    assert (tmp_path / ".out.work").exists()
    assert tokenized(rows, tokenizer, tmp_path / "out", 2) == whole


def test_pieces_of_another_file_or_tokenizer_are_thrown_away(
    tmp_path, tokenizer, monkeypatch, capsys
):
    cut_small(monkeypatch)
    path = write(tmp_path / "rows.jsonl.zst", documents(1000))
    write_index = pieces.Work.write

    def breaking(self, number, files):
        if number == 3:
            raise OSError("disk full")
        write_index(self, number, files)

    with monkeypatch.context() as patch:
        patch.setattr(pieces.Work, "write", breaking)
        with pytest.raises(OSError, match="disk full"):
            tokenize_documents(path, tokenizer, tmp_path / "out", num_workers=1)
    assert len(finished(tmp_path / ".out.work")) == 3
    write(path, documents(1000, seed=1))
    tokenize_documents(path, tokenizer, tmp_path / "out", num_workers=1)
    assert "encoded before" not in capsys.readouterr().err
    tokenize_documents(path, tokenizer, tmp_path / "new", num_workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_a_work_folder_that_was_half_removed_is_taken_for_nothing(tmp_path, tokenizer, monkeypatch):
    """A kill after the result is there, while the pieces are removed."""
    cut_small(monkeypatch)
    path = write(tmp_path / "rows.jsonl.zst", documents(300))
    work, half = tmp_path / ".out.work", tmp_path / ".half.work"

    unlink = Path.unlink

    def killed(self, missing_ok=False):
        unlink(self, missing_ok)
        if self.suffix == ".tokens" and self.with_suffix(".index").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            tokenize_documents(path, tokenizer, tmp_path / "out", num_workers=1)
    whole = contents(tmp_path / "out")
    work.rename(half)
    tokenize_documents(path, tokenizer, tmp_path / "half", num_workers=1)
    assert contents(tmp_path / "half") == whole and not half.exists()
    work.mkdir()
    tokenize_documents(path, tokenizer, tmp_path / "out")
    assert not work.exists()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_line_that_cannot_be_used_is_named_from_every_process(
    tmp_path, tokenizer, monkeypatch, num_workers
):
    cut_small(monkeypatch, 2000)
    bad = [*documents(200), {"id": "0f", "text": "soup", "copies": 1.5}, *documents(5)]
    path = write(tmp_path / "rows.jsonl.zst", bad)
    with pytest.raises(UserError, match=r"rows\.jsonl\.zst:201: copies is 1\.5; give a whole"):
        tokenize_documents(path, tokenizer, tmp_path / "out", num_workers=num_workers)
    assert not [*tmp_path.glob(".out*")]
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "0f", "text": "soup"}\n{"id": \n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: no JSON"):
        tokenize_documents(path, tokenizer, tmp_path / "out", num_workers=num_workers)


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 5)), unique_by=lambda pair: pair[0]
    )
)
def test_a_document_is_written_as_often_as_its_copies_say(tmp_path_factory, tokenizer, drawn):
    folder = tmp_path_factory.mktemp("copies")
    rows = [
        {"id": f"{key:016x}", "text": f"soup {i}", "copies": copies}
        for i, (key, copies) in enumerate(drawn)
    ]
    path = write(folder / "rows.jsonl", rows)
    if not any(copies for _, copies in drawn):
        with pytest.raises(UserError, match="no document with text"):
            tokenize_documents(path, tokenizer, folder / "out")
        return
    tokenize_documents(path, tokenizer, folder / "out")
    stored = stored_documents(ShardReader(folder / "out"))
    texts = [tokenizer.decode(ids[1:-1].tolist()) for ids, _ in stored]
    assert sorted(texts) == sorted(row["text"] for row in rows for _ in range(row["copies"]))


def test_copies_of_a_document_lie_apart(tmp_path, tokenizer):
    rows = [{**row, "copies": 2, "text": f"{i}"} for i, row in enumerate(documents(300))]
    tokenize_documents(write(tmp_path / "rows.jsonl", rows), tokenizer, tmp_path / "out")
    stored = stored_documents(ShardReader(tmp_path / "out"))
    texts = [tokenizer.decode(ids.tolist()) for ids, _ in stored]
    places: dict[str, list[int]] = {}
    for at, text in enumerate(texts):
        places.setdefault(text, []).append(at)
    distances = [last - first for first, last in places.values()]
    assert sum(distance > 20 for distance in distances) > 0.8 * len(distances)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.sampled_from("ab")), max_size=90))
def test_summaries_of_pieces_add_up_to_that_of_the_whole(notes):
    whole, parts = ConversationSummary(), [ConversationSummary() for _ in range(4)]
    for number, (is_own, part, kind) in enumerate(sorted(notes, key=lambda note: note[1])):
        for summary in (whole, parts[part]):
            summary.num_invalid += 1
            summary.labels_of[kind] = summary.labels_of.get(kind, 0) + number
            summary.note(_Place(f"{kind}:{number}", is_own), "why")
    added = ConversationSummary()
    for part in parts:
        added.add(part)
    assert json.dumps(vars_of(added)) == json.dumps(vars_of(whole))


def vars_of(summary):
    return {name: getattr(summary, name) for name in summary.__dataclass_fields__}
