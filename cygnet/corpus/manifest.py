"""What a data folder was made of, and whether it would be made the same again."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import cygnet
from cygnet.cores import usable_cores
from cygnet.corpus.clean import harm
from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.corpus.read.find import InputFile, find_files
from cygnet.corpus.read.problems import FILE as PROBLEMS_FILE
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.settings import DataConfig
from cygnet.errors import UserError
from cygnet.files import digest_of, read_json, sha256_file
from cygnet.progress import progress

FORMAT_VERSION = 8
NUMBERS, REMOVED, COST = "numbers.parquet", "removed.jsonl.zst", "cost.json"
OUTPUTS = (TRAIN, HELDOUT, NUMBERS, REMOVED, "report.json", "report.md", PROBLEMS_FILE)
HASHES = "inputs.json"
HASHED_AT_ONCE = 1000
LIBRARIES = (
    "charset-normalizer", "fastwarc", "ftfy", "numpy", "opencc", "py3langid", "pyarrow",
    "pypdfium2", "resiliparse",
)  # fmt: skip
"""What a text is read and cleaned by: another version may give another text."""


def environment() -> dict[str, str]:
    """Return what texts depend on beside the files and the settings."""
    versions = {"cygnet": cygnet.__version__, "format": str(FORMAT_VERSION)}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "none"
    versions["unicode"] = unicodedata.unidata_version
    versions["harmful words"] = digest_of(harm.terms())[:16]
    return versions


def hashes_of(
    files: Sequence[InputFile], work: Path
) -> tuple[dict[str, str], dict[str, list[Any]]]:
    """Return the hash of each file by its place, and what the next run needs to know them by.

    A file of the size and time that it had at the last run is not read for it.
    """
    known = read_json(work / HASHES)
    hashes: dict[str, str] = {}
    states: dict[str, list[Any]] = {}
    changed: dict[str, Path] = {}
    for file in files:
        if file.url:
            # What cannot be told apart may have changed.
            known_by = file.version or (f"{file.size} bytes" if file.size >= 0 else "")
            hashes[file.place] = known_by or f"read at {time.time()}"
            continue
        try:
            status = file.path.stat()
        except OSError:
            hashes[file.place] = ""  # reading it will say what is wrong
            continue
        states[file.place] = [status.st_size, status.st_mtime_ns]
        before = known.get(file.place)
        if isinstance(before, list) and len(before) == 3 and before[:2] == states[file.place]:
            hashes[file.place] = before[2]
        else:
            changed[file.place] = file.path
    for place, digest in _hashed(changed):
        hashes[place] = digest
    states = {place: [*state, hashes[place]] for place, state in states.items() if hashes[place]}
    return hashes, states


def _hashed(files: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """Yield the place and the hash of each file, "" for one that cannot be read."""
    if not files:
        return
    stopped = threading.Event()

    def hash_of(path: Path) -> str:
        try:
            return sha256_file(path, stopped.is_set)
        except OSError:
            return ""

    places = list(files)
    with (
        ThreadPoolExecutor(usable_cores()) as pool,
        progress("check files", len(places)) as advance,
    ):
        try:
            for first in range(0, len(places), HASHED_AT_ONCE):
                chosen = places[first : first + HASHED_AT_ONCE]
                digests = pool.map(hash_of, [files[place] for place in chosen])
                for place, digest in zip(chosen, digests, strict=True):
                    yield place, digest
                    advance()
        finally:
            stopped.set()


def make_manifest(
    config: DataConfig, files: Sequence[InputFile], hashes: dict[str, str]
) -> dict[str, Any]:
    """Return what is known before anything is read: settings, environment, inputs and hashes."""
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    # What these files hold counts; where they lie does not.
    for name in ("paths", "evaluation", "quality_filter"):
        del settings[name]
    return {
        "made_by": "cygnet data",
        "format_version": FORMAT_VERSION,
        "cygnet_version": cygnet.__version__,
        "environment": environment(),
        "settings": settings,
        "uses": _used_files(config),
        "inputs": [
            {
                "path": file.source,
                "domain": file.domain,
                "bytes": file.num_bytes(),
                "sha256": hashes[file.place],
                **{
                    name: value
                    for name in ("licence", "weight", "epochs", "rules", "text_field")
                    if (value := getattr(file, name)) not in ("", 1.0)
                },
            }
            for file in files
        ],
    }


def _used_files(config: DataConfig) -> list[list[str]]:
    """Return names and hashes of what is not learnt but used: evaluation sets, a filter."""
    used = []
    for file in find_files(config.evaluation, Problems()) if config.evaluation else []:
        used.append([file.source, file.version if file.url else sha256_file(file.path)])
    if config.quality_filter:
        path = Path(config.quality_filter)
        files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
        used += [["quality filter", sha256_file(file)] for file in files if file.is_file()]
    return sorted(used)


def what_changed(out: Path, wanted: dict[str, Any]) -> list[str]:
    """Return what differs from the manifest in `out`: nothing, `new`, or each change."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return ["new"]
    try:
        found = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        ours = found["made_by"] == wanted["made_by"]
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{out}: exists and was not made by cygnet data; choose another --out")
    changes = [
        f"{name} was {found.get(name)}, is {wanted[name]}"
        for name in ("cygnet_version", "format_version")
        if found.get(name) != wanted[name]
    ]
    old, new = found.get("settings", {}), wanted["settings"]
    changes += [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    old, new = found.get("environment", wanted["environment"]), wanted["environment"]
    changes += [
        f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in sorted((old.keys() | new.keys()) - {"cygnet", "format"})
        if old.get(name) != new.get(name)
    ]
    if found.get("uses", []) != wanted["uses"]:
        changes.append("evaluation sets or the quality filter changed")
    if found.get("incomplete"):
        changes.append("some files could not be opened or fetched last time")
    changes += _changed_inputs(found.get("inputs", []), wanted["inputs"])
    outputs = found.get("outputs", {})
    for name in OUTPUTS:
        path = out / name
        if not path.is_file() or sha256_file(path) != outputs.get(name):
            changes.append(f"{name} is missing or was changed")
    return changes


def _changed_inputs(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    if old == new:
        return []
    before = {entry["path"]: entry for entry in old}
    after = {entry["path"]: entry for entry in new}
    changes = [f"{path} is new" for path in after if path not in before]
    changes += [f"{path} is gone" for path in before if path not in after]
    changes += [f"{p} changed" for p in after if p in before and before[p] != after[p]]
    changes = changes or ["the files come in another order"]
    more = [f"{len(changes) - 3} more"] if len(changes) > 3 else []
    return changes[:3] + more
