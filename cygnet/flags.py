"""Command-line flags from settings dataclasses, over a preset or a YAML file."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from cygnet.config import LENGTHS, PRESETS, TrainConfig, load_settings, read_yaml
from cygnet.errors import UserError, nearest

Command = TypeVar("Command")


def parse(
    command: type[Command],
    arguments: Sequence[str],
    program: str,
    summary: str,
    examples: Sequence[str],
) -> Command:
    """Return the settings that the flags give.

    What `--preset NAME` (a file of configs/), `--config FILE` or, for a command that takes one, a
    YAML file named first says comes before the defaults; flags come before both. `--a_b` and
    `--a-b` are the same.

    Raises:
        UserError: a flag that does not exist (the nearest are named), a file that cannot be used,
            or a value of the wrong kind or out of its range.
        SystemExit: after `--help`.
    """
    rest, files = _take_files(list(arguments), command)
    default = None
    is_recipe, is_preset = hasattr(command, "default_preset"), [_is_preset(f) for f in files]
    if is_recipe and not any(is_preset[:1]):
        preset = _preset(vars(command)["default_preset"])
        values = {**read_yaml(preset), **vars(command)["unlike_preset"]}
        default = load_settings(command, values, str(preset))
    for file in files:
        default = _over(default, command, file)
    if "reads_yaml" in vars(command):
        default = _with_room_for_length(default or command(), rest, is_recipe)
    description = "\n".join([summary, "", "Examples:", *(f"  {line}" for line in examples)])
    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            settings, unknown = tyro.cli(
                command,
                args=rest,
                prog=program,
                description=description,
                return_unknown_args=True,
                **kwargs,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        _refuse_unknown(rest, command, program)
        raise UserError(f"{_unframed(told.getvalue())}; see {program} --help") from None
    if unknown:
        _refuse_unknown(unknown, command, program)
        raise UserError(f"{unknown[0]!r} belongs to no flag; see {program} --help")
    return settings


def flag_names(command: type[Any]) -> list[str]:
    """Return the flags of a command as its help spells them: `--steps`, `--model.num-layers`."""
    shown = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(shown):
        tyro.cli(command, args=["--help"], prog="", description="")
    found = re.findall(r"(?<![\w`-])--[a-z][\w.-]*", shown.getvalue())
    return list(dict.fromkeys(name.replace("_", "-") for name in found))


def _refuse_unknown(arguments: Sequence[str], command: type[Any], program: str) -> None:
    known = flag_names(command)
    known += ["--preset", "--config"] if "reads_yaml" in vars(command) else []
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            near = _nearest_flags(flag, known)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise UserError(f"no flag {argument.partition('=')[0]}{hint}; see {program} --help")


def _nearest_flags(flag: str, known: Sequence[str]) -> list[str]:
    """Return up to three flags that a person may have meant, in whatever section they stand."""
    by_last: dict[str, list[str]] = {}
    for name in known:
        by_last.setdefault(name.removeprefix("--").rpartition(".")[2], []).append(name)
    whole = difflib.get_close_matches(flag, known, n=1, cutoff=0.8) if "." in flag else []
    last = flag.removeprefix("--").rpartition(".")[2]
    close = [last] if last in by_last else difflib.get_close_matches(last, by_last, n=1, cutoff=0.6)
    return whole or [name for found in close for name in by_last[found]][:3]


def _unframed(framed: str) -> str:
    """Return the first paragraph inside a frame drawn around an error, as one line."""
    lines = [line.strip("│ ") for line in framed.splitlines() if line.startswith("│")]
    end = next((i for i, line in enumerate(lines) if not line or line.startswith("──")), None)
    return " ".join(lines[:end]).rstrip(".") or " ".join(framed.split())


def _take_files(arguments: list[str], command: type[Any]) -> tuple[list[str], list[Path]]:
    """Split off `--preset`, `--config` and, where `command` is a recipe, a first YAML file."""
    if "reads_yaml" not in vars(command):
        return arguments, []
    rest, files = [], []
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        files.append(Path(arguments.pop(0)))
    while arguments:
        name, _, value = arguments.pop(0).partition("=")
        if name not in ("--preset", "--config"):
            rest.append(f"{name}={value}" if _ else name)
            continue
        if not value:
            if not arguments:
                raise UserError(f"{name}: a {'name' if name == '--preset' else 'file'} must follow")
            value = arguments.pop(0)
        files.append(_preset(value) if name == "--preset" else Path(value))
    return rest, files


def _is_preset(file: Path) -> bool:
    return file.resolve().parent == PRESETS


def _preset(name: str) -> Path:
    path = PRESETS / f"{name}.yaml"
    if not path.exists():
        names = sorted(file.stem for file in PRESETS.glob("*.yaml"))
        raise UserError(f"--preset {name}: there are {', '.join(names)}{nearest(name, names)}")
    return path


def _with_room_for_length(default: Command, arguments: list[str], is_recipe: bool) -> Command:
    """Take away the length that a default gives a stage where a flag gives it another."""
    for argument in arguments:
        name = argument.partition("=")[0].lstrip("-").replace("-", "_")
        section, _, length = name.rpartition(".")
        if length not in LENGTHS or not argument.startswith("--"):
            continue
        for stage, train in list(vars(default).items()):
            if isinstance(train, TrainConfig) and section == (stage if is_recipe else ""):
                no_length: dict[str, Any] = dict.fromkeys(LENGTHS)
                without = dataclasses.replace(train, **no_length)
                default = dataclasses.replace(default, **{stage: without})  # type: ignore[type-var]
    return default


def _over(default: Command | None, command: type[Command], file: Path) -> Command:
    """Return the settings that a file gives over those before it."""
    values = read_yaml(file)
    is_recipe = hasattr(command, "default_preset")
    if _is_preset(file) and not is_recipe:
        # A preset of a whole recipe serves a single command: its sizes and training are taken.
        fields = dataclasses.fields(command)  # type: ignore[arg-type]
        known = {field.name for field in fields} - {"out", "data"}
        values = {key: value for key, value in values.items() if key in known}
    return load_settings(command, values, str(file), default)
