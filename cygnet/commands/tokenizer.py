"""`cygnet tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cygnet.steps import data_folder, train_tokenizer_step


@dataclass(frozen=True, kw_only=True)
class TokenizerCommand:
    """Train a tokenizer."""

    data: tuple[str, ...] = ()
    """A folder of `cygnet data`, or raw files; none takes the built-in text."""
    out: Path = Path("runs/tokenizer")
    """Folder for the tokenizer; of raw files, the clean text lies in its data/."""
    vocab_size: int = 6400
    """Entries."""


def tokenizer_command(config: TokenizerCommand) -> None:
    """Write a tokenizer folder and print its bytes per token."""
    data = data_folder(config.data, config.out / "data")
    out = train_tokenizer_step(data, config.out, config.vocab_size)
    print((out / "report.json").read_text(encoding="utf-8"))
