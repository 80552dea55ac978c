"""What a teacher gives a smaller model: bits per byte of held-out text, against the student alone.

python benchmarks/distillation.py --run runs/demo --out runs/distillation --seed 0
python benchmarks/distillation.py --out runs/distillation --report    (after several seeds)

Three students of each seed, from the same weights: one learns from the teacher; one alone, with as
many steps; one alone, with as many matrix-product FLOPs, those of the teacher's reading included.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import torch

from cygnet.config import ModelConfig, TrainConfig, plain
from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.export.huggingface import load_folder
from cygnet.files import JsonlWriter, folder_atomic, read_jsonl, sha256_file, write_json
from cygnet.stages.distillation.distill import DistillConfig
from cygnet.stages.distillation.distill_run import distill
from cygnet.stages.next_token import NextTokenStage, open_shards
from cygnet.stages.pretrain import pretrain
from cygnet.text.tokenizer import Tokenizer

ARMS = ("distilled", "alone, equal steps", "alone, equal FLOPs")
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
"""Student's t for a 95 % interval, by the number of seeds."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="of cygnet run")
    parser.add_argument("--out", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--alpha", type=float, default=0.0)
    parser.add_argument("--divergence", default="forward_kl")
    parser.add_argument("--top_k", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--share", type=float, default=1.0, help="of the text, for all students")
    parser.add_argument("--arms", nargs="*", choices=[arm.split(", ")[-1] for arm in ARMS])
    parser.add_argument("--report", action="store_true", help="join the results of all seeds")
    arguments = parser.parse_args()
    if arguments.report:
        report(arguments.out)
        return
    folder = arguments.out / f"seed_{arguments.seed}"
    chosen = [arm for arm in ARMS if not arguments.arms or arm.split(", ")[-1] in arguments.arms]
    for arm in chosen:
        result = train(arm, folder / arm.replace(", ", "_").replace(" ", "_"), arguments)
        print(f"seed {arguments.seed}, {arm}: {json.dumps(result)}", flush=True)
        write_json(folder / f"{arm}.json", result)


def train(arm: str, run: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    teacher, tokenizer = load_folder(arguments.run / "pretrain")
    config = TrainConfig(
        steps=arguments.steps, batch_tokens=1024, max_seq_len=128, learning_rate=6e-3,
        embedding_learning_rate=2e-2, compile="off", eval_every=10**9, seed=arguments.seed,
        micro_batch=8, checkpoint_every=10_000,
    )  # fmt: skip
    sizes = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=arguments.hidden,
        num_layers=arguments.layers, num_heads=arguments.hidden // 64, num_kv_heads=1,
        intermediate_size=arguments.hidden * 11 // 4, max_position=1024,
    )  # fmt: skip
    context = config.max_seq_len / 2
    own = sizes.flops_per_token(context)
    # A third of what training costs is the forward pass.
    with_teacher = own + teacher.config.flops_per_token(context) / 3
    data = part_of(arguments.run / "data", arguments.share, arguments.out / "data")
    shards = arguments.out / "shards"
    if arm == "distilled":
        method = DistillConfig(
            alpha=arguments.alpha, divergence=arguments.divergence, top_k=arguments.top_k,
            temperature=arguments.temperature,
        )  # fmt: skip
        place = arguments.run / "pretrain"
        distill(place, None, sizes, data, shards, run, config, method)
        used, flops = plain(method), with_teacher
    else:
        if arm.endswith("FLOPs"):
            steps = math.ceil(arguments.steps * with_teacher / own)
            config = dataclasses.replace(config, steps=steps)
        pretrain(data, arguments.run / "tokenizer", shards, run, sizes, config)
        used, flops = {}, own
    steps = config.steps or 0
    scale = bits_per_token_byte(tokenizer, shards, config)
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "bits_per_byte": scale * log[-1]["heldout_loss"],
        "steps": steps,
        "flops": steps * config.batch_tokens * flops,
        "training_s": log[-1]["elapsed_s"],
        "parameters": sizes.num_parameters,
        "teacher_parameters": teacher.config.num_parameters,
        "teacher_bits_per_byte": scale * log[-1].get("heldout_teacher_loss", math.nan),
        "method": used,
        "curve": [(row["step"], row.get("cross_entropy", row.get("loss"))) for row in log[1:]],
    }


def part_of(data: Path, share: float, out: Path) -> Path:
    """Return a data folder with a share of the training documents, and all that are held out."""
    if share == 1 or out.exists():
        return out if out.exists() else data
    with folder_atomic(out) as folder:
        rows = sorted(read_jsonl(data / TRAIN), key=lambda row: row["id"])
        with JsonlWriter(folder / TRAIN) as writer:
            for row in rows[: round(share * len(rows))]:
                writer.write(row)
        shutil.copy(data / HELDOUT, folder / HELDOUT)
        write_json(folder / "manifest.json", {"share": share, "train": sha256_file(folder / TRAIN)})
    return out


def bits_per_token_byte(tokenizer: Tokenizer, shards: Path, config: TrainConfig) -> float:
    """Return what a mean loss of one nat per token is in bits per byte of the held-out rows."""
    readers = open_shards(shards, tokenizer.hash)
    stage = NextTokenStage("pretrain", *readers, config, tokenizer)
    labels = torch.cat([batch.labels[batch.labels >= 0] for batch, _ in stage.heldout_batches])
    num_bytes = sum(len(tokenizer.token_bytes(token)) for token in labels.tolist())
    return len(labels) / num_bytes / math.log(2)


def report(out: Path) -> None:
    """Print what the finished runs of all seeds show; gains are of the same seed."""
    found = {
        arm: {
            int(file.parent.name.partition("_")[2]): json.loads(file.read_text())
            for file in sorted(out.glob(f"seed_*/{arm}.json"))
        }
        for arm in ARMS
    }
    for arm, results in found.items():
        if results:
            one = next(iter(results.values()))
            values = [result["bits_per_byte"] for result in results.values()]
            told = f"steps {one['steps']}, {one['flops'] / 1e12:.2f} TFLOP"
            print(f"{arm:20} {interval(values)}   seeds {list(results)}, {told}")
    for arm in ARMS[1:]:
        gains = [
            result["bits_per_byte"] - found[ARMS[0]][seed]["bits_per_byte"]
            for seed, result in found[arm].items()
            if seed in found[ARMS[0]]
        ]
        if gains:
            print(f"gain over {arm}: {interval(gains)} bits per byte, seed by seed")
    draw({arm: list(results.values()) for arm, results in found.items()}, out / "distillation.png")


def interval(values: list[float]) -> str:
    told = ", ".join(f"{value:.4f}" for value in values)
    if len(values) < 2:
        return told
    half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.4f} +- {half:.4f} ({told})"


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=110)
    for arm, colour in zip(ARMS, ("#0f766e", "#c2410c", "#7c8594"), strict=True):
        for number, result in enumerate(found[arm]):
            points = [point for point in result["curve"] if point[0]]
            scale = result["flops"] / result["steps"] / 1e12
            axes.plot(
                [step * scale for step, _ in points], [loss for _, loss in points],
                color=colour, linewidth=1, label=None if number else arm,
            )  # fmt: skip
    axes.set_xlabel("TFLOP, the teacher's reading included")
    axes.set_ylabel("loss on the training text (nats per token)")
    axes.legend(frameon=False)
    axes.grid(color="#e3e1da")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
