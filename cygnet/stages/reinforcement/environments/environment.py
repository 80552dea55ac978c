"""Environments: what answers the model within an episode, and above all its tools."""

from __future__ import annotations

import ast
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cygnet.errors import UserError, nearest
from cygnet.messages import Message
from cygnet.stages.reinforcement.environments.tools import TOOLS
from cygnet.stages.reinforcement.functions import (
    absolute,
    is_file_reference,
    load,
    raised,
    where_raised,
)
from cygnet.stages.reinforcement.rollout import Environment, Row, prompt_messages
from cygnet.stages.reinforcement.sandbox import START_S, CallFailed, Limits, Sandbox

MAX_RESULT_CHARS = 2000
METHODS = ("reset", "step")
"""What an environment has."""
RETURNS_WITH = "cygnet.stages.reinforcement.functions:returns_with"
ERROR = "Error: "
"""Begins the result of a tool that failed."""
VARIABLES = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
    "VIRTUAL_ENV", "PYTHONHOME", "PYTHONHASHSEED", "OMP_NUM_THREADS",
)  # fmt: skip
"""All that a tool sees of the environment's variables: no keys of services."""
TOOL_LIMITS = Limits(
    timeout_s=5.0,
    output_bytes=1 << 16,
    memory_bytes=1 << 30,
    file_bytes=1 << 24,
    network=False,
    quiet=True,
    own_folder=True,
    variables=VARIABLES,
)


@dataclass
class Step:
    """What an environment says to a message of the assistant."""

    messages: list[Message] = field(default_factory=list)
    """What comes next in the conversation; none ends the episode."""
    reward: float = 0.0
    """Is added to what the rewards give."""
    done: bool = False
    """The episode ends here."""


class Toolbox:
    """Tools in a process of their own, shared by all episodes of this process.

    Close it, or use it in a `with`.

    Args:
        tools: names of built-in tools (`TOOLS`) or `FILE.py:NAME` of a person's own functions.
        limits: what a call may use.

    Attributes:
        schemas: OpenAI's description of each, by name.
        counts: tool_calls; tool_errors (an exception, a wrong name or arguments); tools_ended (took
            too long, wrote too much, or broke its process).

    Raises:
        UserError: no such tool or file, or a function that cannot be one.
    """

    def __init__(self, tools: Sequence[str] = TOOLS, limits: Limits = TOOL_LIMITS) -> None:
        self.counts: Counter[str] = Counter()
        self._sandbox = Sandbox(limits)
        self._lock = threading.Lock()
        self._references: dict[str, str] = {}
        self.schemas: dict[str, dict[str, Any]] = {}
        for text in tools:
            reference = _tool_reference(text)
            schema = self._described(text, reference)
            name = schema["function"]["name"]
            if name in self.schemas:
                raise UserError(f"tool {text!r}: there is a tool {name!r} already")
            self.schemas[name], self._references[name] = schema, reference
            self._sandbox.references.append(reference)

    def call(self, name: str, arguments: Any) -> str:
        """Call a tool and return what the model is told: its result, or what went wrong.

        Args:
            name: of the tool.
            arguments: an object, or its JSON.
        """
        self._count("tool_calls")
        if name not in self._references:
            self._count("tool_errors")
            return f"{ERROR}no tool {name!r}; there are {', '.join(self._references)}"
        try:
            values = json.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError:
            values = None
        if not isinstance(values, dict):
            self._count("tool_errors")
            return f"{ERROR}the arguments are no JSON object"
        try:
            result = self._sandbox.call(self._references[name], values)
        except CallFailed as error:
            self._count("tools_ended" if error.ended else "tool_errors")
            return f"{ERROR}{error.said}"[:MAX_RESULT_CHARS]
        except UserError as error:  # such as a file that is gone by now
            self._count("tool_errors")
            return f"{ERROR}{error}"[:MAX_RESULT_CHARS]
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        return text[:MAX_RESULT_CHARS]

    @property
    def network(self) -> str:
        """How the tools are kept from the network: `namespace`, or Python's `hook` alone."""
        return self._sandbox.network

    @property
    def processes(self) -> str:
        """What is ended with the tools' process: all in its `namespace`, or its `group`."""
        return self._sandbox.processes

    def close(self) -> None:
        """End the process of the tools."""
        self._sandbox.close()

    def __enter__(self) -> Toolbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _described(self, text: str, reference: str) -> dict[str, Any]:
        describe = "cygnet.stages.reinforcement.environments.signature:tool_schema"
        try:
            schema: dict[str, Any] = self._sandbox.call(describe, [reference], timeout_s=START_S)
        except (CallFailed, UserError) as error:
            raise UserError(f"tool {text!r}: {error}") from error
        return schema


class ToolEnvironment:
    """One episode with tools: calls are answered, and an answer without a call ends it.

    Args:
        toolbox: the tools; those that the row's `tools` describes are offered, or all of them.
    """

    def __init__(self, toolbox: Toolbox) -> None:
        self.toolbox = toolbox

    def reset(self, row: Row) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """Return the prompt's messages, and the tools.

        Raises:
            UserError: the row has no prompt, or offers a tool that is not there.
        """
        offered = row.get("tools") or list(self.toolbox.schemas.values())
        for tool in offered:
            name = tool.get("function", tool).get("name")
            if name not in self.toolbox.schemas:
                raise UserError(
                    f"a prompt offers the tool {name!r}, which the environment has not"
                    f"{nearest(str(name), self.toolbox.schemas)}"
                )
        return prompt_messages(row), offered

    def step(self, message: Message) -> Step:
        """Answer the calls of a message, in order."""
        results: list[Message] = []
        for call in message.get("tool_calls") or []:
            function = call.get("function", call)
            content = self.toolbox.call(function["name"], function["arguments"])
            results.append(
                {
                    "role": "tool",
                    "name": function["name"],
                    "tool_call_id": call.get("id"),
                    "content": content,
                }
            )
        return Step(results, done=not results)


class World:
    """Makes the environment of each episode; close it, or use it in a `with`.

    Args:
        make: returns a new environment.
        toolbox: what the environments share, if they are ours.
    """

    def __init__(self, make: Callable[[], Environment], toolbox: Toolbox | None = None) -> None:
        self._make = make
        self.toolbox = toolbox

    def __call__(self) -> Environment:
        """Return the environment of a new episode."""
        return self._make()

    @property
    def counts(self) -> dict[str, int]:
        """How often tools were called, and failed; see `Toolbox`."""
        return dict(self.toolbox.counts) if self.toolbox else {}

    def close(self) -> None:
        """End what the environments started."""
        if self.toolbox is not None:
            self.toolbox.close()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find_environment(text: str, limits: Limits = TOOL_LIMITS) -> World:
    """Return what makes environments.

    Args:
        text: names of tools, parted by commas (`calculator,my.py:weather`); `tools` for all that
            are built in; or `FILE.py:NAME` of a class (or function) that returns an environment
            when it is called without arguments.
        limits: of the tools. An environment of one's own runs in the training process; a file
            that names none is never loaded there.

    Raises:
        UserError: no such tool, file or name, or what it names makes no environment.
    """
    if is_file_reference(text) and "," not in text:
        reference = absolute(text, "environment")
        if _is_class(reference) or _returns_environment(reference, limits):
            return World(_checked(reference, load(reference)))
    names = TOOLS if text == "tools" else [part.strip() for part in text.split(",")]
    toolbox = Toolbox(tuple(names), limits)
    return World(lambda: ToolEnvironment(toolbox), toolbox)


def _is_class(reference: str) -> bool:
    """Return whether a file's text defines a class of that name; the file is not run."""
    file, _, name = reference.rpartition(":")
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (SyntaxError, ValueError):
        return False  # whoever runs it says what is wrong
    return any(isinstance(node, ast.ClassDef) and node.name == name for node in tree.body)


def _returns_environment(reference: str, limits: Limits) -> bool:
    """Return whether a function is a maker of environments, called in a process of its own.

    A tool takes arguments, or it would have nothing to work on.
    """
    # What makes an environment may load a model; a tool still has its limits when it is one.
    with Sandbox(replace(limits, memory_bytes=None)) as sandbox:
        asked = [reference, list(METHODS)]
        try:
            return bool(sandbox.call(RETURNS_WITH, asked, timeout_s=START_S))
        except (CallFailed, UserError) as error:
            raise UserError(f"environment {reference}: {error}") from error


def _checked(reference: str, make: Callable[[], Environment]) -> Callable[[], Environment]:
    try:
        made = make()
    except TypeError as error:
        raise UserError(
            f"environment {reference}: cannot be made without arguments ({error})"
        ) from error
    except (Exception, SystemExit) as error:
        raise UserError(f"environment {reference}: {raised(error)}{where_raised(error)}") from error
    if missing := [name for name in METHODS if not callable(getattr(made, name, None))]:
        raise UserError(f"environment {reference}: has no {' and no '.join(missing)}")
    return make


def _tool_reference(text: str) -> str:
    if is_file_reference(text):
        return absolute(text, "tool")
    if text not in TOOLS:
        raise UserError(
            f"tool {text!r}: not built in{nearest(text, TOOLS)}; there are {', '.join(TOOLS)}, "
            "and FILE.py:NAME for one of your own"
        )
    return f"cygnet.stages.reinforcement.environments.tools:{text}"
