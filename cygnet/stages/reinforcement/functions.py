"""Functions named on the command line: `FILE.py:NAME`, or `package.module:NAME` of our own.

Imports nothing heavy: the process of `cygnet.stages.reinforcement.sandbox` begins with it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from cygnet.errors import UserError, nearest


def is_file_reference(text: str) -> bool:
    """Return whether a text is of the form `FILE.py:NAME`."""
    return ".py:" in text or text.endswith(".py")


def absolute(reference: str, what: str) -> str:
    """Return `FILE.py:NAME` with the whole path of a file that is there.

    Args:
        reference: as typed.
        what: `reward`, `environment`, ... for the message.

    Raises:
        UserError: no name behind the file, or no such file.
    """
    file, colon, name = reference.rpartition(":")
    if not colon or not name.isidentifier():
        raise UserError(
            f"{what} {reference!r}: name the function behind the file, as my_{what}s.py:NAME"
        )
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"{what} {reference!r}: there is no file {path}")
    return f"{path}:{name}"


@lru_cache(maxsize=256)
def load(reference: str) -> Any:
    """Return what a reference names; a file is run once.

    Raises:
        UserError: the file cannot be run, or holds no such name.
    """
    source, _, name = reference.rpartition(":")
    module = _module(source) if source.endswith(".py") else importlib.import_module(source)
    if not hasattr(module, name):
        public = [word for word in vars(module) if not word.startswith("_")]
        raise UserError(f"{source} has no {name!r}{nearest(name, public)}")
    return getattr(module, name)


def load_all(references: list[str]) -> None:
    """Load what can be loaded; what cannot says so when it is called."""
    for reference in references:
        with contextlib.suppress(UserError):
            load(reference)


def returns_with(reference: str, methods: list[str]) -> bool:
    """Return whether a function, called without arguments, returns something with these methods.

    False, too, where it cannot be called so, or raises but would take arguments.

    Raises:
        UserError: it takes no arguments, and raises.
    """
    function = load(reference)
    if not callable(function):
        return False
    try:
        signature = inspect.signature(function)
        signature.bind()
    except (TypeError, ValueError):
        return False
    try:
        made = function()
    except (Exception, SystemExit) as error:
        if signature.parameters:
            return False
        raise UserError(f"{reference}: {raised(error)}{where_raised(error)}") from error
    return all(callable(getattr(made, name, None)) for name in methods)


def check_takes(reference: str, count: int) -> None:
    """Check that a reference names a function that can be called with `count` arguments.

    Raises:
        UserError: it is no function, or takes others.
    """
    function = load(reference)
    if not callable(function):
        raise UserError(f"{reference} is {type(function).__name__}, a function is wanted")
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # some functions written in C do not tell
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        name = getattr(function, "__name__", "it")
        raise UserError(
            f"{reference} must take {count} arguments and is {name}{signature} ({error})"
        ) from error


def raised(error: BaseException) -> str:
    """Return an exception as one line: its kind and what it says."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def where_raised(error: BaseException) -> str:
    """Return ` (FILE, line N)` of where an exception was raised, or nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


@lru_cache(maxsize=64)
def _module(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"cygnet_user_{Path(file).stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{file}: Python cannot read it as a module")
    module = importlib.util.module_from_spec(spec)
    run: Callable[[ModuleType], None] = spec.loader.exec_module
    try:
        run(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{file} cannot be run: {raised(error)}{where_raised(error)}") from error
    return module
