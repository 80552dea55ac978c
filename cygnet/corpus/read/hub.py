"""Data sets of the Hugging Face hub by name, streamed by the `datasets` library."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cygnet.corpus.read.find import InputFile
from cygnet.corpus.read.problems import Problems
from cygnet.errors import UserError, nearest, require

PREFIX = "hf://datasets/"
DEFAULT_SPLIT = "train"


class HubName(NamedTuple):
    """What `hf://datasets/OWNER/NAME[/CONFIG][:SPLIT]` names."""

    name: str
    """`OWNER/NAME`; of a data set that lies on this machine, its folder's absolute path."""
    config: str | None
    split: str
    """One split, several with `+` between them, or `all`."""


def parse_name(url: str) -> HubName:
    """Return the parts of a data set's name.

    Raises:
        UserError: it is no such name, or that of a part of a split.
    """
    wanted = f"write {PREFIX}OWNER/NAME, with /CONFIG and :SPLIT behind it where there are several"
    if not url.startswith(PREFIX):
        raise UserError(f"{url}: no data set of the hub; {wanted}")
    path, colon, split = url.removeprefix(PREFIX).partition(":")
    parts = [path] if path.startswith("/") else path.rstrip("/").split("/")
    if not all(parts) or len(parts) > 3 or (colon and not split):
        raise UserError(f"{url}: no data set of the hub; {wanted}")
    if "[" in split:
        raise UserError(
            f"{url}: no part of a split can be had, since a data set is streamed whole; "
            f"write {split.partition('[')[0] or DEFAULT_SPLIT} or another split"
        )
    config = parts[2] if len(parts) == 3 else None
    return HubName("/".join(parts[:2]), config, split or DEFAULT_SPLIT)


def find_hub(url: str, problems: Problems) -> list[InputFile]:
    """Return the data set as something to read; one that cannot be had is counted in `problems`.

    So is one that is there while `datasets` is not installed.

    Raises:
        UserError: the name, its config or its split is wrong.
    """
    named = parse_name(url)
    try:
        require("datasets", "hub")
    except UserError as error:
        problems.add("failed download", url, str(error))
        return []
    try:
        builder = _builder(url, named)
    except OSError as error:
        problems.add("failed download", url, " ".join(str(error).split())[:200])
        return []
    splits = _splits(builder)
    wrong = _wrong_split(named.split, splits)
    if wrong is not None:
        raise UserError(_no_split(url, wrong, splits))
    # The hash is that of the commit, of a folder on this machine that of its files.
    return [
        InputFile(
            Path(named.name.strip("/").replace("/", "--")),
            named.name.strip("/"),
            PurePosixPath(named.name).name,
            "hub",
            named=True,
            licence=str(builder.info.license or ""),
            url=url,
            version=f"{builder.hash or ''}",
        )
    ]


def hub_rows(url: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number from 1, row) of a data set, streaming.

    Images and sounds are not decoded.

    Raises:
        OSError: it cannot be had: it does not answer, its name, config or split is wrong, or
            `datasets` is not installed.
    """
    named = parse_name(url)
    with _quiet():
        try:
            builder = _builder(url, named)
            rows = builder.as_streaming_dataset(split=named.split)
        except UserError as error:
            raise OSError(str(error)) from error
        except ValueError as error:
            raise OSError(_no_split(url, named.split, _splits(builder))) from error
        try:
            yield from enumerate(rows.decode(False), start=1)
        except Exception as error:  # (each library below raises errors of its own)
            raise OSError(" ".join(str(error).split()) or type(error).__name__) from error


def _splits(builder: Any) -> list[str]:
    return [str(split) for split in (builder.config.data_files or builder.info.splits or ())]


def _wrong_split(split: str, known: list[str]) -> str | None:
    """Return the first name of a split that is not known; None where all are, or none is."""
    if not known or split in (*known, "all"):
        return None
    return next((name for name in map(str.strip, split.split("+")) if name not in known), None)


def _no_split(url: str, wrong: str, known: list[str]) -> str:
    hint = nearest(wrong, known)
    return f"{url}: no split {wrong!r}{hint}; the splits are {', '.join(known) or 'unknown'}"


def _builder(url: str, named: HubName) -> Any:
    datasets = require("datasets", "hub")
    try:
        with _quiet():
            return datasets.load_dataset_builder(named.name, named.config)
    except ValueError as error:
        raise UserError(f"{url}: {' '.join(str(error).split())}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library from logging each attempt that fails; how it ends is told once, by us."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
