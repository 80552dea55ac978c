"""An episode's tokens and log-probabilities are what the model drew, whatever stands beside it."""

from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pytest
import torch

from cygnet.errors import UserError
from cygnet.model.transformer import Transformer
from cygnet.stages.packed import label_scores
from cygnet.stages.reinforcement.episode_rows import EpisodeRows, score_rows
from cygnet.stages.reinforcement.rollout import Episode, Roller, RolloutConfig
from cygnet.text.loader import IGNORE
from cygnet.text.tokenizer import Tokenizer, train_tokenizer

PROMPTS: list[dict[str, Any]] = [
    {"prompt": "How do I make soup? Boil the water, add salt."},
    {"prompt": [{"role": "system", "content": "short"}, {"role": "user", "content": "salt?"}]},
]
ROW_LENGTH = 400


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer(["How do I make soup? Boil the water, add salt. 五言绝句"] * 4, 320)


@dataclass
class Said:
    messages: list[dict[str, Any]]
    reward: float
    done: bool


@dataclass
class Echo:
    """Answers every message with its length, until the third."""

    turns: list[str] = field(default_factory=list)

    def reset(self, row: Any) -> tuple[list[dict[str, Any]], None]:
        return [{"role": "user", "content": row["prompt"]}], None

    def step(self, message: dict[str, Any]) -> Said:
        self.turns.append(message["content"])
        said = {"role": "user", "content": f"water {len(message['content'])}"}
        return Said([said], 0.5, len(self.turns) == 3)


def rolled(model: Transformer, words: Tokenizer, count: int = 12, **settings: Any) -> list[Episode]:
    roller = Roller(words, RolloutConfig(**({"max_new_tokens": 90} | settings)))
    rows = [PROMPTS[i % 2] for i in range(count)]
    return roller.roll(model, rows, range(count))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_the_whole_episode_read_at_once(
    model: Transformer, words: Tokenizer, temperature: float
) -> None:
    episodes = rolled(model, words, temperature=temperature)
    assert {episode.truncated for episode in episodes} == {True, False}
    packed = EpisodeRows(episodes, ROW_LENGTH)
    log_probs = score_rows(model, packed.rows, words.vocab_size, temperature)
    torch.testing.assert_close(
        log_probs, packed.lay([episode.log_probs for episode in episodes]), rtol=0, atol=1e-4
    )
    labelled, entropy, _ = label_scores(model, packed.rows, words.vocab_size, temperature)
    torch.testing.assert_close(packed.at_labels(labelled.detach()), log_probs)
    # What was drawn is on the average as surprising as its distributions say.
    assert float(entropy.mean()) == pytest.approx(-float(labelled.mean()), abs=0.1)


def test_the_token_that_ends_an_answer_is_the_models_own(
    model: Transformer, words: Tokenizer
) -> None:
    for episode in rolled(model, words):
        assert len(episode.log_probs) == sum(episode.is_own)
        assert (episode.ids[-1] in (words.im_end_id, words.eos_id)) is not episode.truncated


def test_an_episode_depends_on_its_row_and_seed_alone(model: Transformer, words: Tokenizer) -> None:
    roller = Roller(words, RolloutConfig(max_new_tokens=30))
    together = roller.roll(model, [PROMPTS[i % 2] for i in range(6)], range(6))
    assert len({tuple(episode.ids) for episode in together}) == 6
    for at, episode in enumerate(together):
        alone = roller.roll(model, [PROMPTS[at % 2]], [at])[0]
        assert alone.ids == episode.ids


def test_what_a_world_says_is_appended_and_nothing_drawn_is_encoded_again(
    model: Transformer, words: Tokenizer
) -> None:
    roller = Roller(words, RolloutConfig(max_new_tokens=60))
    rows = [{"prompt": f"soup {i}"} for i in range(40)]
    episodes = roller.roll(model, rows, range(40), Echo)
    assert {episode.num_turns for episode in episodes} == {1, 2, 3}
    packed = EpisodeRows(episodes, ROW_LENGTH)
    torch.testing.assert_close(
        score_rows(model, packed.rows, words.vocab_size),
        packed.lay([episode.log_probs for episode in episodes]), rtol=0, atol=1e-4,
    )  # fmt: skip
    for episode in episodes:
        runs = [
            (mine, [token for token, _ in run])
            for mine, run in groupby(
                zip(episode.ids, episode.is_own, strict=True), key=lambda pair: pair[1]
            )
        ]
        said = [words.decode(ids, skip_special=True) for mine, ids in runs if not mine]
        assert all(ids[0] != words.im_end_id for mine, ids in runs if not mine)
        answers = [message["content"] for message in episode.messages[1::2]]
        assert len(answers) == episode.num_turns == sum(mine for mine, _ in runs)
        assert said[0] == f"user\n{episode.row['prompt']}\nassistant\n"
        expected = [f"\nuser\nwater {len(text)}\nassistant\n" for text in answers]
        assert said[1:] == expected[: episode.num_turns - 1]
        assert episode.rewards == {"environment": 0.5 * episode.num_turns}


def test_rows_give_each_label_the_value_of_its_token(model: Transformer, words: Tokenizer) -> None:
    episodes = rolled(model, words, count=9, max_new_tokens=40)
    packed = EpisodeRows(episodes, 150)
    assert len(packed.rows.tokens) > 1
    numbers = [[float(token) for token in episode.ids] for episode in episodes]
    own = [
        [value for value, mine in zip(values, episode.is_own, strict=True) if mine]
        for values, episode in zip(numbers, episodes, strict=True)
    ]
    laid = packed.lay(own)
    is_label = packed.rows.labels != IGNORE
    assert torch.equal(laid[is_label].long(), packed.rows.labels[is_label])
    assert not laid[~is_label].any()
    assert packed.per_episode(laid) == own
    spread = packed.per_episode(packed.spread(torch.arange(9.0)))
    assert spread == [[float(at)] * len(values) for at, values in enumerate(own)]


def test_episodes_end_where_the_room_does(model: Transformer, words: Tokenizer) -> None:
    roller = Roller(words, RolloutConfig(max_new_tokens=90), max_len=80)
    episodes = roller.roll(model, PROMPTS * 6, range(12))
    assert max(len(episode.ids) for episode in episodes) == 80
    with pytest.raises(UserError, match="raise --max_seq_len to 79"):
        EpisodeRows(episodes, 78)
