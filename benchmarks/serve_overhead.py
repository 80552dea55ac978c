"""What the server costs: tokens a second of 32 streams over HTTP against the bare engine.

    python -m benchmarks.serve_overhead [--preset 26m] [--streams 32] [--new-tokens 128]

One engine, in one thread, answers the same requests by turns: asked for directly, and by clients
that read server-sent events in a process of their own, which shares the cores. Weights are random,
decoding is greedy. Of several rounds the median counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import time
from statistics import median

from benchmarks.generate_speed import PROMPT_TOKENS, filled_tokenizer, random_weights
from cygnet.generate.constrained import Grammars
from cygnet.generate.engine import Engine
from cygnet.generate.request import Request
from cygnet.generate.sampling import Sampling
from cygnet.serve.app import Service
from cygnet.serve.command import make_server
from cygnet.serve.driver import Driver
from cygnet.serve.offered import Offered
from cygnet.serve.settings import ServeConfig

ROUNDS = 5
CLIENTS = """
import selectors, socket, sys
port, streams = int(sys.argv[1]), int(sys.argv[2])
for line in sys.stdin.buffer:
    begun = selectors.DefaultSelector()
    for i, body in enumerate(line.split(b"\\t")):
        body = body.strip()
        connection = socket.create_connection(("127.0.0.1", port))
        head = b"POST /v1/completions HTTP/1.1\\r\\nHost: x\\r\\nContent-Type: application/json"
        connection.sendall(b"%b\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (head, len(body), body))
        begun.register(connection, selectors.EVENT_READ, bytearray())
    left, chunks = streams, 0
    while left:
        for key, _ in begun.select():
            part = key.fileobj.recv(1 << 16)
            assert part, "the server hung up"
            key.data.extend(part)
            if key.data.endswith(b"\\r\\n0\\r\\n\\r\\n"):
                chunks += key.data.count(b"\\ndata: ")
                begun.unregister(key.fileobj)
                key.fileobj.close()
                left -= 1
    print(chunks, flush=True)
"""


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="26m")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"])
    options = parser.parse_args()
    model = random_weights(options.preset)
    if options.dtype == "bf16":
        import torch

        model.compute_dtype = torch.bfloat16
    tokenizer = filled_tokenizer(model.config.vocab_size)
    streams, new_tokens = options.streams, options.new_tokens
    max_len = PROMPT_TOKENS + new_tokens + 1
    driver = Driver(Engine(model, tokenizer, num_slots=streams, max_len=max_len))
    offered = Offered(
        "random", None, 0, model.config.num_parameters, tokenizer, Grammars(tokenizer), driver,
        Sampling(),
    )  # fmt: skip
    config = ServeConfig(models=("random",), max_n=1)
    server = make_server(Service({"random": offered}, config), config.stall_s)
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    clients = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENTS, str(listening.getsockname()[1]), str(streams),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    prompts = [
        [20 + (stream * 7 + i) % 200 for i in range(PROMPT_TOKENS)] for stream in range(streams)
    ]

    def bare() -> int:
        engine = driver.engine
        sampling = Sampling(temperature=0, top_p=1, max_new_tokens=new_tokens)
        answers = [engine.submit(Request(prompt=p, sampling=sampling)) for p in prompts]
        while not engine.is_idle:
            engine.step()
        return sum(answer.usage.completion_tokens for answer in answers)

    async def served() -> int:
        assert clients.stdin and clients.stdout
        bodies = [
            json.dumps(
                {
                    "prompt": p,
                    "max_tokens": new_tokens,
                    "temperature": 0,
                    "top_p": 1,
                    "stream": True,
                }
            )
            for p in prompts
        ]
        clients.stdin.write("\t".join(bodies).encode() + b"\n")
        return int(await clients.stdout.readline())

    await driver.call(bare)
    await served()
    rates: dict[str, list[float]] = {"bare": [], "served": []}
    chunks, loop_s = 0, []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        count = await driver.call(bare)
        rates["bare"].append(count / (time.perf_counter() - began))
        began, loop_began = time.perf_counter(), time.thread_time()
        chunks = await served()
        rates["served"].append(count / (time.perf_counter() - began))
        loop_s.append(time.thread_time() - loop_began)
    bare_rate, served_rate = median(rates["bare"]), median(rates["served"])
    print(f"{options.preset} {options.dtype}, {streams} streams of {new_tokens} tokens ({count})")
    for name, own in rates.items():
        spread = f"{min(own):,.0f} to {max(own):,.0f}"
        print(f"{name:<7} {median(own):>8,.0f} tokens/s  ({spread})")
    print(f"overhead {100 * (1 - served_rate / bare_rate):.1f} %, {chunks} chunks")
    per_chunk = 1e6 * median(loop_s) / chunks
    print(f"the server's own thread: {median(loop_s):.3f} s, {per_chunk:.0f} us a chunk")
    assert clients.stdin
    clients.stdin.close()
    await clients.wait()
    server.should_exit = True
    await serving
    driver.close()


if __name__ == "__main__":
    asyncio.run(main())
