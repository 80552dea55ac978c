"""How often a reward model is right on held-out pairs: on the made pairs, and on rated chit-chat.

python benchmarks/reward_accuracy.py pairs --run runs/demo --out runs/reward-pairs
python benchmarks/reward_accuracy.py chats --data chitchat_en.jsonl.gz --out runs/reward-chats

The first makes pairs with the run's tuned model and trains that model to judge them. The second
trains a small model from nothing on rated conversations. Each seed is a run of its own in --out,
and what is finished is not done again.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from cygnet.commands.reward import measure
from cygnet.config import ModelConfig, TrainConfig
from cygnet.corpus.document import TRAIN
from cygnet.corpus.instructions import InstructionConfig
from cygnet.evals.reward import RESULT, RewardResult, summary
from cygnet.export.huggingface import find_model, save_folder
from cygnet.files import read_jsonl
from cygnet.model.transformer import Transformer
from cygnet.stages.preference.pairs import PairConfig
from cygnet.stages.preference.reward import RewardConfig, reward
from cygnet.stages.preference.reward_data import take_preferences
from cygnet.steps import make_instructions, make_pairs
from cygnet.text.tokenizer import train_tokenizer

SMALL = ModelConfig(
    vocab_size=2048, hidden_size=96, num_layers=2, num_heads=4, num_kv_heads=2,
    intermediate_size=256, max_position=512,
)  # fmt: skip


def made_pairs(out: Path, run: Path, max_seq_len: int, counts: dict[str, int]) -> tuple[Path, Path]:
    """Return the folder of pairs and the model to start from.

    The run's own instructions are a sample of its text; here more of it is asked for.
    """
    start = find_model(run / "sft")
    more = InstructionConfig(
        max_poems=12_000, max_recipes=5_000, max_articles=0, small_talk_repeats=0, joined_share=0.0
    )
    instructions = make_instructions(run / "data", out / "instructions", more)
    config = PairConfig(**counts, num_own_prompts=0, heldout_share=0.1)
    pairs = make_pairs(
        instructions, start, out / "pairs", config, TrainConfig(max_seq_len=max_seq_len)
    )
    return pairs, start


def rated_chats(out: Path, data: Path, seed: int) -> tuple[Path, Path]:
    """Return the folder of ratings, and a small model with random weights to start from."""
    folder = out / "preferences"
    if not folder.exists():
        take_preferences([str(data)], folder, 0.2)
    said = [m["content"] for row in read_jsonl(folder / TRAIN) for m in row["messages"]]
    tokenizer = train_tokenizer(said, SMALL.vocab_size)
    model = Transformer(SMALL)
    model.initialize(torch.Generator().manual_seed(seed))
    return folder, save_folder(model, tokenizer, out / f"start-{seed}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("pairs", "chats"))
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="of cygnet run")
    parser.add_argument("--data", type=Path, help="rated conversations")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_poem_prompts", type=int, default=2500)
    parser.add_argument("--num_spoilt_poems", type=int, default=6000)
    parser.add_argument("--num_recipe_pairs", type=int, default=3000)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--batch_tokens", type=int, default=4096)
    parser.add_argument("--max_seq_len", type=int, default=512)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    arguments = parser.parse_args()
    results = []
    for seed in arguments.seeds:
        if arguments.what == "pairs":
            counts = {
                name: getattr(arguments, name)
                for name in ("num_poem_prompts", "num_spoilt_poems", "num_recipe_pairs")
            }
            data, start = made_pairs(arguments.out, arguments.run, arguments.max_seq_len, counts)
        else:
            data, start = rated_chats(arguments.out, arguments.data, seed)
        train = TrainConfig(
            epochs=arguments.epochs, batch_tokens=arguments.batch_tokens, seed=seed,
            max_seq_len=arguments.max_seq_len, learning_rate=arguments.learning_rate,
            eval_every=50, checkpoint_every=100_000, compile="off",
        )  # fmt: skip
        run = arguments.out / f"seed-{seed}"
        model = reward(data, start, run, train, RewardConfig())
        if not (run / RESULT).exists():
            measure(model, data, run, train)
        results.append(RewardResult.load(run / RESULT))
        print("\n".join([f"seed {seed}", *summary(results[-1])]), flush=True)
    for name in ("accuracy", "accuracy_alike", "brier"):
        values = [found.value for r in results if (found := getattr(r, name))]
        lows = [found.low for r in results if (found := getattr(r, name))]
        if values:
            print(
                f"{name}: median {statistics.median(values):.3f}, "
                f"{min(values):.3f} to {max(values):.3f} over {len(values)} seeds; lowest lower "
                f"end of an interval {min(lows):.3f}"
            )


if __name__ == "__main__":
    main()
