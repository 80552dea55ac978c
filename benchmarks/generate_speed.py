"""Tokens a second of one stream: ours against transformers and llama.cpp, and ours of many.

Each contender has a process of its own, so that none shares its threads with another; rounds take
turns. Weights are random, since speed does not depend on them; all decode greedily past any end
from a prompt of 64 tokens, whose reading is not counted. Medians and ranges of the rounds, in each
of which the best of a few repeats counts.
llama.cpp takes part where xllamacpp is installed.

    python benchmarks/generate_speed.py [--preset 26m] [--rounds 3] [--streams 32]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cygnet.config import ModelConfig, read_yaml
from cygnet.export.gguf_file import write_gguf
from cygnet.export.huggingface import load_folder, save_folder
from cygnet.generate.engine import Engine
from cygnet.generate.request import Request
from cygnet.generate.runner import Part, Runner
from cygnet.generate.sampling import Sampling
from cygnet.model.transformer import Transformer
from cygnet.text.tokenizer import Tokenizer, train_tokenizer
from cygnet.train.hardware import matrix_flops_per_second

ROOT = Path(__file__).parent.parent
PROMPT_TOKENS, NEW_TOKENS, MAX_LEN, REPEATS = 64, 200, 512, 3
PREFILLS = (256, 500)
GGUF_TYPES = ("bf16", "f16", "q8_0", "q4_0")


def random_weights(preset: str) -> Transformer:
    config = ModelConfig(**read_yaml(ROOT / "configs" / f"{preset}.yaml")["model"])
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return model


def filled_tokenizer(vocab_size: int) -> Tokenizer:
    """Return a tokenizer with as many entries as the model has, of made-up words."""
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(97, 123, (60_000,), generator=generator).tolist()
    words = ["".join(map(chr, letters[i : i + 6])) for i in range(0, len(letters), 6)]
    return train_tokenizer([" ".join(words)] * 2, vocab_size)


def prompt(stream: int = 0, length: int = PROMPT_TOKENS) -> list[int]:
    return [20 + (stream * 7 + i) % 200 for i in range(length)]


def ours(folder: Path, weights: Any, streams: int, is_greedy: bool = True) -> float:
    """Return the engine's tokens a second from the moment when all have read their prompts."""
    model, tokenizer = load_folder(folder)
    model.compute_dtype = torch.bfloat16
    engine = Engine(model, tokenizer, num_slots=streams, max_len=MAX_LEN, weights=weights)
    sampling = Sampling(max_new_tokens=NEW_TOKENS, **({"temperature": 0} if is_greedy else {}))
    best = 0.0
    for _ in range(REPEATS):
        for stream in range(streams):
            engine.submit(Request(prompt=prompt(stream), sampling=sampling, ignore_end=True))
        while engine.num_waiting or engine._prefilling:
            engine.step()
        started, count = time.perf_counter(), 0
        while not engine.is_idle:
            count += sum(len(event.token_ids) for event in engine.step())
        best = max(best, count / (time.perf_counter() - started))
    return best


def transformers(folder: Path, dtype: torch.dtype) -> float:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    ids = torch.tensor([prompt()])
    best = 0.0
    for _ in range(REPEATS):
        times = []
        for count in (1, NEW_TOKENS):  # the difference leaves the prompt out
            started = time.perf_counter()
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False,
                min_new_tokens=count, max_new_tokens=count,
            )  # fmt: skip
            times.append(time.perf_counter() - started)
        best = max(best, (NEW_TOKENS - 1) / (times[1] - times[0]))
    return best


def llama_cpp(file: Path) -> float:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx, parameters.n_parallel, parameters.verbosity = MAX_LEN, 1, -1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = torch.get_num_threads()
    server = xllamacpp.Server(parameters)
    body = {
        "prompt": prompt(), "n_predict": NEW_TOKENS, "temperature": 0, "ignore_eos": True,
        "cache_prompt": False,
    }  # fmt: skip
    request = urllib.request.Request(
        server.listening_address + "/completion", json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    best = 0.0
    for _ in range(REPEATS):
        with urllib.request.urlopen(request) as answer:
            best = max(best, json.load(answer)["timings"]["predicted_per_second"])
    return best


def prefill_share(folder: Path, num_tokens: int) -> float:
    """Return the share of the matrix rate that reading a prompt reaches, in chunks of 256.

    What counts: the products of weights (of the output for one token) and of attention.
    """
    model, _ = load_folder(folder)
    model.compute_dtype = torch.bfloat16
    config, runner, best = model.config, Runner(model, 1, MAX_LEN), float("inf")
    rate = matrix_flops_per_second(torch.bfloat16, torch.device("cpu"))
    with torch.inference_mode():
        for _ in range(3 * REPEATS):
            started = time.perf_counter()
            for start in range(0, num_tokens, 256):
                size = min(256, num_tokens - start)
                runner.prefill([Part(0, start, prompt(0, size))])
            best = min(best, time.perf_counter() - started)
    weights = config.num_parameters - config.vocab_size * config.hidden_size
    attention = 2 * config.num_layers * config.num_heads * config.head_size * num_tokens / 2
    return 2 * num_tokens * (weights + attention) / best / rate


def readings(folder: Path) -> float:
    """Return how often a second the bytes of all weights in bfloat16 are read from memory."""
    model, _ = load_folder(folder)
    data = torch.ones(model.config.num_parameters // 2, dtype=torch.int32)
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        data.max()
        best = min(best, time.perf_counter() - started)
    return 1 / best


def contenders(folder: Path, streams: int) -> dict[str, Any]:
    hf = folder / "hf"
    found = {
        **{f"ours, {n}": lambda w=w: ours(hf, w, 1)
           for n, w in (("bf16", "float"), ("int8", "int8"), ("int4", "int4"))},
        "ours, bf16, drawn": lambda: ours(hf, "float", 1, is_greedy=False),
        f"ours, bf16, {streams} streams": lambda: ours(hf, "float", streams),
        "transformers, fp32 (its default)": lambda: transformers(hf, torch.float32),
        "transformers, bf16": lambda: transformers(hf, torch.bfloat16),
        **{f"llama.cpp, {kind}": lambda kind=kind: llama_cpp(folder / f"{kind}.gguf")
           for kind in GGUF_TYPES},
        "all weights (bf16) read, times": lambda: readings(hf),
        **{f"prefill of {n}, share of the matrix rate": lambda n=n: prefill_share(hf, n)
           for n in PREFILLS},
    }  # fmt: skip
    return found


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> float | None:
    """Run one contender in a process of its own; none where its library is missing."""
    command = [
        sys.executable, __file__, "--one", name, "--folder", str(folder),
        "--streams", str(arguments.streams),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in done.stderr:
        return None
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="26m")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(contenders(arguments.folder, arguments.streams)[arguments.one]())
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = random_weights(arguments.preset)
        tokenizer = filled_tokenizer(model.config.vocab_size)
        save_folder(model, tokenizer, folder / "hf")
        for kind in GGUF_TYPES:
            write_gguf(model, tokenizer, folder / f"{kind}.gguf", kind, "speed")
        found: dict[str, list[float]] = {name: [] for name in contenders(folder, arguments.streams)}
        for _ in range(arguments.rounds):
            for name, values in found.items():
                value = measure(name, arguments, folder)
                values += [] if value is None else [value]
    for name, values in found.items():
        if values:
            spread = f"{min(values):.4g} to {max(values):.4g}"
            print(
                f"{name:42} {median(values):8.4g} ({spread}) {'' if values[0] < 1 else 'a second'}"
            )


if __name__ == "__main__":
    main()
