"""Packed against padded instruction tuning: is the speed-up the padding avoided?

The same conversations, the same model, the same loss and optimizer step, eager; only the layout of
a batch differs: conversations packed into rows of max_seq_len behind document masks; one
conversation a row, each micro-batch padded to its longest; or every row padded to max_seq_len. Each
seed takes other conversations. Rounds are interleaved, so that a busy moment hits all alike; what
counts are ratios within a round. The summed loss of the three layouts is compared first.

    python benchmarks/packed_sft.py --run runs/demo [--conversations 64] [--rounds 3] [--seeds 3]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from cygnet.config import TrainConfig
from cygnet.corpus.document import TRAIN
from cygnet.export.huggingface import load_folder
from cygnet.files import JsonlWriter, read_jsonl
from cygnet.model.transformer import Transformer
from cygnet.stages.next_token import NextTokenStage
from cygnet.text.loader import IGNORE, PADDING, Batch
from cygnet.text.shards import ShardReader
from cygnet.text.tokenize import tokenize_conversations
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.hardware import find_hardware
from cygnet.train.optim import build_optimizer

MICRO_BATCH = 16
PACKED = "packed"


def shards_of(rows: list[dict], tokenizer: Tokenizer, folder: Path, seq_len: int) -> ShardReader:
    with JsonlWriter(folder / "chosen.jsonl") as writer:
        for row in rows:
            writer.write(row)
    tokenize_conversations(folder / "chosen.jsonl", tokenizer, folder / "shards", seq_len)
    return ShardReader(folder / "shards", tokenizer.hash)


def padded(reader: ShardReader, numbers: list[int], width: int | None) -> Batch:
    """Return one conversation a row, padded to `width` or to the longest."""
    documents = [reader.document(number) for number in numbers]
    width = width or max(len(ids) for ids, _ in documents) - 1
    shape = (len(documents), width)
    tokens, positions = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    labels, ids_of_rows = torch.full(shape, IGNORE), torch.full(shape, PADDING, dtype=torch.int32)
    for row, (ids, is_label) in enumerate(documents):
        ids_T = torch.from_numpy(ids.astype("int64"))
        length = len(ids_T) - 1
        tokens[row, :length] = ids_T[:-1]
        learnt = torch.from_numpy(is_label[1:].astype(bool))
        labels[row, :length] = torch.where(learnt, ids_T[1:], IGNORE)
        ids_of_rows[row, :length] = 0
        positions[row, :length] = torch.arange(length)
    return Batch(tokens, labels, ids_of_rows, positions)


def layouts(reader: ShardReader, seq_len: int) -> tuple[dict[str, list[Batch]], NextTokenStage]:
    """Return the micro-batches of one optimizer step over all conversations, for each layout."""
    train = TrainConfig(batch_tokens=seq_len, max_seq_len=seq_len)
    stage = NextTokenStage("sft", reader, None, train)
    loader, count = stage.loader, reader.num_documents
    parts = [
        list(range(start, min(start + MICRO_BATCH, count)))
        for start in range(0, count, MICRO_BATCH)
    ]
    rows = loader.num_rows
    return {
        PACKED: [
            loader.take(start, min(MICRO_BATCH, rows - start))
            for start in range(0, rows, MICRO_BATCH)
        ],
        "padded to the longest": [padded(reader, part, None) for part in parts],
        "padded to max_seq_len": [padded(reader, part, seq_len) for part in parts],
    }, stage


def total_loss(model: Transformer, stage: NextTokenStage, batches: list[Batch]) -> float:
    with torch.no_grad():
        return sum(float(stage.loss(model, batch)[0]) for batch in batches)


def step_seconds(
    model: Transformer, stage: NextTokenStage, optimizer: torch.optim.Optimizer, parts: list[Batch]
) -> float:
    started = time.perf_counter()
    weight = sum(part.num_labels for part in parts)
    for part in parts:
        (stage.loss(model, part)[0] / weight).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - started


def measure(
    run: Path, rows: list[dict], seq_len: int, rounds: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return positions of each layout, and for each round how many times slower than packed."""
    model, tokenizer = load_folder(run / "pretrain" / "model", find_hardware(TrainConfig()).dtype)
    with tempfile.TemporaryDirectory() as folder:
        reader = shards_of(rows, tokenizer, Path(folder), seq_len)
        batches, stage = layouts(reader, seq_len)
    positions = {name: sum(b.tokens.numel() for b in parts) for name, parts in batches.items()}
    losses = {name: total_loss(model, stage, parts) for name, parts in batches.items()}
    labels = {sum(b.num_labels for b in parts) for parts in batches.values()}
    tokens = {sum(b.num_tokens for b in parts) for parts in batches.values()}
    assert len(labels) == len(tokens) == 1, "the layouts hold different tokens"
    told = ", ".join(f"{name} {loss / min(labels):.4f}" for name, loss in losses.items())
    print(f"{min(tokens):,} tokens, {min(labels):,} labels; loss per label: {told}")
    optimizer = build_optimizer(model, TrainConfig(learning_rate=1e-5))
    times: dict[str, list[float]] = {name: [] for name in batches}
    for number in range(rounds + 1):
        for name, parts in batches.items():
            seconds = step_seconds(model, stage, optimizer, parts)
            if number:  # the first is a warm-up
                times[name].append(seconds)
    slower = {
        name: [a / b for a, b in zip(found, times[PACKED], strict=True)]
        for name, found in times.items()
    }
    return {name: count / min(tokens) for name, count in positions.items()}, slower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    rows = list(read_jsonl(options.run / "instructions" / TRAIN))
    print("| seed | layout | positions a token | padding avoided | speed-up | off by |")
    print("|---|---|---|---|---|---|")
    lines = []
    for seed in range(options.seeds):
        chosen = random.Random(seed).sample(rows, options.conversations)
        positions, slower = measure(options.run, chosen, options.max_seq_len, options.rounds)
        for name, found in slower.items():
            avoided = positions[name] / positions[PACKED]
            speed_up = median(found)
            lines.append(
                f"| {seed} | {name} | {positions[name]:.3f} | {avoided:.2f} | {speed_up:.2f} "
                f"({min(found):.2f} to {max(found):.2f}) | {speed_up / avoided - 1:+.1%} |"
            )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
