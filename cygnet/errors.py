"""Errors that the person at the keyboard can mend."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(Exception):
    """Wrong input. The message is one line: what is wrong, where (file, line, field), what to do.

    The command line prints it without a traceback and exits with 2. It is no ValueError, since
    those that arise while flags are read are framed and folded by tyro.
    """


class InterruptedRun(Exception):
    """The run was asked to stop; a checkpoint has been written.

    Attributes:
        signal_number: SIGINT or SIGTERM.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the allowed word most like `word`, or an empty string."""
    matches = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        UserError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"this needs the package {error.name!r}: pip install 'cygnet[{extra}]'"
        ) from error
