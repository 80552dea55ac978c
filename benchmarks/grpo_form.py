"""Poems of the form that was asked for, before and after GRPO: accuracy on held-out prompts.

Starts from a run's instruction-tuned model and the instructions that it learnt from, and trains
once for each seed with a reward of 1 for a poem of the form and 0 for any other text. The accuracy
is that of `cygnet eval`: answers to held-out prompts at its temperature and top-p. Prints each
seed, the mean with its 95 % interval (Student's t over seeds), and the processor time of training;
draws the curves with --plot.

    python benchmarks/grpo_form.py runs/demo [--seeds 0 1 2] [--steps 40] [--plot curves.png]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cygnet.config import TrainConfig
from cygnet.corpus.document import HELDOUT
from cygnet.evals.evaluate import answer
from cygnet.evals.result import EvalConfig
from cygnet.export.huggingface import find_model, load_folder
from cygnet.files import JsonlWriter, read_jsonl
from cygnet.stages.reinforcement.prompts import checkable_prompts
from cygnet.train.hardware import find_hardware

STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def accuracy(model: Path, instructions: Path, poems: int) -> float:
    config = EvalConfig(num_poems=poems, num_recipes=0, num_others=0)
    loaded = load_folder(find_model(model), find_hardware(TrainConfig()).dtype)
    rows = [row for row in read_jsonl(instructions / HELDOUT) if row.get("kind") == "poem"]
    passed = [sample.passed for sample in answer(*loaded, [], rows, config)]
    return mean(float(value) for value in passed if value is not None)


def train(
    start: Path, asked: list[str], out: Path, seed: int, options: argparse.Namespace
) -> float:
    """Run `cygnet grpo`; return the seconds that it kept processors busy.

    On an idle machine, these divided by the threads are about the seconds that it takes.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "cygnet", "grpo", "--from", str(start), "--out", str(out),
         *asked, "--reward", options.reward, "--steps", str(options.steps), "--seed", str(seed),
         "--learning_rate", str(options.learning_rate),
         "--embedding_learning_rate", str(options.learning_rate / 10), "--eval_every", "10",
         "--log_every", "1", *options.flags],
        check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prompts(instructions: Path, out: Path) -> list[str]:
    """Write the poems that the instructions ask for as prompts; return the flags that name them."""
    flags = []
    split = checkable_prompts(instructions, ["poem_form"])
    for name, rows in zip(("data", "heldout_data"), split, strict=True):
        path = out / f"{name}.jsonl"
        with JsonlWriter(path) as file:
            for row in rows:
                file.write({"prompt": row["prompt"], "form": row["form"]})
        flags += [f"--{name}", str(path)]
    return flags


def plot(runs: list[Path], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3), layout="constrained")
    names = ("reward", "entropy", "zero_groups")
    for seed, run in enumerate(runs):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for axis, name in zip(axes, names, strict=True):
            points = [(line["step"], line[name]) for line in lines if name in line]
            axis.plot(*zip(*points, strict=True), color=f"C{seed}", alpha=0.7, lw=1.2)
        held = [
            (line["step"], line["heldout_reward"]) for line in lines if "heldout_reward" in line
        ]
        axes[0].plot(*zip(*held, strict=True), "o", color=f"C{seed}", ms=4)
    titles = ("reward (dots: held out)", "entropy, nats a token", "groups without an advantage")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="further flags are those of `cygnet grpo`",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="a run with `sft` and `instructions`")
    parser.add_argument("--out", type=Path, default=Path("runs/grpo_form"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--reward", default=f"{Path(__file__).parent / 'form_reward.py'}:form_kept")
    parser.add_argument("--poems", type=int, default=192)
    parser.add_argument("--plot", type=Path)
    options, options.flags = parser.parse_known_args()
    start, instructions = options.run / "sft", options.run / "instructions"
    print(f"sft: form accuracy {accuracy(start, instructions, options.poems):.3f}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    asked = prompts(instructions, options.out)
    results: list[dict[str, Any]] = []
    for seed in options.seeds:
        out = options.out / f"seed_{seed}"
        seconds = train(start, asked, out, seed, options)
        found = accuracy(out, instructions, options.poems)
        results.append({"seed": seed, "accuracy": found, "seconds": seconds})
        print(
            f"seed {seed}: form accuracy {found:.3f} after {seconds:.0f} s of processor time",
            flush=True,
        )
    values = [result["accuracy"] for result in results]
    if len(values) > 1:
        half = STUDENT_T.get(len(values), 2.5) * stdev(values) / len(values) ** 0.5
        print(f"grpo: form accuracy {mean(values):.3f} +- {half:.3f} over {len(values)} seeds")
    if options.plot:
        plot([options.out / f"seed_{result['seed']}" for result in results], options.plot)


if __name__ == "__main__":
    main()
