"""A whole episode with a tool: what is learnt from it is what the model wrote, and nothing else."""

from typing import Any

import pytest
import torch

from cygnet.config import ModelConfig
from cygnet.model.transformer import Transformer
from cygnet.stages.reinforcement.environments.environment import Toolbox, ToolEnvironment, World
from cygnet.stages.reinforcement.episode_rows import EpisodeRows
from cygnet.stages.reinforcement.grpo import GrpoConfig, GrpoStage
from cygnet.stages.reinforcement.rewards.judge import Judge
from cygnet.stages.reinforcement.rollout import Roller, RolloutConfig
from cygnet.text.chat import encode_chat, render_chat
from cygnet.text.loader import IGNORE
from cygnet.text.tokenizer import Tokenizer, train_tokenizer
from tests.models import random_model

CALL = {"name": "calculator", "arguments": {"expression": "37*45"}}
WRITTEN = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "37*45"}}\n</tool_call>'
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "What is 37 times 45?"},
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
    {"role": "tool", "content": "1665"},
    {"role": "assistant", "content": "It is 1665."},
]


def taught(tokenizer: Tokenizer, tools: list[dict[str, Any]]) -> Transformer:
    """Return a small model that knows this one conversation by heart."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, num_layers=2, num_heads=4,
        num_kv_heads=2, intermediate_size=96, max_position=512,
    )  # fmt: skip
    model = random_model(config)
    chat = encode_chat(tokenizer, MESSAGES, tools)
    tokens = torch.tensor(chat.ids)[None]
    is_label = torch.tensor(chat.is_label[1:])
    positions = torch.arange(tokens.shape[1] - 1)[None]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(200):
        hidden = model(tokens[:, :-1], positions, torch.zeros_like(positions))
        loss = torch.nn.functional.cross_entropy(
            model.logits(hidden)[0][is_label], tokens[0, 1:][is_label]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            return model
    pytest.fail(f"nothing was learnt: {loss.item()}")


def test_loss_falls_on_what_the_model_wrote_and_on_no_word_of_a_tool() -> None:
    with Toolbox(["calculator"]) as box, Judge(["tool_use"]) as judge:
        tools = list(box.schemas.values())
        text = "".join(f"{message}" for message in MESSAGES)
        blank = train_tokenizer([text] * 4, 320)
        tokenizer = train_tokenizer([render_chat(blank, MESSAGES, tools)] * 4, 600)
        model = taught(tokenizer, tools)
        roller = Roller(tokenizer, RolloutConfig(temperature=0.0, max_new_tokens=80))
        row = {"prompt": "What is 37 times 45?", "answer": 1665}
        world = World(lambda: ToolEnvironment(box), box)
        (episode,) = roller.roll(model, [row], [0], world)
        verdict = judge.judge(episode.answer, episode.row, episode.messages)
        method = GrpoConfig(prompts_per_step=1, group_size=4, max_new_tokens=80)
        stage = GrpoStage(tokenizer, [row], [], judge, method, 500, 0, environment=world)
        told = stage.collect(1, lambda: model)
        # One call was made before; a model that knows its lines misses at most some of four.
        assert 1 <= told["tool_calls"] <= 4 and told["reward_tool_use"] > 0
        assert box.counts["tool_calls"] == 1 + told["tool_calls"]
    assert [message["role"] for message in episode.messages] == [
        "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert (verdict.total, episode.num_turns, episode.truncated) == (1, 2, False)

    labels = EpisodeRows([episode], 500).rows.labels
    learnt = tokenizer.decode(labels[labels != IGNORE].tolist())
    assert learnt == f"{WRITTEN}<|im_end|>It is 1665.<|im_end|>"
    given = [
        token for token, mine in zip(episode.ids, episode.is_own, strict=True) if not mine
    ]  # fmt: skip
    unlearnt = tokenizer.decode(given)
    assert "<tool_response>\n1665\n</tool_response>" in unlearnt
    assert "37*45" not in unlearnt and "It is" not in unlearnt
