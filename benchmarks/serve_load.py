"""Our server under load, against llama.cpp's with the same number of slots.

As many clients as slots, each with the next request as soon as its answer is whole: prompts of 16
to 112 tokens, answers of 64, streamed, greedy. Tokens a second, and the time to the first token.
Servers are processes of their own and take turns; the clients share the cores with them. Random
weights in bfloat16.

    python benchmarks/serve_load.py [--preset 26m] [--streams 32] [--rounds 3] [--seconds 20]
    python benchmarks/serve_load.py --soak_minutes 30      # memory and slots of ours, no contest

While it soaks, a third of the answers are hung up on midway.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from generate_speed import filled_tokenizer, random_weights

from cygnet.export.gguf_file import write_gguf
from cygnet.export.huggingface import save_folder

ANSWER_TOKENS, MAX_LEN = 64, 256
BUSY = r"cygnet_(running|waiting)"
LLAMA = """
import sys, time, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.port, p.verbosity = sys.argv[1], int(sys.argv[2]), -1
p.n_parallel, p.n_ctx = int(sys.argv[3]), int(sys.argv[3]) * int(sys.argv[4])
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[5])
server = xllamacpp.Server(p)
while True: time.sleep(1)
"""


class Load:
    """What clients saw: tokens of whole answers, times to first tokens, answers hung up on."""

    def __init__(self) -> None:
        self.tokens = 0
        self.first: list[float] = []
        self.dropped = 0


async def ask(port: int, chooser: random.Random, load: Load, drops: bool) -> None:
    """Ask for one answer and read it."""
    prompt = [20 + chooser.randrange(200) for _ in range(chooser.randrange(16, 113))]
    body = json.dumps({
        "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0, "stream": True,
        "model": "bench", "stream_options": {"include_usage": True},
    }).encode()  # fmt: skip
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    drop_after = chooser.randrange(ANSWER_TOKENS) if drops and chooser.random() < 1 / 3 else None
    begun, count = time.perf_counter(), 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + body)
        async for line in reader:
            if not line.startswith(b"data: {"):
                if line.startswith((b"data: [DONE]", b"HTTP/1.1 4", b"HTTP/1.1 5")):
                    return
                continue
            if not count:
                load.first.append(time.perf_counter() - begun)
            count += 1  # chunks, which may hold several tokens
            if b'"usage":{' in line:
                load.tokens += json.loads(line[6:])["usage"]["completion_tokens"]
            if count == drop_after:
                load.dropped += 1
                return
    finally:
        writer.close()


async def clients(
    port: int, streams: int, seconds: float, seed: int = 0, drops: bool = False
) -> Load:
    """Keep so many streams busy for a time; what was answered to its end in it counts."""
    load, end = Load(), time.perf_counter() + seconds

    async def client(number: int) -> None:
        chooser = random.Random(streams * seed + number)
        while time.perf_counter() < end:
            await ask(port, chooser, load, drops)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(client(number) for number in range(streams)))
    return load


@contextlib.contextmanager
def serving(name: str, folder: Path, streams: int) -> Iterator[tuple[int, int]]:
    """Start a server and wait until it answers; give its port and process."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    if name == "ours":
        command = [
            sys.executable, "-m", "cygnet", "serve", f"bench={folder / 'hf'}", "--port", str(port),
            "--slots", str(streams), "--max_len", str(MAX_LEN), "--dtype", "bf16",
        ]  # fmt: skip
    else:
        file = str(folder / "bf16.gguf")
        threads = str(torch.get_num_threads())
        command = [
            sys.executable,
            "-c",
            LLAMA,
            file,
            str(port),
            str(streams),
            str(MAX_LEN),
            threads,
        ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                path = "healthz" if name == "ours" else "health"
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}").read()
                break
            time.sleep(0.2)
        else:
            raise SystemExit(f"{name}: the server does not come up")
        asyncio.run(clients(port, streams, 3))
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) / 1024


def soak(folder: Path, streams: int, minutes: int) -> None:
    """Print memory and used slots, minute for minute."""
    with serving("ours", folder, streams) as (port, pid):
        for minute in range(minutes):
            load = asyncio.run(clients(port, 2 * streams, 60, minute + 1, drops=True))
            time.sleep(1)
            metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
            busy = [line for line in metrics.splitlines() if re.match(BUSY, line)]
            rate = load.tokens / 60
            print(
                f"minute {minute + 1:3}: {resident_mb(pid):7.1f} MiB, {rate:7.0f} tokens/s, "
                f"{load.dropped} hung up; then {', '.join(busy)}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="26m")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--soak_minutes", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, found = Path(place), dict[str, list[Any]]()
        model = random_weights(arguments.preset)
        tokenizer = filled_tokenizer(model.config.vocab_size)
        save_folder(model, tokenizer, folder / "hf")
        if arguments.soak_minutes:
            soak(folder, arguments.streams, arguments.soak_minutes)
            return
        write_gguf(model, tokenizer, folder / "bf16.gguf", "bf16", "bench")
        for number in range(arguments.rounds):
            for name in ("ours", "llama.cpp"):
                with serving(name, folder, arguments.streams) as (port, _):
                    work = clients(port, arguments.streams, arguments.seconds, number + 1)
                    load = asyncio.run(work)
                found.setdefault(name, []).append(load)
    for name, loads in found.items():
        rates = [load.tokens / arguments.seconds for load in loads]
        print(f"{name:10} {median(rates):7.0f} tokens/s ({min(rates):.0f} to {max(rates):.0f})")
        # The first wave begins at once; later requests come as answers end.
        at_once = [time for load in loads for time in load.first[: arguments.streams]]
        later = [time for load in loads for time in load.first[arguments.streams :]]
        for what, times in (("asked at once", at_once), ("one by one", later)):
            late = quantiles(times, n=20)[-1]
            print(
                f"{'':10} first token, {what}: median {1e3 * median(times):.0f} ms, 95 % within "
                f"{1e3 * late:.0f} ms ({late / median(times):.2f} times)"
            )


if __name__ == "__main__":
    main()
