"""`cygnet tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cygnet.errors import UserError
from cygnet.steps import compare_vocabularies_step, data_folder, train_tokenizer_step
from cygnet.text.sample import SampleConfig
from cygnet.text.tokenizer import MIN_VOCAB_SIZE

Sampling = Annotated[SampleConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class TokenizerCommand:
    """Train a tokenizer, and hold it against other vocabularies and other sizes."""

    data: tuple[str, ...] = ()
    """A folder of `cygnet data`, or raw files; none takes the built-in text."""
    out: Path = Path("runs/tokenizer")
    """Folder for the tokenizer; of raw files, the clean text lies in its data/."""
    vocab_size: int = 6400
    """Entries."""
    sampling: Sampling = SampleConfig()
    compare: tuple[str, ...] = ()
    """Vocabularies of other makers to measure beside it, files or folders of them: tokenizer.json,
    tiktoken's rank files, Mistral's tekken.json, SentencePiece's BPE models."""
    sweep: tuple[int, ...] = ()
    """Sizes to measure beside it, such as 1000 2000 4000 8000; drawn in plots/vocabulary.png."""
    width: int = 512
    """Of the model whose embedding's parameters the sweep tells (its hidden size)."""


def tokenizer_command(config: TokenizerCommand) -> None:
    """Write a tokenizer folder and print its report."""
    if small := [size for size in config.sweep if size < MIN_VOCAB_SIZE]:
        raise UserError(f"--sweep {small[0]}: give sizes from {MIN_VOCAB_SIZE} up")
    if config.width < 1:
        raise UserError(f"--width {config.width}: give the hidden size of a model")
    data = data_folder(config.data, config.out / "data")
    out = train_tokenizer_step(data, config.out, config.vocab_size, config.sampling)
    if config.compare or config.sweep:
        compare_vocabularies_step(
            data, out, config.compare, config.sweep, config.width, config.sampling
        )
    print((out / "report.md").read_text(encoding="utf-8"))
