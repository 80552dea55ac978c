r"""Held-out success before and after GRPO on a task set made by rule (`cygnet tasks`).

python benchmarks/grpo_tasks.py runs/demo/sft --task arithmetic --seeds 0 1 2 [--plot curves.png]
python benchmarks/grpo_tasks.py runs/demo/sft --task tools --two_calls 0 --num_sft 200 \
    --max_seq_len 720 --sft_batch_tokens 1440 --sft_learning_rate 4e-3 --max_new_tokens 72
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from grpo_form import STUDENT_T, plot

from cygnet.config import TrainConfig
from cygnet.export.huggingface import find_model, load_folder
from cygnet.files import JsonlWriter, read_jsonl, write_json
from cygnet.stages.reinforcement.environments.environment import Environment, find_environment
from cygnet.stages.reinforcement.grpo import GrpoConfig
from cygnet.stages.reinforcement.grpo_run import grpo
from cygnet.stages.reinforcement.rewards.judge import Judge
from cygnet.stages.reinforcement.rollout import Roller, RolloutConfig
from cygnet.stages.reinforcement.tasks import REWARD_OF, Row, TaskConfig, build_tasks
from cygnet.stages.sft import sft

RIGHT = 0.999
MAX_TURNS = 4


def instructions_of(tasks: Path, folder: Path) -> Path:
    """Write the set's conversations as `cygnet sft` reads them, with none held out but the last."""
    rows = list(read_jsonl(tasks / "sft.jsonl"))
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows[:-8]), ("heldout", rows[-8:])):
        with JsonlWriter(folder / f"{name}.jsonl.zst") as writer:
            for row in part:
                writer.write(row)
    write_json(folder / "manifest.json", {"rows": len(rows)})
    return folder


def success(
    model: Path, rows: list[Row], reward: str, world: Callable[[], Environment] | None, most: int
) -> dict[str, float]:
    """Return the share of right answers, in all and of each kind; the likeliest tokens answer."""
    loaded, tokenizer = load_folder(find_model(model))
    roller = Roller(
        tokenizer, RolloutConfig(temperature=0.0, max_new_tokens=most, max_turns=MAX_TURNS)
    )
    with Judge([reward]) as judge:
        episodes = roller.roll(loaded, rows, list(range(len(rows))), world)
        right: dict[str, list[bool]] = {}
        for episode in episodes:
            verdict = judge.judge(episode.answer, episode.row, episode.messages)
            for kind in ("all", str(episode.row["kind"])):
                right.setdefault(kind, []).append(verdict.total > RIGHT)
    for episode in episodes[:3]:
        print(json.dumps([m.get("tool_calls") or m["content"] for m in episode.messages],
                         ensure_ascii=False)[:300])  # fmt: skip
    return {kind: sum(values) / len(values) for kind, values in right.items()}


def spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = STUDENT_T.get(len(values), 2.5) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} ± {half:.3f}"


def one_seed(
    arguments: argparse.Namespace, seed: int, world: Callable[[], Environment] | None
) -> dict[str, float]:
    out = arguments.out / f"{arguments.task}-{seed}"
    tasks = build_tasks(
        out / "tasks",
        TaskConfig(task=arguments.task, num_sft=arguments.num_sft, seed=seed,
                   two_calls=arguments.two_calls, num_heldout=arguments.num_heldout),
    )  # fmt: skip
    heldout = list(read_jsonl(tasks / "heldout.jsonl"))
    begun = time.monotonic()
    shown = instructions_of(tasks, out / "instructions")
    tuned = sft(
        shown, arguments.start, out / "shards", out / "sft",
        TrainConfig(epochs=arguments.sft_epochs, batch_tokens=arguments.sft_batch_tokens,
                    max_seq_len=arguments.max_seq_len, learning_rate=arguments.sft_learning_rate,
                    seed=seed, compile=arguments.compile),
    )  # fmt: skip
    tuned_s = time.monotonic() - begun
    before = success(tuned, heldout, REWARD_OF[arguments.task], world, arguments.max_new_tokens)
    print(json.dumps({"seed": seed, "sft_s": round(tuned_s), "after SFT": before}), flush=True)
    if arguments.steps == 0:
        return {"before": before["all"], "after": before["all"]}

    begun = time.monotonic()
    with Judge([REWARD_OF[arguments.task]]) as judge:
        learnt = grpo(
            (list(read_jsonl(tasks / "prompts.jsonl")), heldout), judge, tuned, out / "grpo",
            TrainConfig(steps=arguments.steps, learning_rate=arguments.learning_rate, seed=seed,
                        embedding_learning_rate=arguments.learning_rate / 10,
                        batch_tokens=arguments.max_seq_len * 8,
                        max_seq_len=arguments.max_seq_len, compile=arguments.compile),
            GrpoConfig(loss=arguments.loss, prompts_per_step=arguments.prompts,
                       group_size=arguments.group_size, max_new_tokens=arguments.max_new_tokens,
                       resample=arguments.resample, max_turns=MAX_TURNS),
            [REWARD_OF[arguments.task]], world,
        )  # fmt: skip
    after = success(learnt, heldout, REWARD_OF[arguments.task], world, arguments.max_new_tokens)
    print(json.dumps({"seed": seed, "grpo_s": round(time.monotonic() - begun),
                      "after GRPO": after}), flush=True)  # fmt: skip
    return {"before": before["all"], "after": after["all"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("start", type=Path, help="run or model folder to start from")
    parser.add_argument("--task", choices=sorted(REWARD_OF), default="arithmetic")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/grpo-tasks"))
    parser.add_argument("--num_sft", type=int, default=540)
    parser.add_argument("--num_heldout", type=int, default=300)
    parser.add_argument("--two_calls", type=float, default=0.2)
    parser.add_argument("--sft_epochs", type=float, default=4)
    parser.add_argument("--sft_batch_tokens", type=int, default=1024)
    parser.add_argument("--sft_learning_rate", type=float, default=5e-3)
    parser.add_argument("--max_seq_len", type=int, default=128)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group_size", type=int, default=8)
    parser.add_argument("--max_new_tokens", type=int, default=40)
    parser.add_argument("--resample", type=int, default=1)
    parser.add_argument("--loss", default="grpo")
    parser.add_argument("--compile", default="off")
    parser.add_argument("--plot", type=Path, help="where to draw the curves")
    arguments = parser.parse_args()
    world = find_environment("tools") if arguments.task == "tools" else None
    found = [one_seed(arguments, seed, world) for seed in arguments.seeds]
    if world is not None:
        print(f"tools: {world.counts}")
        world.close()
    for name in ("before", "after"):
        print(f"{arguments.task}, {name} GRPO: {spread([each[name] for each in found])}")
    if arguments.plot and arguments.steps:
        runs = [arguments.out / f"{arguments.task}-{seed}" / "grpo" for seed in arguments.seeds]
        plot(runs, arguments.plot)


if __name__ == "__main__":
    main()
