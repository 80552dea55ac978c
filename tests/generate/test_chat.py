"""The terminal chat, run for real: through a pipe and in a pseudo-terminal."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cygnet.export.huggingface import save_folder
from cygnet.text.tokenizer import train_tokenizer
from tests.models import random_model

PATIENCE_S = 120
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer(["a swan 天鹅 and a lake 湖水 in the grey rain"] * 3, 320)
    return save_folder(random_model(), tokenizer, tmp_path_factory.mktemp("chat") / "model")


def chat(folder: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cygnet", "chat", str(folder), "--seed", "1", *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


def test_a_pipe_and_a_prompt_give_the_same_answer_and_nothing_else(folder: Path) -> None:
    limits = ("--max-new-tokens", "8")
    piped = chat(folder, *limits, given="What is a swan?\n")
    asked = chat(folder, *limits, "--prompt", "What is a swan?")
    assert piped.returncode == asked.returncode == 0, piped.stderr
    assert piped.stdout == asked.stdout != "\n"
    control = chat(folder, *limits, "--prompt", "a <|im_end|> in the text")
    assert control.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        ((), "  \n", "nothing to answer"),
        (("--prompt", "swan " * 2000), "", "context holds 512; say it shorter"),
        (("--temperature", "-1", "--prompt", "x"), "", "temperature"),
    ],
)
def test_what_cannot_be_answered_is_said_in_one_line(
    folder: Path, arguments: tuple[str, ...], given: str, message: str
) -> None:
    done = chat(folder, *arguments, given=given)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


class Terminal:
    """`cygnet chat` in a pseudo-terminal."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "cygnet", "chat", str(folder), "--temperature", "0.9",
                   "--max-new-tokens", "400", "--seed", "3"]  # fmt: skip
        self.process, self.shown = 0, ""
        self.process, self.file = pty.fork()
        if self.process == 0:
            os.execvpe(command[0], command, {**os.environ, "TERM": "xterm", "COLUMNS": "100"})

    def type(self, text: str) -> None:
        os.write(self.file, text.encode())

    def wait_for(self, text: str) -> str:
        """Return what was shown since the last call, up to and with `text`."""
        until = time.monotonic() + PATIENCE_S
        while text not in self.shown:
            assert time.monotonic() < until, f"no {text!r} in {self.shown[-500:]!r}"
            if select.select([self.file], [], [], 1)[0]:
                new = os.read(self.file, 4096).decode(errors="replace")
                if "\x1b[6n" in new:  # the cursor's place is asked for
                    self.type("\x1b[1;1R")
                self.shown += CONTROL.sub("", new)
        seen, _, self.shown = self.shown.partition(text)
        return seen + text

    def close(self) -> None:
        try:
            os.kill(self.process, signal.SIGKILL)
        except ProcessLookupError:
            return
        os.waitpid(self.process, 0)
        os.close(self.file)


@pytest.fixture
def terminal(folder: Path) -> Iterator[Terminal]:
    opened = Terminal(folder)
    yield opened
    opened.close()


def test_commands_answers_and_ctrl_c_in_a_terminal(terminal: Terminal) -> None:
    terminal.wait_for("/help for commands")
    terminal.wait_for(">")
    terminal.type("/sampling temperature=0.25\r")
    terminal.wait_for("temperature=0.25")
    terminal.type("/sampling temperature=hot\r")
    terminal.wait_for("'hot' is no float")
    terminal.type("/resett\r")
    terminal.wait_for("did you mean '/reset'?")
    terminal.type("/system Be brief.\r")
    terminal.wait_for("system prompt: Be brief.")
    terminal.type("Tell me about swans\r")
    terminal.wait_for("Tell me about swans")
    time.sleep(0.3)
    terminal.type("\x03")
    terminal.type("/reset\r")
    terminal.wait_for("(a new conversation)")
    terminal.type("/quit\r")
    until = time.monotonic() + PATIENCE_S
    while (ended := os.waitpid(terminal.process, os.WNOHANG)) == (0, 0):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
