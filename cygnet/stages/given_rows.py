"""JSON lines that a person gives: read with file and line at hand, to name what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cygnet.errors import UserError
from cygnet.files import open_bytes


def numbered_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each line of JSON of a person's file; blank ones are none.

    Raises:
        UserError: the file cannot be read, or a line is no JSON or no text; names file and line.
    """
    try:
        with open_bytes(path) as file:
            lines = file.readlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            # JSON can write half of a character, which is no text.
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{path}:{number}: {error.object[error.start]!r} is half of a character (a lone "
                "surrogate) and no text; leave it out"
            ) from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not JSON ({error})") from error
        yield number, value
