"""Tools answer the model whatever they do; what may not be done is not done."""

import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cygnet.errors import UserError
from cygnet.stages.reinforcement.environments.environment import (
    TOOL_LIMITS,
    Toolbox,
    ToolEnvironment,
    find_environment,
)

TOOLS = '''
def weather(city: str, days: int = 1) -> str:
    """Say the weather.

    Only the first line is told.
    """
    return f"{city}: rain for {days} days"

def table():
    return {"a": [1, 2]}

def loops():
    while True:
        pass

def sleeps():
    import time
    time.sleep(1000)

def prints():
    while True:
        print("x" * 10_000)

def returns_gigabytes():
    return "x" * (1 << 26)

def takes_memory():
    return len(bytearray(1 << 31))

def writes_a_file():
    with open("large", "wb") as file:
        for _ in range(1000):
            file.write(bytes(1 << 20))

def where():
    import os
    return os.getcwd()

def connects(port: int):
    import socket
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        return "connected"

def starts(marker: str):
    import subprocess, sys, time
    subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(300) # {marker}"])
    time.sleep(1000)

def starts_apart(marker: str):
    import subprocess, sys, time
    code = f"import time; time.sleep(300) # {marker}"
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    time.sleep(1000)

def starts_apart_and_leaves(marker: str):
    import os, subprocess, sys, time
    code = f"import time; time.sleep(300) # {marker}"
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    os._exit(3)

def forks():
    import os
    return "child" if os.fork() == 0 else "parent"

def answers_itself():
    import contextlib, os
    for handle in range(3, 12):
        with contextlib.suppress(OSError):
            os.write(handle, b'{"result": "mine"}\\n')
    return "right"

def variable(name: str):
    import os
    return os.environ.get(name, "none")

def anything(**arguments):
    return ""
'''
ALL = (
    "weather table loops sleeps prints returns_gigabytes takes_memory writes_a_file where "
    "connects starts starts_apart starts_apart_and_leaves forks answers_itself variable"
).split()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "mine.py"
    path.write_text(TOOLS)
    return path


@pytest.fixture(scope="module")
def builtin() -> Iterator[Toolbox]:
    with Toolbox() as box:
        yield box


def open_box(file: Path, timeout_s: float) -> Toolbox:
    limits = dataclasses.replace(TOOL_LIMITS, timeout_s=timeout_s)
    return Toolbox(["calculator", *(f"{file}:{name}" for name in ALL)], limits)


@pytest.fixture
def box(file: Path) -> Iterator[Toolbox]:
    """A limit that a busy machine does not reach by itself."""
    with open_box(file, timeout_s=60) as box:
        yield box


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("calculator", '{"expression": "37*45"}', "1665"),
        ("calculator", {"expression": "(2 + 3) / 4"}, "1.25"),
        ("calculator", {"expression": "2**10 - sqrt(16)"}, "1020"),
        ("calculator", {"expression": "9**9**9"}, "Error: ValueError: the power is too large"),
        ("calculator", {"expression": "1/0"}, "Error: ZeroDivisionError"),
        ("calculator", {"expression": "__import__('os').getcwd()"}, "Error: ValueError: cannot"),
        ("calculator", {"expression": "'a'*9"}, "Error: ValueError: cannot"),
        ("calculator", {"expression": "1 +"}, "Error: SyntaxError"),
        ("unit_converter", {"value": 3, "from_unit": "cups", "to_unit": "ml"}, "709.765"),
        ("unit_converter", {"value": 100, "from_unit": "celsius", "to_unit": "F"}, "212"),
        (
            "unit_converter",
            {"value": 3, "from_unit": "kg", "to_unit": "m"},
            "Error: ValueError: kg",
        ),
        ("dictionary", {"word": "comet"}, "A comet is an icy"),
        ("dictionary", {"word": "comett"}, "Error: KeyError: \"no entry 'comett' (did you mean"),
        ("calculator", {"expr": "1"}, "Error: TypeError"),
        ("calculator", "{", "Error: the arguments are no JSON object"),
        ("calculator", "[1]", "Error: the arguments are no JSON object"),
        ("calcluator", {}, "Error: no tool 'calcluator'"),
    ],
)
def test_built_in_tools(builtin: Toolbox, tool: str, arguments: object, said: str) -> None:
    assert builtin.call(tool, arguments).startswith(said)


def test_a_tool_of_ones_own_is_described_by_its_signature(box: Toolbox) -> None:
    assert box.schemas["weather"] == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Say the weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
    assert box.call("weather", {"city": "Oslo"}) == "Oslo: rain for 1 days"
    assert box.call("table", {}) == '{"a": [1, 2]}'


@pytest.mark.parametrize(
    ("tool", "said", "ended"),
    [
        ("loops", "took longer than 4 s", True),
        ("sleeps", "took longer than 4 s", True),
        ("prints", "took longer than 4 s", True),
        ("returns_gigabytes", "gave more than 65,536 bytes", True),
        ("answers_itself", "wrote what is no answer to the call", True),
        ("takes_memory", "MemoryError", False),
        ("writes_a_file", "File too large", False),
    ],
)
def test_a_tool_that_takes_too_much_is_ended_and_counted_and_the_next_call_works(
    file: Path, tool: str, said: str, ended: bool
) -> None:
    with open_box(file, timeout_s=4 if "took longer" in said else 60) as box:
        result = box.call(tool, {})
        assert result.startswith("Error: ") and said in result
        assert box.call("calculator", {"expression": "1+1"}) == "2"
        expected = {"tool_calls": 2, "tools_ended" if ended else "tool_errors": 1}
        assert dict(box.counts) == expected


def test_a_tool_that_forks_answers_once(box: Toolbox) -> None:
    """Two answers to one call would shift those of all calls behind it."""
    assert box.call("forks", {}) == "parent"
    assert box.call("forks", {}) == "parent"
    sums = [box.call("calculator", {"expression": f"{n}+{n}"}) for n in range(1, 5)]
    assert sums == ["2", "4", "6", "8"]


def listening() -> tuple[socket.socket, int]:
    server = socket.create_server(("127.0.0.1", 0))
    return server, server.getsockname()[1]


def test_a_tool_has_no_network(box: Toolbox) -> None:
    server, port = listening()
    with server:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass  # it can be reached from here
        assert box.call("connects", {"port": port}).startswith("Error: ")


def test_without_namespaces_pythons_hook_keeps_the_network_away() -> None:
    server, port = listening()
    code = (
        "import ctypes, sys\n"
        "from cygnet.stages.reinforcement import sandbox_child\n"
        "sys.platform = 'other'\n"  # as where the kernel gives no namespace
        "print(*sandbox_child._cut_network())\n"
        "import socket, subprocess\n"
        f"for act in (lambda: socket.socket().connect(('127.0.0.1', {port})),\n"
        "             lambda: subprocess.run(['true'])):\n"
        "    try:\n"
        "        act()\n"
        "    except PermissionError as error:\n"
        "        print(error)\n"
    )
    with server:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "hook group", done.stderr
    assert "socket.connect: tools have no network" in lines[1]
    assert "subprocess.Popen: tools have no network" in lines[2]


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ("starts", "took longer"),
        ("starts_apart", "took longer"),
        ("starts_apart_and_leaves", "ended (exit code 3)"),
    ],
)
def test_what_a_tool_started_is_ended_with_it(box: Toolbox, tool: str, said: str) -> None:
    if box.processes != "namespace" and tool != "starts":
        pytest.skip("the kernel gives no namespace of processes here")
    marker = f"cygnet-tool-{os.getpid()}-{time.monotonic_ns()}"
    assert said in box.call(tool, {"marker": marker})

    def alive() -> bool:
        commands = Path("/proc").glob("[0-9]*/cmdline")
        found = []
        for command in commands:
            try:
                found.append(marker.encode() in command.read_bytes())
            except OSError:
                continue
        return any(found)

    deadline = time.monotonic() + 30
    while alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive()


def test_a_tool_sees_no_variables_but_those_that_are_listed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CYGNET_API_KEY", "secret")
    with Toolbox([f"{file}:variable"]) as box:
        assert box.call("variable", {"name": "CYGNET_API_KEY"}) == "none"
        assert box.call("variable", {"name": "PATH"}) == os.environ["PATH"]


def test_tools_work_in_a_folder_of_their_own_that_is_gone_afterwards(file: Path) -> None:
    with Toolbox([f"{file}:where"]) as box:
        folder = Path(box.call("where", {}))
        assert folder.is_dir() and folder != Path.cwd()
    assert not folder.exists()


def test_a_sandbox_without_a_parent_ends_itself(file: Path) -> None:
    code = (
        "import os, sys\n"
        "from cygnet.stages.reinforcement.environments.environment import Toolbox\n"
        f"box = Toolbox([r'{file}:loops'])\n"
        "import threading\n"
        "threading.Thread(target=box.call, args=('loops', {}), daemon=True).start()\n"
        "print(box._sandbox._process.pid, flush=True)\n"
        "import time; time.sleep(1)\n"  # until it is inside the loop
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid = int(done.stdout)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            break
        if state == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"process {pid} still runs")


def test_a_tool_that_loads_slowly_is_loaded_anew_outside_of_the_calls_time(
    tmp_path: Path,
) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\ntime.sleep(1.0)\ndef rests(seconds: int): return time.sleep(seconds)\n"
    )
    limits = dataclasses.replace(TOOL_LIMITS, timeout_s=0.8)
    with Toolbox([f"{tmp_path}/slow.py:rests"], limits) as box:
        told = [box.call("rests", {"seconds": seconds}) for seconds in (0, 1000, 0)]
    assert told[0] == told[2] == "null" and "took longer" in told[1]


def test_many_threads_may_call(box: Toolbox) -> None:
    with ThreadPoolExecutor(8) as pool:
        asked = [f"{number}*3" for number in range(64)]
        told = list(pool.map(lambda e: box.call("calculator", {"expression": e}), asked))
    assert told == [str(number * 3) for number in range(64)]
    assert box.counts["tool_calls"] == 64


def test_an_episode_ends_with_the_answer_that_calls_nothing(builtin: Toolbox) -> None:
    world = ToolEnvironment(builtin)
    messages, tools = world.reset({"prompt": "What is 6 times 7?"})
    assert messages == [{"role": "user", "content": "What is 6 times 7?"}]
    assert tools is not None and len(tools) == 3
    calls = [
        {"id": f"call_{n}", "function": {"name": "calculator", "arguments": {"expression": str(n)}}}
        for n in (6, 7)
    ]
    step = world.step({"role": "assistant", "content": "", "tool_calls": calls})
    assert not step.done
    assert [(m["role"], m["tool_call_id"], m["content"]) for m in step.messages] == [
        ("tool", "call_6", "6"), ("tool", "call_7", "7"),
    ]  # fmt: skip
    assert world.step({"role": "assistant", "content": "42"}).done


def test_a_row_offers_some_tools_and_none_that_are_not_there(builtin: Toolbox) -> None:
    world = ToolEnvironment(builtin)
    offered = [builtin.schemas["calculator"]]
    assert world.reset({"prompt": "x", "tools": offered})[1] == offered
    with pytest.raises(UserError, match="the tool 'oven', which the environment has not"):
        world.reset({"prompt": "x", "tools": [{"function": {"name": "oven"}}]})


ENVIRONMENTS = """
class Game:
    def reset(self, row):
        return [{"role": "user", "content": row["prompt"]}], None

    def step(self, message):
        ...

class Broken:
    def reset(self, row): ...

class Needs:
    def __init__(self, size): ...

def make():
    return Game()

def breaks():
    raise OSError("no such file")

class Breaks:
    def __init__(self):
        raise OSError("no such game")
"""
ONE_TOOL = '''
import os

with open({told!r}, "a") as file:
    file.write(f"{{os.getpid()}} ")

def today(style: str = "iso") -> str:
    """Say the date."""
    with open({told!r}, "a") as file:
        file.write(f"{{os.getpid()}} ")
    return "2026"

def raises(style: str = "iso") -> str:
    """Say nothing."""
    raise RuntimeError("called without need")
'''


def test_a_file_with_a_tool_is_neither_loaded_nor_called_in_the_training(tmp_path: Path) -> None:
    path, told = tmp_path / "one.py", tmp_path / "told"
    path.write_text(ONE_TOOL.format(told=str(told)))
    for name in ("today", "raises"):
        with find_environment(f"{path}:{name}") as world:
            assert world.toolbox is not None and list(world.toolbox.schemas) == [name]
    assert told.read_text() and str(os.getpid()) not in told.read_text().split()


def test_environments_of_ones_own(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "worlds.py"
    path.write_text(ENVIRONMENTS)
    for name in ("Game", "make"):
        with find_environment(f"{path}:{name}") as world:
            assert type(world()).__name__ == "Game" and world() is not world()
            assert world.counts == {}
    with pytest.raises(UserError, match="has no step"):
        find_environment(f"{path}:Broken")
    with pytest.raises(UserError, match="cannot be made without arguments"):
        find_environment(f"{path}:Needs")
    with pytest.raises(UserError, match=r"no such file \(worlds.py, line"):
        find_environment(f"{path}:breaks")
    with pytest.raises(UserError, match=r"no such game \(worlds.py, line"):
        find_environment(f"{path}:Breaks")
    with find_environment(f"calculator,{file}:weather") as world:
        assert world.toolbox is not None and set(world.toolbox.schemas) == {"calculator", "weather"}
    with pytest.raises(UserError, match="did you mean 'calculator'"):
        find_environment("calculater")
    with pytest.raises(UserError, match="name its parameters"):
        find_environment(f"calculator,{file}:anything")
