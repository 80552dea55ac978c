"""The README.md of an exported folder: what the model is, from what, how good, how to make it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cygnet import __version__
from cygnet.config import ModelConfig, read_yaml, stages_of_run
from cygnet.corpus import builtin
from cygnet.export.architecture import ARCHITECTURES, model_type, read_notes
from cygnet.files import read_json

CONFIG_COPY = "run_config.yaml"
"""The name in an export of the run's own config.yaml."""
_SETTINGS = ("steps", "batch_tokens", "max_seq_len", "optimizer", "learning_rate", "seed")


@dataclass(frozen=True, slots=True)
class Run:
    """The run folder around a model.

    Attributes:
        root: its folder; of a whole run (`cygnet run`) the one that holds all stages.
        stages: those that made the model, in their order: name and folder.
        is_whole: whether `cygnet run` made it.
    """

    root: Path
    stages: list[tuple[str, Path]]
    is_whole: bool

    @property
    def config(self) -> Path:
        """The file that holds every setting."""
        return self.root / "config.yaml"


def find_run(model_folder: Path) -> Run | None:
    """Return the run that a model folder lies in, or None."""
    folder = model_folder.parent
    if not (folder / "config.yaml").is_file():
        return None
    stage = read_yaml(folder / "config.yaml").get("stage")
    if stage is None:
        return Run(folder, _stages_of(folder, stages_of_run(folder)), True)
    stages = stages_of_run(folder.parent)
    if folder.name == stage and stage in stages and (folder.parent / "config.yaml").is_file():
        made_by = stages[: stages.index(stage) + 1]
        return Run(folder.parent, _stages_of(folder.parent, made_by), True)
    return Run(folder, [(str(stage), folder)], False)


def _stages_of(root: Path, names: Iterable[str]) -> list[tuple[str, Path]]:
    return [(name, root / name) for name in names if (root / name / "config.yaml").is_file()]


def model_card(
    name: str, config: ModelConfig, model_folder: Path, dtype: str, usage: Iterable[str]
) -> str:
    """Return the card as Markdown, with the front matter that model hubs read.

    What a run folder around the model does not tell is said to be unknown, not guessed.

    Args:
        name: of the model.
        config: of the model.
        model_folder: where it was loaded from; a run folder around it is read.
        dtype: type of the exported weights.
        usage: lines of the chapter "Use".
    """
    run = find_run(model_folder)
    origin = read_notes(model_folder).get("imported_from")
    lines = [
        "---", "library_name: transformers", "pipeline_tag: text-generation",
        "tags:", "- cygnet", f"- {model_type(config)}", "---", "",
        f"# {name}", "", *_what(config, dtype, origin), "", "## Use", "", *usage, "",
        "## Data and licences", "", *_data(run, origin), "", "## Metrics", "", *_metrics(run), "",
        "## How to make it again", "", *_how(run, origin), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _what(config: ModelConfig, dtype: str, origin: str | None) -> Iterator[str]:
    made = f"imported from `{origin}` by" if origin else "trained with"
    yield (
        f"A language model of {config.num_parameters / 1e6:.2f} million parameters "
        f"(`{ARCHITECTURES[model_type(config)]}`), {made} Cygnet {__version__}. "
        f"{config.num_layers} layers, hidden size {config.hidden_size}, "
        f"{config.num_heads} heads over {config.num_kv_heads}, "
        f"vocabulary {config.vocab_size:,}, context {config.max_position:,} "
        f"tokens. Weights here: {dtype}."
    )


def _data(run: Run | None, origin: str | None) -> Iterator[str]:
    if origin:
        yield f"The weights come from `{origin}`: its licence and its data are the ones to keep to."
    manifest = read_json(run.root / "data" / "manifest.json") if run else {}
    inputs = manifest.get("inputs") or []
    if not inputs:
        if not origin:
            yield "No record of training data lies beside this model."
        return
    yield "| file | bytes | SHA-256 |"
    yield "|---|---:|---|"
    for entry in inputs:
        yield f"| `{entry['path']}` | {entry['bytes']:,} | `{entry['sha256'][:16]}…` |"
    is_builtin = [str(entry["path"]).startswith("builtin/") for entry in inputs]
    if any(is_builtin):
        yield "\nThe built-in text, in the words of Cygnet's `ATTRIBUTION.md`:\n"
        # The licence texts themselves stand behind the first heading.
        about = builtin.about().split("\n## ")[0].splitlines()[2:]
        yield from (f"> {line}".rstrip() for line in about)
    if not all(is_builtin):
        yield "\nThe licences of the other files are not recorded: whoever passes the model on "
        yield "states them."


def _metrics(run: Run | None) -> Iterator[str]:
    folders = [folder for _, folder in run.stages] if run else []
    results = [read_json(folder / "eval.json").get("metrics") for folder in reversed(folders)]
    metrics: Mapping[str, Any] = next(filter(None, results), {})
    if not metrics:
        yield "Not evaluated; `cygnet eval RUN` measures the stages of a whole run."
        return
    yield "The model as trained, in float32, on held-out text, instructions and pairs, with 95 % "
    yield "intervals (`cygnet eval`):\n"
    yield "| metric | value | interval | items |"
    yield "|---|---:|---|---:|"
    for name, found in metrics.items():
        interval = f"{found['low']:.3f} to {found['high']:.3f}"
        yield f"| {name} | {found['value']:.3f} | {interval} | {found['count']:,} |"


def _how(run: Run | None, origin: str | None) -> Iterator[str]:
    if run is None:
        known = f"`cygnet import {origin} --out FOLDER`" if origin else ""
        yield known or "No run folder lies around this model."
        return
    settings = [(name, read_yaml(folder / "config.yaml")) for name, folder in run.stages]
    first = settings[0][1] if settings else {}
    version, commit = first.get("version", __version__), first.get("commit")
    told = f"With Cygnet {version}" + (f" at commit `{commit}`" if commit else "")
    if run.is_whole:
        yield f"{told}, and `{CONFIG_COPY}` from this folder:\n"
        yield f"```\ncygnet run {CONFIG_COPY}\n```\n"
    else:
        stage = settings[0][0]
        yield f"{told}: `cygnet {stage}`, with the settings under `requested` in `{CONFIG_COPY}`.\n"
    yield f"| stage | {' | '.join(_SETTINGS)} |"
    yield "|---" * (len(_SETTINGS) + 1) + "|"
    for name, values in settings:
        train = values.get("train") or {}
        yield f"| {name} | {' | '.join(str(train.get(key, '')) for key in _SETTINGS)} |"
