"""A document as it is learnt: every text of it repaired, unified and, by choice, masked."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from cygnet.corpus.clean.normalize import normalize
from cygnet.corpus.clean.privacy import mask
from cygnet.corpus.clean.web import web_lines
from cygnet.corpus.document import Document, document_id
from cygnet.corpus.read.readers import transcript
from cygnet.corpus.settings import DataConfig

NAMES = ("role", "id", "type", "name", "tool_call_id")
"""Fields of messages that name something: no text, and equal wherever it is named."""


class Cleaner:
    """Cleans texts in one way, and counts the private data that it finds.

    Attributes:
        private: how much was found so far, by its kind.
    """

    def __init__(self, config: DataConfig, of_web: bool = False) -> None:
        self._config, self._of_web = config, of_web
        self._kinds = frozenset(config.private)
        self.private: Counter[str] = Counter()

    def text(self, text: str) -> str:
        """Return a text cleaned."""
        text = normalize(text, self._config.chinese)
        if self._of_web:
            text = web_lines(text)
        if self._config.privacy == "keep":
            return text
        masked, found = mask(text, self._kinds)
        self.private.update(found)
        return masked if self._config.privacy == "mask" else text

    def document(self, document: Document) -> Document:
        """Return a document with its text, messages, tools and title cleaned, and its id anew.

        Other fields stay as they are: they are kept with the document and never learnt.
        """
        fields = {
            name: self._all_of(value) if name in ("title", "tools") else value
            for name, value in document.fields.items()
        }
        messages = document.messages
        if messages is not None:
            messages = [self._all_of(message) for message in messages]
            text = transcript(messages)
        else:
            text = self.text(document.text)
        if text == document.text and messages == document.messages and fields == document.fields:
            return document
        return dataclasses.replace(
            document, id=document_id(text), text=text, messages=messages, fields=fields
        )

    def _all_of(self, value: Any) -> Any:
        """Return a JSON value with every text in it cleaned."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._all_of(item) for item in value]
        if isinstance(value, Mapping):
            return {
                name: item if name in NAMES and isinstance(item, str) else self._all_of(item)
                for name, item in value.items()
            }
        return value
