"""Weights of data sets in a mixture: `a.jsonl=2 b.jsonl=0.5`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from cygnet.corpus.document import TRAIN
from cygnet.corpus.read.find import find_files
from cygnet.corpus.read.problems import Problems
from cygnet.errors import UserError

MAX_WEIGHT = 1000
_WEIGHTED = re.compile(r"(?P<path>.+)=(?P<weight>[^=/\\]*)", re.DOTALL)


def parse_mixture(given: Sequence[str]) -> tuple[tuple[str, ...], dict[str, float]]:
    """Part paths from their weights.

    Args:
        given: files, folders or globs, each alone or with `=WEIGHT` behind it: how often a row of
            it is seen in an epoch. A path that is there as it stands has no weight.

    Returns:
        The paths, and the weights that are not 1, by the files' names in `Document.source`.

    Raises:
        UserError: a weight is no number above zero and up to `MAX_WEIGHT`, or a data folder's; a
            path does not exist; two files of one name have different weights.
    """
    paths: list[str] = []
    weights: dict[str, float] = {}
    for text in given:
        path, weight = _part(text)
        paths.append(path)
        if path == text:
            continue
        if (Path(path) / TRAIN).exists():
            raise UserError(f"{text}: a folder of cygnet data has no weight; give its raw files")
        for file in find_files([path], Problems()):
            weights[file.source] = weight
    if weights:
        _check_names(paths, dict(map(_part, given)), weights)
    return tuple(paths), {source: weight for source, weight in weights.items() if weight != 1}


def _part(text: str) -> tuple[str, float]:
    found = _WEIGHTED.fullmatch(text)
    is_query = "://" in text and "?" in text
    if found is None or is_query or Path(text).exists():
        return text, 1.0
    try:
        weight = float(found["weight"])
    except ValueError:
        weight = math.nan
    if not 0 < weight <= MAX_WEIGHT:
        raise UserError(
            f"{text}: {found['weight']!r} is no weight; give a number above zero and up to "
            f"{MAX_WEIGHT}, such as {found['path']}=0.5, or leave the file out"
        )
    return found["path"], weight


def _check_names(paths: Sequence[str], own: dict[str, float], weights: dict[str, float]) -> None:
    """Refuse a weight that would also be that of another path's file of the same name."""
    for path in paths:
        for file in find_files([path], Problems()):
            if weights.get(file.source, own[path]) != own[path]:
                raise UserError(
                    f"{path}: its file {file.source} has the name of one with another weight; "
                    "rename one of them"
                )
