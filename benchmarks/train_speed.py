"""Tokens a second at preset 26m: Cygnet, transformers' Qwen3 in bf16 compiled, and in fp32 eager.

All three train on the same tokens (the preset's 32,768 a step, as 4 micro-batches of 16 rows of
512, plain causal) with forward, backward, clipping and an optimizer step. Rounds are interleaved,
so that a busy moment hits all alike, and every round measures the machine's matrix rate too; what
counts are the medians of ratios.

    python benchmarks/train_speed.py [--rounds 5] [--rows 16] [--micro-batches 4]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import transformers

from cygnet.config import ModelConfig, TrainConfig
from cygnet.model.loss import linear_cross_entropy, softmax_gradient
from cygnet.model.transformer import Transformer
from cygnet.train.hardware import find_hardware, matrix_flops_per_second
from cygnet.train.optim import build_optimizer

SEQ_LEN = 512


def cygnet_step(config: ModelConfig, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> Callable:
    model = Transformer(config, find_hardware(TrainConfig()).dtype)
    model.initialize(torch.Generator().manual_seed(0))
    optimizer = build_optimizer(model, TrainConfig())
    kernel = torch.compile(softmax_gradient)
    for block in model.model.layers:
        block.compile(dynamic=False)

    def step() -> None:
        for tokens, labels in batches:
            hidden = model(tokens)
            loss = linear_cross_entropy(
                hidden.flatten(0, 1), model.output_weight, labels.flatten(), kernel
            )
            (loss / (labels.numel() * len(batches))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def transformers_step(
    config: ModelConfig, batches: list[tuple[torch.Tensor, torch.Tensor]], fast: bool
) -> Callable:
    settings = transformers.Qwen3Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_size,
        intermediate_size=config.intermediate_size,
        tie_word_embeddings=True,
    )
    model = transformers.Qwen3ForCausalLM(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    forward = torch.compile(model) if fast else model

    def step() -> None:
        for tokens, labels in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                loss = forward(input_ids=tokens, labels=labels).loss
            (loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds(step: Callable) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--micro-batches", type=int, default=4)
    options = parser.parse_args()
    config = ModelConfig()
    generator = torch.Generator().manual_seed(0)
    shape = (options.micro_batches, 2, options.rows, SEQ_LEN)
    batches = [tuple(b) for b in torch.randint(0, config.vocab_size, shape, generator=generator)]
    step_tokens = options.micro_batches * options.rows * SEQ_LEN
    steps = {
        "cygnet": cygnet_step(config, batches),
        "transformers bf16, compiled": transformers_step(config, batches, fast=True),
        "transformers fp32, eager": transformers_step(config, batches, fast=False),
    }
    for step in steps.values():
        for _ in range(2):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    rates = []
    for _ in range(options.rounds):
        rates.append(matrix_flops_per_second(torch.bfloat16, torch.device("cpu")))
        for name, step in steps.items():
            times[name].append(seconds(step))
    flops = config.flops_per_token(SEQ_LEN / 2) * step_tokens
    shares = [flops / t / rate for t, rate in zip(times["cygnet"], rates, strict=True)]
    print(f"matrix rate in bf16: {median(rates) / 1e9:.0f} GFLOP/s (torch.mm, median)")
    print(
        f"cygnet reaches {median(shares):.0%} of it ({min(shares):.0%} to {max(shares):.0%} over "
        f"{options.rounds} rounds)\n"
    )
    print("| | tokens/s, median | times slower than Cygnet, median (range) |\n|---|---|---|")
    for name, found in times.items():
        ratios = [a / b for a, b in zip(found, times["cygnet"], strict=True)]
        speed = step_tokens / median(found)
        print(
            f"| {name} | {speed:,.0f} | {median(ratios):.2f} ({min(ratios):.2f} to "
            f"{max(ratios):.2f}) |"
        )


if __name__ == "__main__":
    main()
