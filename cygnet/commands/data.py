"""`cygnet data`: raw files to clean documents."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cygnet.corpus import builtin
from cygnet.corpus.pipeline import DataConfig, prepare


@dataclass(frozen=True, kw_only=True)
class DataCommand:
    """Clean raw files."""

    reads_yaml: ClassVar[bool] = True
    data: tuple[str, ...] = ()
    """Files, folders or globs; none takes the built-in text."""
    out: Path = Path("runs/mine/data")
    """Folder for the clean documents and the report."""
    about: bool = False
    """Say where the built-in text comes from and under which licences, and stop."""
    corpus: DataConfig = DataConfig()


def data_command(config: DataCommand) -> None:
    """Write a data folder, or tell about the built-in text."""
    if config.about:
        print(builtin.about())
        return
    out = prepare(dataclasses.replace(config.corpus, paths=config.data), config.out)
    print((out / "report.md").read_text(encoding="utf-8"))
