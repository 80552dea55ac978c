"""A sources file: which collections make up a corpus, and what holds for each.

A list in YAML, one entry a collection:

    - path: books/**/*.txt
      domain: books
      licence: public domain
      weight: 2
    - path: https://example.org/dump.jsonl.zst
      text_field: body
      epochs: 0.5
      rules: web
"""

from __future__ import annotations

import dataclasses
import math
import os.path
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cygnet.corpus.clean.rules import RULE_SETS
from cygnet.errors import UserError, nearest

MAX_FACTOR = 1000


@dataclass(frozen=True, kw_only=True)
class Source:
    """An entry of a sources file."""

    path: str
    """A file, a folder, a glob or a URL; a path that is not absolute starts at the sources file."""
    weight: float = 1.0
    """Its share of the mixture is its size times this."""
    epochs: float = 1.0
    """How often its documents are seen in one pass over the corpus."""
    licence: str = ""
    """Of its documents."""
    domain: str = ""
    """What figures are given for; empty for the folder's or file's own name."""
    rules: str = ""
    """The name of the set of rules that it is filtered by; empty for the usual ones."""
    text_field: str = ""
    """The field of its rows that holds the text; empty for the usual names."""
    number: int = 1
    """Which entry of the file it is, from 1; not given by the person."""


FIELDS = tuple(field.name for field in dataclasses.fields(Source) if field.name != "number")


def is_sources_file(path: Path) -> bool:
    """Say whether a path names a sources file."""
    return path.suffix.lower() in (".yaml", ".yml")


def read_sources(path: Path) -> list[Source]:
    """Return the entries of a sources file, in order.

    Raises:
        UserError: it cannot be read, is no such list, or a field is unknown or wrong; the message
            names the file, the entry and the field.
    """
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: no YAML ({why})") from error
    if not isinstance(value, list) or not value:
        raise UserError(
            f"{path}: a list of sources is wanted, such as '- path: books/*.txt', an entry each"
        )
    return [_source(entry, number, path) for number, entry in enumerate(value, start=1)]


def _source(entry: Any, number: int, file: Path) -> Source:
    where = f"{file}: entry {number}"
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, dict):
        raise UserError(f"{where}: {entry!r:.60} is no source; write 'path: ...' and its fields")
    for name in entry:
        if name not in FIELDS:
            raise UserError(
                f"{where}: unknown field {name!r}{nearest(str(name), FIELDS)}; "
                f"the fields are {', '.join(FIELDS)}"
            )
    if "path" not in entry:
        raise UserError(f"{where}: no path; name a file, a folder, a glob or a URL")
    values: dict[str, Any] = {}
    for name, value in entry.items():
        check = _factor if name in ("weight", "epochs") else _text
        values[name] = check(value, f"{where}, {name}")
    if "rules" in values and values["rules"] not in ("auto", *RULE_SETS):
        raise UserError(
            f"{where}, rules: no set {values['rules']!r}{nearest(values['rules'], RULE_SETS)}; "
            f"give one of auto, {', '.join(RULE_SETS)}"
        )
    if "://" not in values["path"]:
        values["path"] = os.path.join(file.parent, os.path.expanduser(values["path"]))
    return Source(**values, number=number)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {value!r:.60} is no text; write it in quotes if it looks so")
    return value.strip()


def _factor(value: Any, where: str) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 < value <= MAX_FACTOR:
        raise UserError(
            f"{where}: {value!r:.60} given; give a number above zero and up to {MAX_FACTOR}, "
            "or leave the source out"
        )
    return float(value)
