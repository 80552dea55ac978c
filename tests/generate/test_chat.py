"""The terminal chat, run for real: through a pipe and in a pseudo-terminal."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cygnet.errors import UserError
from cygnet.generate import chat as terminal_chat
from cygnet.generate.chat import ChatConfig, changed_sampling, printable
from cygnet.generate.conversation import Conversation, Pieces
from cygnet.generate.reading import Piece
from cygnet.generate.sampling import Sampling

PATIENCE_S = 120
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def test_what_a_terminal_would_obey_is_not_sent_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\x1b[2J swan\t\n天鹅\x07\u3000\x9b"
    assert printable(text) == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert printable(text) == "\ufffd[2J swan\t\n天鹅\ufffd\u3000\ufffd"


def test_sampling_is_changed_by_name() -> None:
    for spelt in ("temperature=0.2 top_k=5 seed=none", "temperature 0.2 top_k = 5 seed none"):
        assert changed_sampling(Sampling(), spelt) == Sampling(temperature=0.2, top_k=5, seed=None)
    assert changed_sampling(Sampling(), "temperature 0").temperature == 0
    assert changed_sampling(Sampling(), "") == Sampling()


@pytest.mark.parametrize(
    ("spelt", "said"),
    [
        ("heat=1", "no setting 'heat'; there are temperature, top_p"),
        ("temprature 0", "no setting 'temprature' (did you mean 'temperature'?)"),
        ("0.5", "no setting '0.5'"),
        ("temperature", "temperature: give a value, such as temperature=0.8"),
        ("temperature cold", "temperature: 'cold' is not a number"),
        ("top_k=none", "top_k: 'none' is not a whole number"),
        ("top_p=3", "top_p is 3.0: it must be above 0 and at most 1"),
    ],
)
def test_a_wrong_sampling_is_said_plainly(spelt: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        changed_sampling(Sampling(), spelt)


class Thinker:
    """Answers every question with the same thoughts."""

    is_only_pretrained = False

    def answer(self, messages: object, sampling: object) -> Pieces:
        yield from (Piece(reasoning="two "), Piece(reasoning="swans\x07"), Piece("Tw"), Piece("o"))


def test_reasoning_is_dimmed_for_people_and_left_out_of_pipes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for is_seen in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: is_seen, raising=False)  # noqa: B023
        terminal_chat._show(Conversation(Thinker(), Sampling()).answer("How many?"))
    piped, _, seen = capsys.readouterr().out.partition("\n")
    assert piped == "Two"
    assert seen == "\x1b[2mtwo swans\ufffd\x1b[22m\n\nTwo\n"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "give a run or model folder, or --url"),
        ({"run": Path("a"), "url": "http://a"}, "not both"),
        ({"run": Path("a"), "model": "swan"}, "--model goes with --url"),
        ({"run": Path("a"), "api_key": "k"}, "--api_key goes with --url"),
        ({"url": "http://a", "yarn_factor": 2.0}, "--yarn_factor goes with a model folder"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        ChatConfig(**settings)  # type: ignore[arg-type]


def chat(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cygnet", "chat", *arguments, "--seed", "1"]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False)


def test_a_pipe_and_a_prompt_give_the_same_answer_and_nothing_else(folder: Path) -> None:
    limits = ("--max-new-tokens", "8")
    piped = chat(str(folder), *limits, given="What is a swan?\n")
    asked = chat(str(folder), *limits, "--prompt", "What is a swan?")
    assert piped.returncode == asked.returncode == 0, piped.stderr
    assert piped.stdout == asked.stdout != "\n"
    control = chat(str(folder), *limits, "--prompt", "a <|im_end|> in the text")
    assert control.returncode == 0


def test_a_pipe_to_a_server_gives_what_the_server_says(llama_cpp: Callable[[int], str]) -> None:
    address = ("--url", llama_cpp(50_000), "--temperature", "0", "--max-new-tokens", "8")
    piped, asked = chat(*address, given="a swan\n"), chat(*address, "--prompt", "a swan")
    assert piped.returncode == asked.returncode == 0, piped.stderr
    assert piped.stdout == asked.stdout != "\n" and piped.stderr == ""
    gone = chat("--url", "http://127.0.0.1:1", "--prompt", "a swan")
    assert (gone.returncode, gone.stdout) == (2, "")
    assert gone.stderr.startswith("cygnet: http://127.0.0.1:1/v1: no server answers there (")


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
    done = chat(str(folder), *arguments, given=given)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


class Terminal:
    """`cygnet chat` in a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "cygnet", "chat", *arguments, "--temperature", "0.9",
                   "--top-k", "20", "--max-new-tokens", "40000", "--seed", "3"]  # fmt: skip
        self.process, self.shown = 0, ""
        self.process, self.file = pty.fork()
        if self.process == 0:
            os.execvpe(command[0], command, {**os.environ, "TERM": "xterm", "COLUMNS": "100"})

    def type(self, text: str) -> None:
        os.write(self.file, text.encode())

    def wait_for(self, text: str) -> str:
        """Return what was shown since the last call, up to and with `text`."""
        self._read_until(lambda: text in self.shown, f"no {text!r}")
        seen, _, self.shown = self.shown.partition(text)
        return seen + text

    def wait_for_characters(self, count: int) -> None:
        """Wait until so many characters were shown since the last call of `wait_for`."""
        self._read_until(lambda: len(self.shown) >= count, f"fewer than {count} characters")

    def _read_until(self, seen: Callable[[], bool], complaint: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not seen():
            assert time.monotonic() < until, f"{complaint} in {self.shown[-500:]!r}"
            if select.select([self.file], [], [], 1)[0]:
                new = os.read(self.file, 4096).decode(errors="replace")
                if "\x1b[6n" in new:  # the cursor's place is asked for
                    self.type("\x1b[1;1R")
                self.shown += CONTROL.sub("", new)

    def close(self) -> None:
        try:
            os.kill(self.process, signal.SIGKILL)
        except ProcessLookupError:
            return
        os.waitpid(self.process, 0)
        os.close(self.file)


@pytest.fixture(params=["a model", "a server"])
def terminal(request: pytest.FixtureRequest) -> Iterator[Terminal]:
    if request.param == "a server":
        opened = Terminal("--url", request.getfixturevalue("llama_cpp")(50_000))
    else:
        opened = Terminal(str(request.getfixturevalue("endless")))
    yield opened
    opened.close()


def test_commands_answers_and_ctrl_c_in_a_terminal(terminal: Terminal) -> None:
    terminal.wait_for("/help for commands")
    terminal.wait_for(">")
    terminal.type("/sampling temperature=0.25\r")
    terminal.wait_for("temperature=0.25")
    terminal.type("/sampling temperature=hot\r")
    terminal.wait_for("'hot' is not a number")
    terminal.type("/resett\r")
    terminal.wait_for("did you mean '/reset'?")
    terminal.type("/system Be brief.\r")
    terminal.wait_for("system prompt: Be brief.")
    terminal.type("Tell me about swans\r")
    terminal.wait_for("Tell me about swans")
    for _ in range(2):
        terminal.wait_for_characters(500)  # an answer, which would go on for minutes
        terminal.type("\x03")
        terminal.wait_for(" …")
        terminal.type("And about lakes?\r")
        terminal.wait_for("And about lakes?")
    terminal.wait_for_characters(500)
    terminal.type("\x03")
    terminal.wait_for(" …")
    terminal.wait_for(">")
    terminal.type("\x03")
    terminal.wait_for("Ctrl-D or /quit leaves")
    terminal.type("/reset\r")
    terminal.wait_for("(a new conversation)")
    terminal.type("/quit\r")
    until = time.monotonic() + PATIENCE_S
    while (ended := os.waitpid(terminal.process, os.WNOHANG)) == (0, 0):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
