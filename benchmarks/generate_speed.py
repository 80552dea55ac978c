"""Tokens a second: ours against transformers and llama.cpp, in rounds that take turns.

    python -m benchmarks.generate_speed [--preset 26m] [--streams 32]

Weights are random, since speed does not depend on them; all decode greedily past any end. Of
several rounds the best counts, for each alike. llama.cpp runs where xllamacpp is installed,
with bf16 and f16 weights and two threads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from cygnet.config import ModelConfig, read_yaml
from cygnet.export.gguf_file import write_gguf
from cygnet.export.huggingface import save_folder
from cygnet.generate.engine import Engine
from cygnet.generate.request import Request
from cygnet.generate.runner import Part, Runner
from cygnet.generate.sampling import Sampling
from cygnet.model.transformer import Transformer
from cygnet.text.tokenizer import Tokenizer, train_tokenizer
from cygnet.train.hardware import matrix_flops_per_second

PROMPT_TOKENS = 64
ROUNDS = 3
Measure = Callable[[], float]


def random_weights(preset: str) -> Transformer:
    config = ModelConfig(**read_yaml(Path("configs") / f"{preset}.yaml")["model"])
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


def ours(engine: Engine, streams: int, new_tokens: int) -> Measure:
    """Measure tokens a second from the first token on."""

    def measure() -> float:
        sampling = Sampling(temperature=0, max_new_tokens=new_tokens)
        for stream in range(streams):
            prompt = [20 + (stream * 7 + i) % 200 for i in range(PROMPT_TOKENS)]
            engine.submit(Request(prompt=prompt, sampling=sampling, ignore_end=True))
        while engine._prefilling or engine._waiting:
            engine.step()
        started, count = time.perf_counter(), 0
        while not engine.is_idle:
            count += sum(len(event.token_ids) for event in engine.step())
        return count / (time.perf_counter() - started)

    return measure


def theirs(folder: Path, dtype: torch.dtype, new_tokens: int) -> Measure:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    prompt = torch.arange(20, 20 + PROMPT_TOKENS)[None]

    def measure() -> float:
        times = []
        for count in (1, new_tokens):  # the difference leaves the prompt out
            started = time.perf_counter()
            model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                min_new_tokens=count, max_new_tokens=count,
            )  # fmt: skip
            times.append(time.perf_counter() - started)
        return (new_tokens - 1) / (times[1] - times[0])

    return measure


@contextlib.contextmanager
def llama_cpp(path: Path, new_tokens: int) -> Iterator[Measure]:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.verbosity = 1024, 1, -1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 2
    server = xllamacpp.Server(parameters)

    def measure() -> float:
        body: dict[str, Any] = {
            "prompt": list(range(20, 20 + PROMPT_TOKENS)), "n_predict": new_tokens,
            "temperature": 0, "ignore_eos": True, "cache_prompt": False,
        }  # fmt: skip
        request = urllib.request.Request(
            server.listening_address + "/completion", json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request) as answer:
            return float(json.load(answer)["timings"]["predicted_per_second"])

    yield measure


def prefill_rate(runner: Runner, num_tokens: int) -> float:
    """Return FLOP/s of the products of weights and of attention, of one chunk from the start."""
    config = runner.model.config
    part = Part(0, 0, [20 + i % 200 for i in range(num_tokens)])
    best = float("inf")
    with torch.inference_mode():
        for _ in range(4):
            started = time.perf_counter()
            runner.prefill([part])
            best = min(best, time.perf_counter() - started)
    weights = config.num_parameters - config.vocab_size * config.hidden_size
    attention = 2 * config.num_layers * config.num_heads * config.head_size * num_tokens / 2
    return 2 * num_tokens * (weights + attention) / best


def memory_bytes_per_second(num_bytes: int) -> float:
    """Measure how fast that many bytes are read."""
    data = torch.ones(num_bytes // 4, dtype=torch.int32)
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        data.max()
        best = min(best, time.perf_counter() - started)
    return num_bytes / best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="26m")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--new_tokens", type=int, default=100)
    arguments = parser.parse_args()
    model, new_tokens = random_weights(arguments.preset), arguments.new_tokens
    tokenizer = filled_tokenizer(model.config.vocab_size)
    model.compute_dtype = torch.bfloat16

    def engine(slots: int, **settings: Any) -> Engine:
        return Engine(model, tokenizer, num_slots=slots, max_len=512, **settings)

    compiled = engine(arguments.streams, compile=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        save_folder(model, tokenizer, folder / "hf")
        measures: dict[str, Measure] = {
            "ours, bf16, compiled": ours(compiled, 1, new_tokens),
            "ours, bf16, eager": ours(engine(1), 1, new_tokens),
            "ours, int8, eager": ours(engine(1, weights="int8"), 1, new_tokens),
            "ours, int4, eager": ours(engine(1, weights="int4"), 1, new_tokens),
            "transformers, fp32 (its default)": theirs(folder / "hf", torch.float32, new_tokens),
            "transformers, bf16": theirs(folder / "hf", torch.bfloat16, new_tokens),
            f"ours, bf16, compiled, {arguments.streams} streams": ours(
                compiled, arguments.streams, new_tokens
            ),
        }
        with contextlib.suppress(ModuleNotFoundError):
            for kind in ("bf16", "f16"):
                path = folder / f"{kind}.gguf"
                write_gguf(model, tokenizer, path, kind, "speed")
                measures[f"llama.cpp, {kind}"] = stack.enter_context(llama_cpp(path, new_tokens))
        best = dict.fromkeys(measures, 0.0)
        for _ in range(ROUNDS):
            for name, measure in measures.items():
                best[name] = max(best[name], measure())
    for name, rate in best.items():
        print(f"{name:40} {rate:8.1f} tokens/s")
    weight_bytes = 2 * model.config.num_parameters
    limit = memory_bytes_per_second(weight_bytes) / weight_bytes
    print(f"{'all weights read once, from memory':40} {limit:8.1f} times/s")
    rate = matrix_flops_per_second(torch.bfloat16, torch.device("cpu"))
    for num_tokens in (256, 500):
        reached = prefill_rate(compiled._runner, num_tokens)
        print(f"prefill of {num_tokens}: {reached / 1e9:.0f} GFLOP/s of {rate / 1e9:.0f}")


if __name__ == "__main__":
    main()
