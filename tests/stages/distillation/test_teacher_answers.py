"""Black-box distillation: against a real server, and against one that fails in every way."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cygnet.cli import main
from cygnet.errors import UserError
from cygnet.export.huggingface import load_folder, save_folder
from cygnet.files import read_jsonl
from cygnet.generate.conversation import TooLong
from cygnet.generate.sampling import Sampling
from cygnet.messages import Message
from cygnet.stages.distillation import teacher_answers
from cygnet.stages.distillation.teacher_answers import AnswersConfig, ask_teacher
from cygnet.text.tokenizer import train_tokenizer
from tests.models import SMALL, random_model
from tests.serve.running import save, wait_for
from tests.train.parallel.conftest import free_port


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """Run `cygnet serve` as a process of its own."""
    url = f"http://127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "cygnet", "serve", str(model), "--port", url.rpartition(":")[2]],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        assert process.poll() is None
        try:
            return bool(urllib.request.urlopen(f"{url}/v1/models", timeout=5).status == 200)
        except OSError:
            return False

    try:
        wait_for(answers)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def asked(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_a_student_of_another_vocabulary_learns_a_servers_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the same command again asks nothing and trains nothing."""
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"swan {number}"} for number in range(12)]
    prompts.write_text("\n".join(map(json.dumps, rows)) + "\n")
    own = train_tokenizer(["grey rain on the lake"] * 5, 280)
    start = save_folder(
        random_model(SMALL.__class__(**{**vars(SMALL), "vocab_size": own.vocab_size})),
        own,
        tmp_path / "student",
    )
    out = tmp_path / "run"
    with serving(save(tmp_path / "teacher")) as url:
        command = [
            "distill", "--teacher_url", url, "--from", str(start), "--data", str(prompts),
            "--out", str(out), "--answers.temperature", "1", "--answers.top_p", "1",
            "--answers.max_new_tokens", "2000", "--steps", "2", "--batch_tokens", "1024",
            "--max_seq_len", "512", "--device", "cpu", "--compile", "off",
        ]  # fmt: skip
        main(command)
        kept = asked(out)
        assert len(kept) == 12 and all(row["answer"]["content"] for row in kept)
        learnt = list(read_jsonl(out / "conversations" / "train.jsonl.zst"))
        said = {row["messages"][-1]["content"] for row in learnt}
        assert said <= {row["answer"]["content"] for row in kept} and len(said) > 6
        assert load_folder(out)[1].vocab_size == own.vocab_size
        capsys.readouterr()
        main(command)
        told = capsys.readouterr().err
        with pytest.raises(SystemExit):  # the server says why an answer ended
            short = ["--answers.max_new_tokens", "1", "--out", str(tmp_path / "short")]
            main([*command, *short])
    assert "no answer to learn from" in capsys.readouterr().err
    assert "12 of 12 prompts are answered already" in told and "up to date" in told
    assert asked(out) == kept


class Flaky:
    """A teacher that fails as told; it counts how often it was asked what."""

    url, model = "http://nowhere/v1", "flaky"

    def __init__(self, **failing: int) -> None:
        self.failing, self.asked = failing, Counter[str]()
        self.lock, self.under_way, self.most = threading.Lock(), 0, 0
        self.dies_after = 10**9

    def whole_answer(self, messages: Sequence[Message], sampling: Sampling) -> tuple[Message, str]:
        text = messages[-1]["content"]
        with self.lock:
            self.asked[text] += 1
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            time.sleep(0.01)
            is_dead = self.asked.total() > self.dies_after
            if is_dead or self.asked[text] <= self.failing.get(text, 0):
                raise UserError("http://nowhere/v1: is busy")
            if text == "long":
                raise TooLong("http://nowhere/v1: too long")
            content = {"empty": " ", "cut": "and so on"}.get(text, f"answer to {text}")
            reason = "length" if text == "cut" else "stop"
            return {"role": "assistant", "content": content}, reason
        finally:
            with self.lock:
                self.under_way -= 1


def rows(*texts: str) -> tuple[list[Any], list[Any]]:
    return [{"prompt": [{"role": "user", "content": text}]} for text in texts], []


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_answers, "WAIT_S", 0.001)


def test_busy_servers_are_asked_again_and_what_cannot_be_learnt_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = Flaky(a=2, dead=99)
    texts = ("a", "b", "long", "empty", "cut", "dead", "c")
    folder = ask_teacher(teacher, rows(*texts), tmp_path, AnswersConfig(tries=3, concurrency=2))
    learnt = {row["messages"][-1]["content"] for row in read_jsonl(folder / "train.jsonl.zst")}
    assert learnt == {"answer to a", "answer to b", "answer to c"}
    assert teacher.asked == Counter(a=3, b=1, long=1, empty=1, cut=1, dead=3, c=1)
    assert teacher.most == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "3 of 7 prompts answered, 2 without an answer, 1 cut" in told and "1 empty" in told


def test_a_server_that_dies_loses_nothing_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    texts = [f"q{number}" for number in range(40)]
    flaky = Flaky()
    flaky.dies_after = 5
    with pytest.raises(UserError) as stopped:
        ask_teacher(flaky, rows(*texts), tmp_path, AnswersConfig(tries=1, concurrency=4))
    assert "the same command asks for the rest" in str(stopped.value)
    assert 1 <= len(asked(tmp_path)) <= 5
    before = {row["prompt"][0]["content"] for row in asked(tmp_path)}
    with open(tmp_path / "answers.jsonl", "a") as file:
        file.write('{"key": "half a li')  # killed while it wrote
    teacher = Flaky()
    folder = ask_teacher(teacher, rows(*texts), tmp_path, AnswersConfig(concurrency=4))
    assert teacher.asked == Counter(set(texts) - before)
    assert len(list(read_jsonl(folder / "train.jsonl.zst"))) == 40
    assert len(asked(tmp_path)) == 40


def test_other_settings_are_other_answers(tmp_path: Path) -> None:
    teacher = Flaky()
    for config in (AnswersConfig(), AnswersConfig(temperature=0.1), AnswersConfig()):
        ask_teacher(teacher, rows("a", "b"), tmp_path, config)
    assert teacher.asked == Counter(a=2, b=2)


def test_two_servers_with_one_models_name_do_not_share_answers(tmp_path: Path) -> None:
    for url, asks in (("http://a/v1", 1), ("http://b/v1", 1), ("http://a/v1", 0)):
        teacher = Flaky()
        teacher.url = url
        ask_teacher(teacher, rows("swan"), tmp_path, AnswersConfig())
        assert sum(teacher.asked.values()) == asks
