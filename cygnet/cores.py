"""How much of the machine is ours: what its limits leave to this process."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may keep busy: affinity and the container's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quotas = []
    for folder in cgroup_folders("cpu", root):
        text = read_text(folder / "cpu.max").split()
        if not text:
            text = [read_text(folder / f"cpu.cfs_{part}_us") for part in ("quota", "period")]
        if len(text) == 2 and text[0].isdigit() and text[1].isdigit() and int(text[0]):
            quotas.append(int(text[0]) / int(text[1]))
    return max(1, math.floor(min([cores, *quotas])))


def cgroup_folders(controller: str, root: Path) -> Iterator[Path]:
    """Yield this process's control groups that can hold the controller, the innermost first."""
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup"
        if controllers:
            if controller not in controllers.split(","):
                continue
            mount = mount / controllers if (mount / controllers).is_dir() else mount / controller
        elif (mount / "unified").is_dir():
            mount = mount / "unified"
        # A container may show the path of the host: what is not there reads as no limit.
        inner = mount / path.lstrip("/")
        yield inner
        while inner != mount and mount in inner.parents:
            inner = inner.parent
            yield inner


def read_text(path: Path) -> str:
    """Return a small file's text, or an empty one where there is none to read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
