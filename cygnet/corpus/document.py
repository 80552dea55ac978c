"""The clean document: what every file of a data folder holds, one JSON object a line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TRAIN, HELDOUT = "train.jsonl.zst", "heldout.jsonl.zst"
"""The files of a data folder that hold documents."""


def document_id(text: str) -> str:
    """Return the first 16 hexadecimal characters of the SHA-256 of the text (UTF-8)."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it comes from."""

    id: str
    """`document_id(text)`."""
    text: str
    """What is trained on; of a conversation, a plain transcript without control tokens."""
    domain: str
    """The part of the corpus that figures are given for, such as `recipes_en`."""
    source: str
    """Where it was read: `notes/a.txt`, or `rows.jsonl:12` with the line or row."""
    fields: dict[str, Any] = field(default_factory=dict)
    """The row's other fields as they were: title, author, ingredients..."""
    messages: list[dict[str, Any]] | None = None
    """A conversation in OpenAI's form, or None."""
    copies: int = 1
    """How often it is seen in an epoch, by its source's weight."""

    @property
    def title(self) -> str:
        """The `title` field, or an empty string."""
        title = self.fields.get("title")
        return title if isinstance(title, str) else ""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; `messages` and `copies` are left out where they say nothing."""
        value: dict[str, Any] = {
            "id": self.id,
            "text": self.text,
            "domain": self.domain,
            "source": self.source,
            "fields": self.fields,
        }
        if self.messages is not None:
            value["messages"] = self.messages
        if self.copies != 1:
            value["copies"] = self.copies
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Document:
        """Return the document that `to_json` wrote."""
        return cls(
            id=value["id"],
            text=value["text"],
            domain=value["domain"],
            source=value["source"],
            fields=dict(value["fields"]),
            messages=value.get("messages"),
            copies=value.get("copies", 1),
        )
