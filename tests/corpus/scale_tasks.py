"""The tasks of test_scale.py: importable by a worker, so free of pytest."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from cygnet.errors import UserError
from cygnet.files import write_atomic


class Unsendable(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def square(folder: Path, number: int) -> None:
    """Write the square of a number; `folder/trouble.json` says which tasks meet what."""
    result = folder / "results" / f"{number}.json"
    if result.exists():
        return
    with open(folder / "begun.txt", "a") as log:
        log.write(f"{number} {os.getpid()}\n")
    trouble = json.loads((folder / "trouble.json").read_text()).get(str(number))
    if trouble:
        meet(trouble, folder / f"met_{number}")
    loaded = sorted({"torch", "numpy", "transformers"} & sys.modules.keys())
    about = {"square": number**2, "loaded": loaded, "threads": os.environ.get("RAYON_NUM_THREADS")}
    ray = sys.modules.get("ray")
    if ray and ray.is_initialized():  # else asking for the context would start a cluster
        about["node"] = ray.get_runtime_context().get_node_id()
    write_atomic(result, json.dumps(about))
    with open(folder / "ended.txt", "a") as log:
        log.write(f"{number}\n")


def meet(trouble: str, met: Path) -> None:
    if trouble == "user error":
        raise UserError("rows.csv: line 3: has no text; mend it")
    if trouble == "value error":
        raise ValueError("bad row")
    if trouble == "unsendable":
        raise Unsendable(1, 2)
    if trouble == "is slow":
        time.sleep(0.5)
    if trouble == "hangs once" and not met.exists():
        met.touch()
        time.sleep(600)
    if trouble.startswith("meets "):
        met.touch()
        other = met.with_name(f"met_{trouble.removeprefix('meets ')}")
        for _ in range(6000):
            if other.exists():
                break
            time.sleep(0.05)
    if trouble == "killed once, while 3 hangs" and not met.exists():
        while not met.with_name("met_3").exists():
            time.sleep(0.05)
    if trouble == "killed" or (trouble.startswith("killed once") and not met.exists()):
        met.touch()
        os.kill(os.getpid(), signal.SIGKILL)
