"""What 8 and 4 bits cost: bits per byte of held-out documents with each kind of weights.

python benchmarks/quantized_loss.py [--run runs/demo] [--documents 200]
"""

from __future__ import annotations

import argparse
import math
from itertools import islice
from pathlib import Path

import torch

from cygnet.export.huggingface import load_folder
from cygnet.files import read_jsonl
from cygnet.generate.quantize import quantize
from cygnet.generate.runner import laid_out
from cygnet.model.loss import token_log_probs
from cygnet.model.transformer import Transformer


@torch.inference_mode()
def bits_per_byte(model: Transformer, documents: list[list[int]], num_bytes: int) -> float:
    total = 0.0
    for ids in documents:
        tokens = torch.tensor(ids)
        logits = model.logits(model(tokens[None, :-1]))[0]
        total -= float(token_log_probs(logits, tokens[1:]).sum())
    return total / math.log(2) / num_bytes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="of cygnet run")
    parser.add_argument("--documents", type=int, default=200)
    arguments = parser.parse_args()
    folder, file = arguments.run / "pretrain", arguments.run / "data/heldout.jsonl.zst"
    if not file.exists():
        print(f"{arguments.run}: no run here; raise a model first (make demo)")
        return
    model, tokenizer = load_folder(folder / "model")
    texts = [row["text"] for row in islice(read_jsonl(file), arguments.documents)]
    # Each document as it is learnt: behind the token that ends the one before, cut at the context.
    whole = [[tokenizer.eos_id, *tokenizer.encode(text)] for text in texts]
    documents = [ids[: model.config.max_position] for ids in whole]
    num_bytes = sum(len(tokenizer.token_bytes(i)) for ids in documents for i in ids[1:])
    model.compute_dtype = torch.float32
    print(f"{'float32':10} {bits_per_byte(model, documents, num_bytes):.4f} bits per byte")
    model.compute_dtype = torch.bfloat16
    for weights in ("float", "int8", "int4"):
        copy = laid_out(model)
        if weights != "float":
            quantize(copy, weights)
        name = "bfloat16" if weights == "float" else weights
        print(f"{name:10} {bits_per_byte(copy, documents, num_bytes):.4f} bits per byte")


if __name__ == "__main__":
    main()
