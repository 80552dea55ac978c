"""metrics.jsonl and samples.jsonl: plain files that need no other package."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from cygnet.files import write_atomic
from cygnet.progress import say
from cygnet.train.trackers.base import Samples

SAMPLES = "samples.jsonl"


class JsonlTracker:
    """One JSON object a logged step, appended to a file and flushed at once; samples beside it.

    On opening, lines beyond `step` (a run that was killed after its last checkpoint) and a
    half-written line are dropped, so that no step is there twice. At step 0 the files start anew.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        self.samples_path = path.with_name(SAMPLES)
        self._broken = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _repair(path, step)
            _repair(self.samples_path, step)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by finish)
        except OSError as error:
            self._give_up(error)

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Append one line; numbers that are not finite become null, which JSON can hold."""
        if self._broken:
            return
        try:
            self._file.write(_line({"step": step, **metrics}))
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def samples(self, rows: Samples, step: int) -> None:
        """Append one line for each row to samples.jsonl."""
        if self._broken or not rows:
            return
        try:
            with open(self.samples_path, "a", encoding="utf-8") as file:
                file.writelines(_line({"step": step, **row}) for row in rows)
        except OSError as error:
            self._give_up(error)

    def state(self) -> dict[str, Any]:
        """Return nothing: the file itself is the state."""
        return {}

    def finish(self, exit_code: int) -> None:
        """Close the file."""
        if not self._broken:
            try:
                self._file.close()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._broken = True
        say(f"{self.path}: cannot be written ({error.strerror}); training goes on without it")


def _repair(path: Path, step: int) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    lines = content.splitlines(keepends=True) if step > 0 else []
    kept = b"".join(line for line in lines if _is_whole(line, step))
    if kept != content:
        write_atomic(path, kept)


def _is_whole(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def _line(values: dict[str, Any]) -> str:
    plain = {name: _json_value(value) for name, value in values.items()}
    return json.dumps(plain, ensure_ascii=False) + "\n"


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
