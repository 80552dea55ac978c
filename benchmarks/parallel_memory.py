"""Bytes of tensors that each process really holds, and its peak, beside what was planned.

For each way of spreading, in a real group of processes over gloo: the storages of weights,
gradients (when they are most, in a step) and optimizer state (after it), walked from the objects
that hold them; and how much the resident memory of a process rose. The most of any process.

    python benchmarks/parallel_memory.py [--preset 26m] [--ways ddp fsdp ...] [--processes 2]
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from parallel_speed import SEQ_LEN, launch, make_engine, make_shards, settings_of

from cygnet.text.loader import Batch
from cygnet.train.engine import Engine
from cygnet.train.layout import layout_of
from cygnet.train.optim import local_part
from cygnet.train.parallel.group import disconnect
from cygnet.train.parallel.single import Single
from cygnet.train.planner import RUNTIME_BYTES, plan, size_of

WAYS = ("one", "ddp", "fsdp", "zero0", "zero1", "zero2", "zero3", "tensor", "pipeline")
HELD = ("weights", "gradients", "optimizer")
MASTERS = ("bit16_groups_flat", "single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")
"""Where DeepSpeed has weights besides the parameters."""
SUMS = ("averaged_gradients", "all_grad_tensors", "grad_partitions_flat_buffer")
"""Where DeepSpeed has gradients besides the parameters."""


def tensors_in(value: Any) -> Iterable[torch.Tensor]:
    """Yield the tensors of nested lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield local_part(value)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def bytes_of(*values: Any) -> int:
    """Return the bytes of all storages below the values, each counted once."""
    storages = {}
    for tensor in tensors_in(values):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def gradients(engine: Engine) -> int:
    """Return the bytes of gradients, of torch's wrappers and DeepSpeed's partitions too."""
    found: list[Any] = [p.grad for p in engine.model.parameters()]
    for module in engine.spread.caller.modules():
        group = getattr(module, "_get_fsdp_state", lambda: None)()
        for parameter in group._fsdp_param_group.fsdp_params if group else ():
            found.append(parameter.unsharded_accumulated_grad)
            if hasattr(parameter, "_unsharded_param"):
                found.append(parameter._unsharded_param.grad)
    found += [getattr(engine.spread.optimizer, name, None) for name in SUMS]
    return bytes_of(found)


def weights(engine: Engine) -> int:
    """Return the bytes of weights between steps."""
    found: list[Any] = []
    for parameter in engine.model.parameters():
        found += [parameter.data, getattr(parameter, "ds_tensor", None)]
    return bytes_of(found, [getattr(engine.spread.optimizer, name, None) for name in MASTERS])


def optimizer(engine: Engine) -> int:
    """Return the bytes of optimizer state."""
    wrapped = engine.spread.optimizer
    return bytes_of(list(getattr(wrapped, "optimizer", wrapped).state.values()))


def resident(name: str) -> int:
    """Return VmRSS (now) or VmHWM (the peak) of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    assert found
    return 1024 * int(found[1])


class Watched(Engine):
    """An engine that counts what it holds."""

    def _update(self, batch: Batch, scale: float) -> dict[str, float]:
        spread = self.spread
        if not hasattr(self, "held"):
            self.held = dict.fromkeys(HELD, 0)
            for name in ("_forward_backward", "accumulate"):
                self._watch(spread, name)
        metrics = super()._update(batch, scale)
        self._note(weights=weights(self), optimizer=optimizer(self))
        return metrics

    def _watch(self, spread: Single, name: str) -> None:
        original = getattr(spread, name)

        def run(*arguments: Any, **named: Any) -> Any:
            result = original(*arguments, **named)
            self._note(gradients=gradients(self))
            return result

        setattr(spread, name, run)

    def _note(self, **now: int) -> None:
        for name, size in now.items():
            self.held[name] = max(self.held[name], size)

    def _save(self, kept: bool = False) -> None:
        """Leave out the checkpoint of the last step, which is copied whole."""


def work(words: dict) -> None:
    """Train, and write down what was held and what was planned; a process that was started here."""
    import deepspeed  # noqa: F401 (its libraries are not what is measured)

    torch.mm(torch.randn(512, 512), torch.randn(512, 512))
    before = resident("VmRSS")
    engine = make_engine(words, Watched)
    engine.train()
    layout = layout_of(engine.config, engine.world.size)
    planned = plan(engine.model.config, engine.config, engine.hardware, layout)
    parts = {part.name: part.num_bytes for part in planned.parts}
    result = {
        "held": {**engine.held, "peak": resident("VmHWM") - before},
        "planned": {name: parts[name] for name in HELD} | {"peak": planned.need_bytes},
    }
    Path(words["run"], f"held_{engine.world.rank}.json").write_text(json.dumps(result))
    disconnect()


def measure(words: dict, processes: int) -> dict[str, dict[str, int]]:
    """Return what the processes held and what was planned, the most of any."""
    launch(__file__, words, processes)
    found = [json.loads(path.read_text()) for path in Path(words["run"]).glob("held_*.json")]
    assert len(found) == processes
    return {
        kind: {name: max(one[kind][name] for one in found) for name in found[0][kind]}
        for kind in ("held", "planned")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--preset", default="26m")
    parser.add_argument("--optimizer", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--micro_batch", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--words", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.words:
        work(json.loads(options.words))
        return
    print(
        f"{RUNTIME_BYTES >> 20} MiB of the planned peak are torch's libraries and threads.\n\n"
        "| way | weights: planned, held | gradients | optimizer state | peak, rise of RSS |\n"
        "|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as temporary:
        shards = Path(temporary) / "shards"
        make_shards(shards)
        for way in options.ways:
            config = {
                "steps": 3, "batch_tokens": options.rows * SEQ_LEN, "compile": "off",
                "micro_batch": options.micro_batch, "dtype": options.dtype,
                "optimizer": options.optimizer, **({} if way == "one" else settings_of(way)),
            }  # fmt: skip
            words = {"preset": options.preset, "shards": str(shards), "config": config}
            words["run"] = f"{temporary}/{way}"
            found = measure(words, 1 if way == "one" else options.processes)
            columns = [
                f"{size_of(found['planned'][name])}, {size_of(found['held'][name])}"
                for name in (*HELD, "peak")
            ]
            print(f"| {way} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
