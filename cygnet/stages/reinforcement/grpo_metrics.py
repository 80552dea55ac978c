"""What is told of GRPO's rollouts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cygnet.stages.reinforcement.functions import is_file_reference
from cygnet.stages.reinforcement.groups import Group
from cygnet.stages.reinforcement.rollout import Episode


def told(groups: Sequence[Group], wanted: int, seconds: float) -> dict[str, float]:
    """Return the metrics of a rollout.

    Args:
        groups: all that were drawn.
        wanted: how many had to be.
        seconds: that it took.
    """
    episodes = [episode for group in groups for episode in group.episodes]
    rewards = torch.cat([group.rewards for group in groups])
    deviations = [float(group.rewards.std(correction=0)) for group in groups if group.episodes]
    num_drawn = max(len(episodes), 1)
    own = sum(episode.num_own for episode in episodes)
    surprise = -sum(map(sum, (episode.log_probs for episode in episodes)))
    return {
        "reward": float(rewards.mean()) if len(rewards) else math.nan,
        **reward_parts(episodes),
        "reward_std": sum(deviations) / max(len(deviations), 1),
        "zero_groups": sum(not group.has_signal for group in groups) / len(groups),
        "resampled_groups": float(len(groups) - wanted),
        "dropped_answers": float(sum(group.dropped for group in groups)),
        # The mean of -log p of what was drawn is an unbiased estimate of it.
        "entropy": surprise / max(own, 1),
        "answer_tokens": own / num_drawn,
        "truncated": sum(episode.truncated for episode in episodes) / num_drawn,
        "rollout_tokens_per_second": own / seconds,
        "rollout_seconds": seconds,
    }


def told_heldout(groups: Sequence[Group]) -> dict[str, float]:
    """Return the metrics of answers to held-out prompts, one in each group."""
    answered = [group.episodes[0] for group in groups]
    values = {
        "reward": float(torch.cat([group.rewards for group in groups]).mean()),
        **reward_parts(answered),
        "answer_tokens": sum(episode.num_own for episode in answered) / len(answered),
        "truncated": sum(episode.truncated for episode in answered) / len(answered),
    }
    return {f"heldout_{name}": value for name, value in values.items()}


def reward_parts(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return the mean of each part of the reward, over the episodes that have it."""
    names = sorted({name for episode in episodes for name in episode.rewards})
    found: dict[str, float] = {}
    for name in names:
        values = [episode.rewards[name] for episode in episodes if name in episode.rewards]
        metric, number = part_name(name), 2
        while metric in found:  # two files of one name
            metric, number = f"{part_name(name)}_{number}", number + 1
        found[metric] = sum(values) / len(values)
    return found


def part_name(reward: str) -> str:
    """Return the metric of a part: of a person's own function without the folder of its file."""
    if not is_file_reference(reward):
        return f"reward_{reward}"
    file, _, function = reward.rpartition(":")
    return f"reward_{Path(file).stem}.{function}"


def sample(episode: Episode) -> dict[str, Any]:
    """Return an episode as a row of samples.jsonl."""
    asked = [message for message in episode.messages if message["role"] == "user"]
    shown = {"prompt": asked[0]["content"] if asked else "", "answer": episode.answer}
    return {**shown, **reward_parts([episode])}
