"""From preferences to a policy that two reward models prefer (docs/post-training/ppo.md).

The model at --start answers requests for quatrains; an answer that keeps the form asked for is
preferred over one that does not, and a real poem over the same with a character or a line too few
or too many. Two reward models learn from one half of these pairs each, in
another order each. PPO, which sees the first alone, is run with several seeds. On held-out prompts
answers before and after are compared by both reward models, by the form itself, and for tricks:
length, repetition, and how far the policy has gone from where it began.

    python benchmarks/ppo_end_to_end.py --start runs/demo/sft/model \
        --instructions runs/demo/instructions --out runs/rlhf --picture docs/post-training/ppo.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from cygnet.config import TrainConfig
from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.export.huggingface import load_folder
from cygnet.files import JsonlWriter, read_jsonl, write_json
from cygnet.generate.generator import Generator
from cygnet.generate.scorer import Scorer
from cygnet.progress import say
from cygnet.stages.preference.pairs import PairConfig, build_pairs
from cygnet.stages.preference.reward import RewardConfig, compare_heldout, reward
from cygnet.stages.reinforcement.episode_rows import EpisodeRows, score_rows
from cygnet.stages.reinforcement.ppo import PpoConfig, ppo
from cygnet.stages.reinforcement.prompts import asked_prompts
from cygnet.stages.reinforcement.rollout import Episode, Roller, RolloutConfig
from cygnet.text.forms import is_poem_of_form, repetition_rate

FORMS = ("五言绝句", "七言绝句")
ANSWER_TOKENS = 48
SEQ_LEN = 256
NUM_SPOILT = 600
KL_BOUND = 10.0
"""Nats an answer: the policy is to stay nearer to the reference than this."""


def main() -> None:
    """Make what is not yet there, compare, and print a table."""
    given = arguments()
    pairs = make_pairs(given.start, given.instructions, given.out)
    scorers = [make_reward(given, pairs, half) for half in (0, 1)]
    rows = []
    for seed in range(given.seeds):
        run = given.out / f"ppo-{seed}"
        train_policy(given, scorers, seed, run)
        rows.append(compare(given, scorers, run / "model", seed))
        say(json.dumps(rows[-1]))
    write_json(given.out / "result.json", {"seeds": rows})
    print_table(rows)
    if given.picture:
        draw([given.out / f"ppo-{seed}" for seed in range(given.seeds)], given.picture)


def arguments() -> argparse.Namespace:
    """Return what was typed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--instructions", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/rlhf"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--kl_coef", type=float, default=0.05)
    parser.add_argument("--reward_epochs", type=float, default=1)
    parser.add_argument("--reward_rate", type=float, default=2e-3)
    parser.add_argument("--picture", type=Path)
    return parser.parse_args()


def make_pairs(start: Path, instructions: Path, out: Path) -> Path:
    """Let the model answer requests for quatrains twice, and pair by the form; spoil real ones."""
    quatrains, pairs = out / "quatrains", out / "pairs"
    if (pairs / TRAIN).exists():
        return pairs
    quatrains.mkdir(parents=True, exist_ok=True)
    for name in (TRAIN, HELDOUT):
        with JsonlWriter(quatrains / name) as writer:
            for row in read_jsonl(instructions / name):
                if row.get("form") in FORMS:
                    writer.write(row)
    model, tokenizer = load_folder(start)
    config = PairConfig(
        num_poem_prompts=700, samples_per_prompt=2, num_recipe_pairs=0, num_own_prompts=0,
        num_spoilt_poems=NUM_SPOILT, heldout_share=1.0, temperature=1.0,
        max_new_tokens=ANSWER_TOKENS,
    )  # fmt: skip
    build_pairs(quatrains, Generator(model, tokenizer), pairs, config, SEQ_LEN)
    return pairs


def make_reward(given: argparse.Namespace, pairs: Path, half: int) -> Path:
    """Train a reward model on every second pair; say how often it is right on held-out ones."""
    run, own = given.out / f"reward-{half}", given.out / f"pairs-{half}"
    own.mkdir(exist_ok=True)
    for name in (TRAIN, HELDOUT):
        rows = list(read_jsonl(pairs / name))
        with JsonlWriter(own / name) as writer:
            for row in rows[half::2] if name == TRAIN else rows:
                writer.write(row)
    config = TrainConfig(
        epochs=given.reward_epochs, batch_tokens=8 * SEQ_LEN, max_seq_len=SEQ_LEN,
        learning_rate=given.reward_rate, seed=half + 1, micro_batch=8, compile="off",
    )  # fmt: skip
    model = reward(own, given.start, run, config, RewardConfig(), renew=True)
    found = compare_heldout(Scorer.load(model), own)
    right = defaultdict(list)
    for (better, worse), kind in zip(found.pairs, found.kinds, strict=True):
        for name in (kind, "all"):
            right[name].append(found.scores[better] > found.scores[worse])
    for name, wins in right.items():
        say(f"reward model {half}: right on {fmean(wins):.2f} of {len(wins)} held-out, {name}")
    return run


def train_policy(given: argparse.Namespace, scorers: Sequence[Path], seed: int, run: Path) -> None:
    """Run PPO with the first reward model; the second looks on."""
    config = TrainConfig(
        steps=given.steps, max_seq_len=SEQ_LEN, learning_rate=given.learning_rate,
        schedule="constant", warmup_share=0.05, eval_every=48, log_every=1, micro_batch=8,
        seed=seed,
    )  # fmt: skip
    settings = PpoConfig(
        answers_per_rollout=64, epochs_per_rollout=2, minibatches=4, max_new_tokens=ANSWER_TOKENS,
        heldout_prompts=48, kl_coef=given.kl_coef,
    )  # fmt: skip
    prompts = asked_prompts(given.out / "quatrains")
    ppo(prompts, given.start, scorers[0], scorers[1], run, config, settings, renew=True)


def compare(
    given: argparse.Namespace, scorers: Sequence[Path], model: Path, seed: int
) -> dict[str, float]:
    """Return figures of answers before and after, to every held-out prompt with the same seed."""
    _, heldout = asked_prompts(given.out / "quatrains")
    before, after = (answers(folder, heldout, seed) for folder in (given.start, model))
    figures: dict[str, float] = {"seed": seed}
    for name, folder in zip(("reward", "judge"), scorers, strict=True):
        scorer = Scorer.load(folder)
        old, new = (scorer.scores([e.messages for e in found]) for found in (before, after))
        figures |= {f"{name}_before": fmean(old), f"{name}_after": fmean(new)}
        figures[f"{name}_prefers"] = fmean(
            (a > b) + (a == b) / 2 for b, a in zip(old, new, strict=True)
        )
    for when, found in (("before", before), ("after", after)):
        figures[f"form_{when}"] = fmean(is_poem_of_form(e.answer, e.row["form"]) for e in found)
        figures[f"tokens_{when}"] = fmean(e.num_own for e in found)
        figures[f"repetition_{when}"] = fmean(repetition_rate(e.answer) for e in found)
        figures[f"ended_{when}"] = fmean(not e.truncated for e in found)
    figures["kl"] = kl(given.start, model, after)
    return figures


def answers(folder: Path, rows: Sequence[Any], seed: int) -> list[Episode]:
    """Return an answer of a model to each row's prompt."""
    model, tokenizer = load_folder(folder)
    roller = Roller(tokenizer, RolloutConfig(max_new_tokens=ANSWER_TOKENS))
    return roller.roll(model, rows, [seed * 10_000 + at for at in range(len(rows))])


def kl(start: Path, trained: Path, drawn: Sequence[Episode]) -> float:
    """Return the mean over answers of the summed log-ratio of the trained model to its start."""
    rows, sums = EpisodeRows(drawn, SEQ_LEN), []
    for folder in (trained, start):
        model, tokenizer = load_folder(folder)
        sums.append(float(score_rows(model, rows.rows, tokenizer.vocab_size).sum()))
    return (sums[0] - sums[1]) / len(drawn)


def print_table(rows: Sequence[dict[str, float]]) -> None:
    """Print the median of each figure, its range over the seeds, and whether all is well."""
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name != "seed":
            say(f"{name:18} {median(values):8.3f}   [{min(values):.3f}, {max(values):.3f}]")
    well = {
        "both reward models prefer it": all(
            row[f"{name}_prefers"] > 0.5 for row in rows for name in ("reward", "judge")
        ),
        f"KL under {KL_BOUND:g} nats an answer": all(row["kl"] < KL_BOUND for row in rows),
        "length within half of the start's": all(
            1 / 1.5 < row["tokens_after"] / row["tokens_before"] < 1.5 for row in rows
        ),
        "no more repetition": all(
            row["repetition_after"] < row["repetition_before"] + 0.05 for row in rows
        ),
    }
    for what, holds in well.items():
        say(f"{what}: {'yes' if holds else 'NO'}")


def draw(runs: Sequence[Path], picture: Path) -> None:
    """Draw rewards, KL, and length and repetition of the rollouts over the steps, a line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        "reward (learnt from)": "reward", "judge (looks on)": "judge_reward",
        "KL to the start, nats an answer": "kl", "value: explained variance": "explained_variance",
        "tokens an answer": "answer_tokens", "repeated 4-grams": "repetition",
    }  # fmt: skip
    figure, axes = plt.subplots(2, 3, figsize=(9, 4.6), dpi=90, layout="constrained")
    for axis, (title, name) in zip(axes.flat, panels.items(), strict=True):
        for run in runs:
            lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            points = [(line["step"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*points, strict=True))
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.set_xlabel("optimizer step", fontsize=8)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
