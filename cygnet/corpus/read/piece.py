"""What the reader of a format yields: a text, its place in the file, and what came with it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Piece(NamedTuple):
    """A text of a file, before it becomes a document."""

    where: str
    """Its place in the file (a chapter, `page 3`, `byte 1024`), empty where it is the whole file.
    """
    text: str
    """The text, not cut and not cleaned; its lines end in "\\n"."""
    fields: dict[str, Any]
    """What the file says of it: title, url, language, licence and the like; JSON values alone."""
