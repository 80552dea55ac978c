"""Every preference loss on the same pairs, from the same model: a table and a picture.

    python benchmarks/preference_losses.py runs/demo --out runs/losses [--losses dpo kto]

Takes the tuned model and the pairs of a finished run, or the first --pairs of them, of one --kind
alone. What is finished in --out is not trained again. Prints what is measured on held-out pairs
before and after, as a table in Markdown; draws losses.png in --out.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import Any

from cygnet.config import TrainConfig
from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.export.huggingface import find_model
from cygnet.files import JsonlWriter, read_jsonl
from cygnet.stages.preference.dpo import DpoConfig, dpo

LOSSES = {
    "dpo": DpoConfig(loss="dpo"),
    "cdpo": DpoConfig(loss="cdpo"),
    "dpo_mean": DpoConfig(loss="dpo", length_normalize=True, beta=5.0),
    "ipo": DpoConfig(loss="ipo"),
    "simpo": DpoConfig(loss="simpo"),
    "orpo": DpoConfig(loss="orpo"),
    "kto": DpoConfig(loss="kto"),
}
COLUMNS = {
    "held-out accuracy": "heldout_accuracy",
    "margin": "heldout_margin",
    "chosen, nats a token": "heldout_chosen_log_prob",
    "rejected": "heldout_rejected_log_prob",
    "KL": "heldout_kl",
}


def read_lines(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that hold held-out metrics."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "heldout_loss" in line]


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Return the first and the last held-out figures of every loss."""
    rows = [f"| loss | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, lines in runs.items():
        cells = [f"{lines[0][key]:.3f} to {lines[-1][key]:.3f}" for key in COLUMNS.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw held-out accuracy, chosen and rejected log-probability over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {
        "heldout_accuracy": "held-out accuracy",
        "heldout_chosen_log_prob": "chosen, nats a token",
        "heldout_rejected_log_prob": "rejected, nats a token",
    }
    figure, axes = pyplot.subplots(1, len(shown), figsize=(11, 3.4), layout="constrained")
    for axis, (key, title) in zip(axes, shown.items(), strict=True):
        for name, lines in runs.items():
            # Before the first step no pair is preferred, for the model is the reference.
            kept = lines[1:] if key == "heldout_accuracy" else lines
            axis.plot([line["step"] for line in kept], [line[key] for line in kept], label=name)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=80)


def first_pairs(folder: Path, out: Path, count: int | None, kind: str | None) -> Path:
    """Return a folder of the first `count` pairs of a kind and half as many held out, or of all."""
    if count is None and kind is None:
        return folder
    out.mkdir(parents=True, exist_ok=True)
    for name, most in ((TRAIN, count), (HELDOUT, count and count // 2)):
        rows = (row for row in read_jsonl(folder / name) if kind in (None, row["kind"]))
        with JsonlWriter(out / name) as writer:
            for row in islice(rows, most):
                writer.write(row)
    return out


def main() -> None:
    """Train with each loss, and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--batch_tokens", type=int, default=8192)
    parser.add_argument("--pairs", type=int, default=None)
    parser.add_argument("--kind", default=None)
    parser.add_argument("--max_seq_len", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    config = TrainConfig(
        steps=options.steps, batch_tokens=options.batch_tokens, max_seq_len=options.max_seq_len,
        micro_batch=4,
        learning_rate=options.learning_rate, log_every=1, eval_every=options.steps // 2,
        threads=options.threads, compile="off",
    )  # fmt: skip
    start, runs = find_model(options.run / "sft"), {}
    pairs = first_pairs(options.run / "pairs", options.out / "pairs", options.pairs, options.kind)
    for name in options.losses:
        out = options.out / name
        dpo(
            pairs, start, options.out / "reference", out, config, LOSSES[name],
            renew=True,
        )  # fmt: skip
        runs[name] = read_lines(out)
    print(table(runs))
    draw(runs, options.out / "losses.png")


if __name__ == "__main__":
    main()
