"""Tokens a second of rollouts: Cygnet's engine against transformers' `generate`.

The same weights, prompts and number of answers; sampled at temperature 1 from the whole
distribution. Ours is all that a training step waits for: laying out the weights, encoding the
prompts, drawing, and the log-probability of every token, in bfloat16. Transformers is given
encoded prompts, padded on the left, and returns tokens alone, in float32 (the type that training
holds the weights in) and in bfloat16. Only tokens up to an answer's end count.

Each contender has a process of its own; rounds take turns. Medians and ranges.

    python benchmarks/rollout_speed.py [--from runs/demo/sft] [--preset 26m] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cygnet.export.huggingface import find_model, load_folder, save_folder

ROOT = Path(__file__).parent.parent
CONTENDERS = ("cygnet", "transformers float32", "transformers bfloat16")
POEMS = [f"写一首{form}，写{thing}。" for form in ("五言绝句", "七言绝句", "五言律诗", "七言律诗")
         for thing in ("秋天", "江边的夜晚", "送别老友", "山中的雪")]  # fmt: skip


def rows(num_prompts: int, group_size: int) -> list[dict[str, Any]]:
    return [
        {"prompt": POEMS[number % len(POEMS)]}
        for number in range(num_prompts)
        for _ in range(group_size)
    ]


def ours(folder: Path, asked: list[dict[str, Any]], new_tokens: int) -> tuple[int, float]:
    from cygnet.stages.reinforcement.rollout import Roller, RolloutConfig

    model, tokenizer = load_folder(folder)
    model.compute_dtype = torch.bfloat16
    roller = Roller(tokenizer, RolloutConfig(max_new_tokens=new_tokens))
    roller.roll(model, asked[:2], range(2))
    started = time.perf_counter()
    episodes = roller.roll(model, asked, range(len(asked)))
    return sum(episode.num_own for episode in episodes), time.perf_counter() - started


def theirs(
    folder: Path, asked: list[dict[str, Any]], new_tokens: int, dtype: torch.dtype
) -> tuple[int, float]:
    from transformers import AutoModelForCausalLM

    from cygnet.stages.reinforcement.rollout import Roller, RolloutConfig

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    _, tokenizer = load_folder(folder)
    prompts = Roller(tokenizer, RolloutConfig()).encode(asked)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    ends = [tokenizer.im_end_id, tokenizer.eos_id]

    def generate(count: int, most: int) -> torch.Tensor:
        found: torch.Tensor = model.generate(
            ids[:count], attention_mask=mask[:count], do_sample=True, temperature=1.0, top_k=0,
            top_p=1.0, max_new_tokens=most, eos_token_id=ends, pad_token_id=0,
        )  # fmt: skip
        return found[:, width:]

    torch.manual_seed(0)
    generate(2, 4)
    started = time.perf_counter()
    answers = generate(len(asked), new_tokens)
    seconds = time.perf_counter() - started
    is_end = torch.isin(answers, torch.tensor(ends))
    counted = (is_end.cumsum(1) - is_end.long()) == 0  # up to the end, which counts
    return int(counted.sum()), seconds


def measure(contender: str, folder: Path, options: argparse.Namespace) -> tuple[int, float]:
    asked = rows(options.prompts, options.group)
    if contender == "cygnet":
        return ours(folder, asked, options.new_tokens)
    dtype = torch.float32 if contender.endswith("32") else torch.bfloat16
    return theirs(folder, asked, options.new_tokens, dtype)


def made(preset: str, folder: Path) -> Path:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from generate_speed import filled_tokenizer, random_weights

    model = random_weights(preset)
    return save_folder(model, filled_tokenizer(model.config.vocab_size), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--from", dest="start", help="run or model folder")
    parser.add_argument("--preset", default="26m", help="random weights of these sizes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        contender, folder = options.only.split("=", 1)
        print(json.dumps(measure(contender, Path(folder), options)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = find_model(Path(options.start)) if options.start else None
        folder = folder or made(options.preset, Path(place) / "model")
        found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for _ in range(options.rounds):
            for contender in CONTENDERS:
                command = [sys.executable, *sys.argv, "--only", f"{contender}={folder}"]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                tokens, seconds = json.loads(out.strip().splitlines()[-1])
                found[contender].append(tokens / seconds)
    print(f"{options.prompts} prompts x {options.group} answers, {torch.get_num_threads()} threads")
    ours_median = median(found["cygnet"])
    for contender, speeds in found.items():
        ratio = f"{ours_median / median(speeds):.1f} times" if contender != "cygnet" else ""
        print(
            f"{contender:22} {median(speeds):8.0f} tokens/s "
            f"({min(speeds):.0f} to {max(speeds):.0f})  {ratio}"
        )


if __name__ == "__main__":
    main()
