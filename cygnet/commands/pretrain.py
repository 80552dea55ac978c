"""`cygnet pretrain`: raw text to a model that continues text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cygnet.config import TRAINING, ModelConfig
from cygnet.files import read_json, sha256_file
from cygnet.progress import say
from cygnet.stages.pretrain import pretrain
from cygnet.steps import INPUTS, From, Train, data_folder, finish, keeps_runs, train_tokenizer_step
from cygnet.train.parallel.choose import check_parallel
from cygnet.train.parallel.group import first, world


@dataclass(frozen=True, kw_only=True)
class PretrainCommand:
    """Pretrain a model."""

    reads_yaml: ClassVar[bool] = True
    data: tuple[str, ...] = ()
    """A folder of `cygnet data`, or raw files; none takes the built-in text."""
    out: Path = Path("runs/pretrain")
    """The run folder."""
    tokenizer: Path | None = None
    """Tokenizer folder; none trains one on the data."""
    from_: From = None
    """A run or model folder to go on from, with its sizes and tokenizer."""
    model: ModelConfig = ModelConfig()
    pretrain: Train = TRAINING["pretrain"]


@keeps_runs
def pretrain_command(config: PretrainCommand) -> None:
    """Prepare what is missing, and pretrain."""
    out = config.out
    if config.from_ is None:
        check_parallel(config.pretrain, config.model, world().size)  # before the data
    with first("data and tokenizer", config.pretrain.timeout_s):
        data = data_folder(config.data, out / "data")
        tokenizer = config.tokenizer
        if tokenizer is None and config.from_ is None:
            tokenizer = out / "tokenizer"
            made_from = read_json(tokenizer / INPUTS).get("data")
            if made_from == sha256_file(data / "manifest.json"):
                say(f"tokenizer: taking the one in {tokenizer}")
            else:
                train_tokenizer_step(data, tokenizer, config.model.vocab_size)
    model = pretrain(
        data, tokenizer or out, out / "shards", out, config.model, config.pretrain, config.from_
    )
    finish(out, model, f"cygnet sft --from {out}")
