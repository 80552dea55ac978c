"""`cygnet reward`: pairs or ratings to a model that scores answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from cygnet.config import TRAINING, TrainConfig
from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.corpus.instructions import InstructionConfig
from cygnet.evals.report import write_report
from cygnet.evals.reward import RESULT, judge_reward, summary
from cygnet.export.huggingface import WEIGHTS_FILE, find_model
from cygnet.files import sha256_file
from cygnet.generate.scorer import Scorer
from cygnet.model.lora import LoraConfig
from cygnet.progress import say
from cygnet.stages.preference.pairs import PairConfig
from cygnet.stages.preference.reward import RewardConfig, compare_heldout, reward
from cygnet.stages.preference.reward_data import take_preferences
from cygnet.steps import (
    EVAL_RESULT,
    From,
    Lora,
    Train,
    keeps_runs,
    learnt_instructions,
    make_pairs,
    record,
    required,
    up_to_date,
)
from cygnet.train.hardware import find_hardware
from cygnet.train.parallel.group import connect, first, on_rank_zero

FIGURES_INPUTS = "reward_inputs.json"
"""What reward.json was measured on."""


@dataclass(frozen=True, kw_only=True)
class RewardCommand:
    """Train a reward model."""

    reads_yaml: ClassVar[bool] = True
    data: tuple[str, ...] = ()
    """JSON lines of pairs (prompt, chosen, rejected, and margin where known) or of ratings (prompt,
    answer, rating, or a conversation and its rating); none makes pairs from what the model's run
    learnt from, or where that is not known from the built-in text."""
    from_: From = None
    """Run or model folder to start from."""
    out: Path = Path("runs/reward")
    """The run folder."""
    instructions: InstructionConfig = InstructionConfig()
    pairs: PairConfig = PairConfig()
    loss: Annotated[RewardConfig, tyro.conf.arg(name="")] = RewardConfig()
    lora: Lora = LoraConfig()
    reward: Train = TRAINING["reward"]


@keeps_runs
def reward_command(config: RewardCommand) -> None:
    """Make or take preferences, train, and measure on those held out."""
    start = find_model(required(config.from_, "reward"))
    out = config.out
    connect(config.reward.timeout_s)
    if config.data:
        data = out / "preferences"
        on_rank_zero(lambda: take_preferences(config.data, data, config.loss.heldout_share))
    else:
        with first("pairs", config.reward.timeout_s):
            instructions = learnt_instructions("reward", start, out, config.instructions)
            data = make_pairs(instructions, start, out / "pairs", config.pairs, config.reward)
    model = reward(data, start, out, config.reward, config.loss, lora=config.lora)
    on_rank_zero(lambda: measure(model, data, out, config.reward))
    say(
        f"\nDone. The reward model is in {model}; its figures are in {out / RESULT}.\n"
        f"Next: cygnet ppo --from {config.from_} --reward_model {out}"
    )


def measure(model: Path, preferences: Path, out: Path, train: TrainConfig) -> None:
    """Write reward.json and the report, and print the figures, where that is not yet done.

    Args:
        model: the reward model's folder.
        preferences: with the held-out ones.
        out: the run folder.
        train: says on which device.
    """
    inputs = {
        "model": sha256_file(find_model(model) / WEIGHTS_FILE),
        "pairs": sha256_file(preferences / TRAIN),
        "heldout_pairs": sha256_file(preferences / HELDOUT),
    }
    written = (out / RESULT).exists() and (out / EVAL_RESULT).exists()
    if written and up_to_date("reward figures", out, inputs, FIGURES_INPUTS):
        return
    scorer = Scorer.load(model, find_hardware(train).device)
    found = compare_heldout(scorer, preferences)
    if not found.pairs:
        say("reward: no held-out pair to measure it on; give more data")
        return
    result = judge_reward(
        found.scores, found.tokens, found.pairs, found.shares, found.alike, found.kinds
    )
    result.save(out / RESULT)
    result.as_stage().save(out / EVAL_RESULT)
    write_report(out, ("reward",))
    record(out, inputs, FIGURES_INPUTS)
    for line in summary(result):
        say(line)
