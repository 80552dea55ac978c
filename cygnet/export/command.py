"""`cygnet export` and `cygnet import`: models to other tools, and from them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from cygnet import __version__
from cygnet.errors import UserError
from cygnet.export.adapter import ADAPTER_WEIGHTS, refuse_adapter, with_adapter
from cygnet.export.architecture import read_notes
from cygnet.export.engines import (
    check_ctranslate2,
    check_llama_cpp,
    check_transformers,
    installed,
    missing,
)
from cygnet.export.gguf_file import FILE_TYPES, rounded, write_gguf
from cygnet.export.huggingface import (
    GENERATION_FILE,
    find_model,
    read_folder,
    weight_files,
    write_folder,
)
from cygnet.export.model_card import CONFIG_COPY, find_run, model_card
from cygnet.export.ollama import modelfile
from cygnet.export.verify import Check, Probe, as_rows, judge
from cygnet.files import folder_atomic, read_json, sha256_file, write_atomic, write_json
from cygnet.model.transformer import Transformer
from cygnet.progress import say
from cygnet.text.chat import find_turns
from cygnet.text.tokenizer import Tokenizer

Target = Literal["hf", "gguf", "ollama", "mlx-safetensors"]
Quantization = Literal[
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "q3_k"
]
MANIFEST = "export.json"
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_DEFAULTS = {"hf": "f32", "gguf": "f16", "ollama": "q8_0", "mlx-safetensors": "bf16"}


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Write a model for other tools, and check it in them."""

    model: tyro.conf.Positional[Path]
    """Run folder or model folder; of a whole run, the last stage's model is taken."""
    adapter: Path | None = None
    """A LoRA adapter's folder, of Cygnet or of PEFT, to merge into the model."""
    to: Target = "hf"
    """hf: a folder for transformers and vLLM. gguf: one file for llama.cpp. ollama: that and a
    Modelfile. mlx-safetensors: a folder for mlx_lm."""
    quantize: Annotated[Quantization | None, tyro.conf.arg(aliases=["--dtype"])] = None
    """Type of the stored weights; none takes f32 (hf), f16 (gguf), q8_0 (ollama), bf16 (mlx)."""
    out: Path | None = None
    """Folder to write, or a FILE.gguf with --to gguf; none takes exports/NAME-TO-TYPE."""
    name: str | None = None
    """What other tools show; none takes the name of the run."""
    max_shard_gb: float = 5.0
    """Weights beyond this are cut into several files (hf, mlx-safetensors)."""
    yarn_factor: float | None = None
    """Write the model for a context so many times as long, stretched by YaRN without training."""
    verify: bool = True
    """Reload the export in every engine that is installed and compare, before it is done."""


def export_command(config: ExportCommand) -> None:
    """Write the export, check it, and only then put it in its place.

    Raises:
        UserError: the model cannot be exported so, or an engine computes something else; what
            stood at `out` is then as it was.
    """
    source = find_model(config.model)
    kind = config.quantize or _DEFAULTS[config.to]
    is_folder = config.to in ("hf", "mlx-safetensors")
    if is_folder and kind not in _DTYPES:
        raise UserError(
            f"--quantize {kind}: {config.to} takes {', '.join(_DTYPES)}; quantized weights are "
            "those of gguf and ollama"
        )
    name = config.name or _name_of(config.adapter or config.model, config.adapter or source)
    out = config.out or Path("exports") / f"{name}-{config.to}-{kind}"
    model, tokenizer = read_folder(source, yarn_factor=config.yarn_factor)
    if config.adapter is not None:
        model = with_adapter(model, config.adapter)
    rounded_model = _rounded(model, kind, is_folder)
    with _placed(out, config.to) as folder:
        if is_folder:
            generation = read_json(source / GENERATION_FILE) or None
            write_folder(
                model, tokenizer, folder, _DTYPES[kind], int(config.max_shard_gb * 1e9), generation
            )
        else:
            _write_gguf_files(model, tokenizer, folder, kind, name, config.to)
        card = model_card(name, model.config, source, kind, _usage(config.to, folder, out))
        write_atomic(folder / "README.md", card)
        run = find_run(source)
        if run:
            shutil.copyfile(run.config, folder / CONFIG_COPY)
        checks = []
        if config.verify:
            probe = Probe(model, rounded_model, tokenizer)
            checks = _checked(folder, probe, kind, is_folder)
            judge(checks, f"{name} as {config.to}, {kind}")
        write_json(
            folder / MANIFEST,
            {
                "made_by": "cygnet export", "cygnet_version": __version__, "to": config.to,
                "weights": kind, "tokenizer": tokenizer.vocabulary_hash,
                "source_sha256": {f.name: sha256_file(f) for f in _sources(source, config.adapter)},
                "checks": as_rows(checks),
            },
        )  # fmt: skip
    say(f"export: {out}" + ("" if config.verify else " (not verified)"))


def _sources(source: Path, adapter: Path | None) -> list[Path]:
    return weight_files(source) + ([] if adapter is None else [adapter / ADAPTER_WEIGHTS])


def _name_of(path: Path, source: Path) -> str:
    """Return the run's name for a model or adapter inside a run, else the folder's."""
    named = path.resolve() if path.resolve() != source.resolve() else source.resolve()
    is_inside = named.name in ("model", "adapter") and named.parent.name
    return named.parent.name if is_inside else named.name


def _rounded(model: Transformer, kind: str, is_folder: bool) -> Transformer:
    """Return the model with the weights that the export holds.

    Raises:
        UserError: a weight is too large for f16.
    """
    if kind == "f32":
        return model
    if kind == "f16":
        limit = torch.finfo(torch.float16).max
        for name, tensor in model.state_dict().items():
            if tensor.abs().max() > limit:
                raise UserError(f"--quantize f16: {name} holds values beyond {limit:.0f}; use bf16")
    if not is_folder:
        return rounded(model, kind)
    weights = {name: t.to(_DTYPES[kind]).float() for name, t in model.state_dict().items()}
    return Transformer.from_weights(model.config, weights, torch.float32)


@contextmanager
def _placed(out: Path, target: Target) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `out` on success, and never on failure."""
    if out.suffix == ".gguf":
        if target != "gguf":
            raise UserError(f"--out {out}: a file is what --to gguf writes; {target} is a folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            yield Path(temporary)
            os.replace(next(Path(temporary).glob("*.gguf")), out)
        return
    is_ours = (out / MANIFEST).is_file()
    if out.exists() and not is_ours and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out}: holds something that is no export; give a new folder")
    with folder_atomic(out) as temporary_folder:
        yield temporary_folder


def _write_gguf_files(
    model: Transformer, tokenizer: Tokenizer, folder: Path, kind: str, name: str, target: Target
) -> None:
    assert kind in FILE_TYPES
    file = folder / f"{name}-{kind}.gguf"
    if target == "ollama":
        write_atomic(folder / "Modelfile", modelfile(file.name, tokenizer, model.config))
    write_gguf(model, tokenizer, file, kind, name)


def _checked(folder: Path, probe: Probe, kind: str, is_folder: bool) -> list[Check]:
    """Ask every engine that is installed."""
    engines: dict[str, Callable[[], list[Check]]] = {}
    if is_folder:
        engines["transformers"] = lambda: check_transformers(folder, probe)
        engines["ctranslate2"] = lambda: check_ctranslate2(folder, probe)
    else:
        file = next(folder.glob("*.gguf"))
        engines["xllamacpp"] = lambda: check_llama_cpp(file, probe, kind)
    checks = [] if kind == "f32" else [probe.rounding()]
    for module, check in engines.items():
        needed = (module, "transformers") if module == "ctranslate2" else (module,)
        if module == "ctranslate2" and probe.rounded.config.rope_scaling == "yarn":
            checks.append(Check(module, "cannot run YaRN", note="not checked"))
            continue
        is_there = all(installed(package) for package in needed)
        checks += _asked(module, check) if is_there else [missing(module)]
    if not any(check.bound is not None for check in checks):
        say("export: no engine is installed to check it in; pip install 'cygnet[export]'")
    return checks


def _asked(module: str, check: Callable[[], list[Check]]) -> list[Check]:
    try:
        return check()
    except (RuntimeError, ValueError, OSError, KeyError, TypeError) as error:
        told = " ".join(str(error).split())[:300]
        raise UserError(f"{module} cannot run the model ({told}); nothing was written") from error


def _usage(target: Target, folder: Path, out: Path) -> list[str]:
    """Return the card's lines for the tool that the export is for."""
    if target in ("gguf", "ollama"):
        file = next(folder.glob("*.gguf")).name
        name = file.removesuffix(".gguf")
        made = f"ollama create {name} -f Modelfile\nollama run {name}"
        command = made if target == "ollama" else f"llama-cli -m {file} -cnv"
        return ["```", command, "```"]
    if target == "mlx-safetensors":
        return ["```", f"mlx_lm.chat --model {out.name}", "```"]
    return [
        "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
        f'model = AutoModelForCausalLM.from_pretrained("{out.name}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{out.name}")', "```",
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ImportCommand:
    """Take a Qwen3, Qwen2 or Llama of another maker, to tune, evaluate and serve it."""

    folder: tyro.conf.Positional[Path]
    """A Hugging Face folder: config.json, safetensors (in one file or several), tokenizer.json."""
    out: Path | None = None
    """Folder to write; none takes models/NAME."""
    verify: bool = True
    """Compare with transformers, where it is installed, before it is done."""


def import_command(config: ImportCommand) -> None:
    """Write the model as Cygnet keeps models: one file, float32, tokenizer and template beside.

    Raises:
        UserError: a file is missing or damaged, or the model needs what Cygnet does not have; what
            stood at `out` is then as it was.
    """
    source = config.folder
    _check_source(source)
    out = config.out or Path("models") / source.resolve().name
    if out.resolve() == source.resolve():
        raise UserError(f"--out {out}: is the folder that is read; give another")
    if out.exists() and not read_notes(out).get("imported_from"):
        raise UserError(f"--out {out}: holds something that is no import; give a new folder")
    model, tokenizer = read_folder(source)
    for note in _notes(tokenizer):
        say(f"import: {note}")
    if config.verify and installed("transformers"):
        probe = Probe(model, model, tokenizer)
        checks = _asked("transformers", lambda: check_transformers(source, probe))
        judge(checks, f"{source.name}, imported")
    elif config.verify:
        say("import: not compared, transformers is not installed; pip install 'cygnet[export]'")
    generation = read_json(source / GENERATION_FILE) or None
    origin = {"imported_from": source.resolve().name}
    with folder_atomic(out) as folder:
        write_folder(model, tokenizer, folder, generation=generation, extra=origin)
    count = model.config.num_parameters / 1e6
    say(f"import: {out}, {count:.2f} M parameters\nNext: cygnet chat {out}")


def _check_source(source: Path) -> None:
    """Refuse what is no folder of safetensors, and say what it is."""
    if source.suffix == ".gguf":
        raise UserError(f"{source}: GGUF is written, not read; give the safetensors it came from")
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give one with config.json and safetensors")
    refuse_adapter(source)
    weight_files(source)
    if not (source / "tokenizer.json").exists():
        others = [n for n in ("tokenizer.model", "vocab.json") if (source / n).exists()]
        if others:
            raise UserError(
                f"{source}: has {others[0]} and no tokenizer.json; load and save the tokenizer "
                "once with transformers, which writes one"
            )


def _notes(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield what a person should know about a foreign tokenizer."""
    if normalizer := tokenizer.description().get("normalizer"):
        yield (
            f"the tokenizer normalises text ({normalizer.get('type')}): text in another form does "
            "not come back as it was"
        )
    if tokenizer.begins_texts:
        yield (
            "transformers begins each plain text with a control token here; Cygnet begins chats "
            "as the template says, and documents with none"
        )
    if not tokenizer.chat_template:
        yield "there is no chat template: the model can go on from text, and not chat or be tuned"
    elif find_turns(tokenizer) is None:
        yield (
            "the chat template opens the assistant's turn with ordinary text, which a user could "
            "write too: the model can chat, and not be tuned on conversations"
        )
