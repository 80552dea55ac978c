"""Command-line flags from settings dataclasses, over a preset or a YAML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from cygnet.config import load_settings, read_yaml
from cygnet.errors import UserError, nearest

Command = TypeVar("Command")
PRESETS = Path(__file__).parent.parent / "configs"


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
        UserError: a file that cannot be used, or a value out of its range.
        SystemExit: after `--help`, or for a flag that does not exist (the nearest is shown).
    """
    rest, files = _take_files(list(arguments), command)
    values: dict[str, Any] = {}
    for file in files:
        values |= read_yaml(file)
    if not files and (preset := getattr(command, "default_preset", None)):
        files = [_preset(preset)]
        values = {**read_yaml(files[0]), **vars(command)["unlike_preset"]}
    default = _default(command, values, files)
    description = "\n".join([summary, "", "Examples:", *(f"  {line}" for line in examples)])
    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(command, args=rest, prog=program, description=description, **kwargs)


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


def _preset(name: str) -> Path:
    path = PRESETS / f"{name}.yaml"
    if not path.exists():
        names = sorted(file.stem for file in PRESETS.glob("*.yaml"))
        raise UserError(f"--preset {name}: there are {', '.join(names)}{nearest(name, names)}")
    return path


def _default(command: type[Command], values: dict[str, Any], files: list[Path]) -> Command | None:
    if not files:
        return None
    # A preset of a whole recipe also serves a single command: what concerns it is taken.
    known = {field.name for field in dataclasses.fields(command)}  # type: ignore[arg-type]
    if PRESETS in [file.parent for file in files]:
        values = {key: value for key, value in values.items() if key in known}
    return load_settings(command, values, " + ".join(map(str, files)))
