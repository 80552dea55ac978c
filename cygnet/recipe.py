"""Which step comes after which, and what is already up to date.

`cygnet run` takes the whole way; every other command takes one step of it. A step reads folders
and writes one folder, which names in its manifest what it was made from.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from cygnet.config import ModelConfig, TrainConfig, as_yaml
from cygnet.corpus.instructions import InstructionConfig, build_instructions
from cygnet.corpus.pipeline import HELDOUT, TRAIN, DataConfig, prepare
from cygnet.errors import UserError
from cygnet.evals.result import EvalConfig
from cygnet.files import folder_atomic, read_jsonl, sha256_file, write_atomic, write_json
from cygnet.progress import say, track
from cygnet.stages.settings import DpoConfig, PairConfig

STAGES = ("pretrain", "sft", "dpo")
From = Annotated[Path | None, tyro.conf.arg(name="from")]
Flat = tyro.conf.OmitArgPrefixes
