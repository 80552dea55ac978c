"""What processes send each other in a step: counted at the network interface, and on paper.

The processes run in a network namespace of their own (where this user may make one), so that the
loopback interface carries nothing but what they send: gradients, weights, hidden states, and all
that is said besides, with the headers of TCP. Beside it is the least that the way must move.

    python benchmarks/parallel_traffic.py [--preset 26m] [--ways ddp fsdp ...]
    python benchmarks/parallel_traffic.py --on_paper 1024 --preset 104m
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from parallel_speed import ROOT, SEQ_LEN, launch, make_engine, make_shards, settings_of

from cygnet.config import ModelConfig, load_settings, read_yaml
from cygnet.text.loader import Batch
from cygnet.train.engine import Engine
from cygnet.train.layout import Layout, weights_at
from cygnet.train.parallel.group import disconnect, gather

WAYS = ("ddp", "ddp, AdamW", "fsdp", "fsdp, AdamW", "zero0", "zero1", "zero2", "zero3",
        "tensor", "pipeline")  # fmt: skip
WARM_UP, STEPS, ROWS, MICRO_BATCH = 2, 4, 8, 2
OWN_NETWORK = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
PAPER_TOKENS, PAPER_MICRO_BATCHES, PAPER_RATE, PAPER_BITS_S = 16_384, 2, 150e12, 100e9


class Counted(Engine):
    """An engine that reads the interface's counter before and after some steps."""

    def train(self) -> None:
        """Train, with a list of readings."""
        self.readings: list[int] = []
        super().train()

    def _update(self, batch: Batch, scale: float) -> dict[str, float]:
        if self.step == WARM_UP:
            self._read()
        metrics = super()._update(batch, scale)
        if self.step == WARM_UP + STEPS - 1:
            self._read()
        return metrics

    def _read(self) -> None:
        gather(None)  # all that was sent before has arrived
        self.readings.append(bytes_sent())
        gather(None)

    def _save(self, kept: bool = False) -> None:
        """Leave out the checkpoint of the last step."""


def bytes_sent() -> int:
    """Return the bytes that the loopback interface has sent."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    (counters,) = [line.split(":")[1].split() for line in lines if line.strip().startswith("lo:")]
    return int(counters[8])


def work(words: dict) -> None:
    """Train, and write down the bytes per step; what a process that was started here does."""
    engine = make_engine(words, Counted)
    engine.train()
    if engine.world.rank == 0:
        before, after = engine.readings
        sent = (after - before) / STEPS / engine.world.size
        result = {"sent": sent, "dtype": engine.config.dtype,
                  "keeps": getattr(engine.spread, "keeps_whole", False)}  # fmt: skip
        Path(words["run"], "sent.json").write_text(json.dumps(result))
    disconnect()


def least(
    model: ModelConfig,
    layout: Layout,
    c: int,
    tokens: int,
    micro_batches: int,
    keeps: bool = False,
) -> dict[str, float]:
    """Return the bytes that a process must send in a step, by what they are.

    Sums over P processes cost each 2 (P - 1) / P times their size (a ring: Patarasuk and Yuan
    2009), cut sums and gathering half of that.

    Args:
        model: sizes.
        layout: how it is shared.
        c: bytes of the type of the computation; sums of gradients are float32 but in ZeRO.
        tokens: of the rows that one model works on in a step.
        micro_batches: of a step.
        keeps: fsdp gathers once a step.
    """
    P, M, R = layout.processes, layout.model_processes, layout.data_size
    parameters = weights_at(model, layout, 0)
    n = sum(w.size for w in parameters)
    outside = sum(w.size for w in parameters if w.layer is None)
    half, hidden = (P - 1) / P, tokens * model.hidden_size * c
    if layout.way == "ddp":
        return {"gradients": 2 * half * 4 * n}
    if layout.way == "fsdp":
        blocks, others = (1, 1) if keeps else (2 * micro_batches, micro_batches)
        gathered = blocks * c * (n - outside) + others * 4 * outside
        return {"gradients": half * 4 * n, "weights": half * gathered}
    if layout.way == "deepspeed":
        if layout.stage == 0:
            return {"gradients": 2 * half * 4 * n}
        sums = 1 if layout.stage == 1 else micro_batches
        gathers = 2 * micro_batches if layout.stage == 3 else 1
        return {"gradients": half * sums * c * n, "weights": half * gathers * c * n}
    of_groups = 2 * (R - 1) / R * 4 * n
    if layout.way == "tensor":
        # Behind attention and behind the feed-forward layer, and the same on the way back.
        sums = 4 * model.num_layers * 2 * (M - 1) / M * hidden
        return {"hidden states": sums, "gradients": of_groups}
    ends = 4 * model.vocab_size * model.hidden_size * 2 / M if model.tie_embeddings else 0
    return {"hidden states": 2 * (M - 1) / M * hidden, "gradients": of_groups + ends}


def of_muon(model: ModelConfig, layout: Layout, c: int) -> float:
    """Return the bytes that a process sends for Muon's work to be shared."""
    matrices = sum(w.size for w in weights_at(model, layout, 0) if w.kind == "matrix")
    P = layout.processes
    if layout.way == "ddp":
        return (P - 1) / P * c * matrices
    if layout.way == "fsdp":
        return 2 * (P - 1) / P * c * matrices / P
    if layout.way == "tensor":
        M = layout.model_processes
        return 2 * (M - 1) / M * c * matrices
    return 0.0


def sizes_of(preset: str) -> ModelConfig:
    """Return the sizes of a preset."""
    values = read_yaml(ROOT / "configs" / f"{preset}.yaml")["model"]
    return load_settings(ModelConfig, values, preset)


def measure(options: argparse.Namespace) -> None:
    """Print the table of two processes."""
    model = sizes_of(options.preset)
    alone = subprocess.run([*OWN_NETWORK, "true"], capture_output=True, check=False).returncode == 0
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if not alone:
        print("No network namespace of its own: other traffic of this machine is counted too.\n")
    print(
        "| way | least, MB | with Muon, MB | sent, MB | sent / with Muon |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as temporary:
        shards = Path(temporary) / "shards"
        make_shards(shards)
        for number, name in enumerate(options.ways):
            way, _, adamw = name.partition(", ")
            config = {
                "steps": WARM_UP + STEPS, "batch_tokens": ROWS * SEQ_LEN, "compile": "off",
                "micro_batch": MICRO_BATCH, "dtype": options.dtype, **settings_of(way),
                **({"optimizer": "adamw"} if adamw else {}),
            }  # fmt: skip
            words = {"preset": options.preset, "shards": str(shards), "config": config}
            words["run"] = f"{temporary}/{number}"
            launch(__file__, words, 2, OWN_NETWORK if alone else ())
            result = json.loads(Path(words["run"], "sent.json").read_text())
            print(row(name, model, result), flush=True)


def row(name: str, model: ModelConfig, result: dict) -> str:
    """Return a line of the table: what must be sent, and what was."""
    way, _, adamw = name.partition(", ")
    cuts = way in ("tensor", "pipeline")
    zero = {"stage": int(way[4:])} if way.startswith("zero") else {}
    layout = Layout(
        way="deepspeed" if zero else way, processes=2, model_processes=2 if cuts else 1, zero=zero
    )
    c = 2 if result["dtype"] == "bf16" else 4
    micro_batches = ROWS // MICRO_BATCH // layout.data_size
    tokens = ROWS * SEQ_LEN // layout.data_size
    must = sum(least(model, layout, c, tokens, micro_batches, result["keeps"]).values())
    muon = 0.0 if adamw or zero else of_muon(model, layout, c)
    sent = result["sent"]
    return (
        f"| {name} | {must / 1e6:.1f} | {(must + muon) / 1e6:.1f} | {sent / 1e6:.1f} "
        f"| {sent / (must + muon):.2f} |"
    )


def on_paper(preset: str, processes: int) -> None:
    """Print what a process sends at a large number of processes, and how long that takes."""
    model, c = sizes_of(preset), 2
    flops = PAPER_TOKENS * model.flops_per_token(SEQ_LEN / 2)
    compute_s = flops / PAPER_RATE
    print(
        f"{preset}, {processes} processes, {PAPER_TOKENS} tokens a process and step in "
        f"{PAPER_MICRO_BATCHES} micro-batches, bf16: {compute_s * 1e3:.0f} ms of computation at "
        f"{PAPER_RATE / 1e12:.0f} TFLOP/s; links of {PAPER_BITS_S / 1e9:.0f} Gbit/s.\n\n"
        "| way | MB a step and process | of Muon, MB | ms | of the computation |\n"
        "|---|---|---|---|---|"
    )
    layouts = [
        *(Layout(way=way, processes=processes) for way in ("ddp", "fsdp")),
        *(Layout(way="deepspeed", processes=processes, zero={"stage": n}) for n in range(4)),
        Layout(way="tensor", processes=processes, model_processes=model.num_kv_heads),
        Layout(way="pipeline", processes=processes, model_processes=8),
    ]
    for layout in layouts:
        M = layout.model_processes
        if layout.processes % M:
            layout = Layout(way=layout.way, processes=processes // M * M, model_processes=M)
        must = sum(least(model, layout, c, PAPER_TOKENS * M, PAPER_MICRO_BATCHES).values())
        muon = 0.0 if layout.way == "deepspeed" else of_muon(model, layout, c)
        ms = 1e3 * 8 * (must + muon) / PAPER_BITS_S
        name = layout.name + (f" of {layout.processes}" if M > 1 else "")
        print(
            f"| {name} | {must / 1e6:.0f} | {muon / 1e6:.0f} | {ms:.0f} "
            f"| {ms / compute_s / 10:.0f} % |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--preset", default="26m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--on_paper", type=int, default=0, metavar="PROCESSES")
    parser.add_argument("--words", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.words:
        torch.set_num_threads(1)
        work(json.loads(options.words))
    elif options.on_paper:
        on_paper(options.preset, options.on_paper)
    else:
        measure(options)


if __name__ == "__main__":
    main()
