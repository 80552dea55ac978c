"""A reward model's folder is an ordinary sequence classifier to transformers (invariant 7)."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cygnet.config import ModelConfig
from cygnet.errors import UserError
from cygnet.export.huggingface import load_folder, load_scorer, save_folder
from cygnet.generate.scorer import Scorer
from cygnet.model.scoring import ScoringTransformer
from cygnet.text.chat import encode_chat
from cygnet.text.tokenizer import Tokenizer, train_tokenizer
from tests.models import SMALL, random_model

CONVERSATIONS = [
    [{"role": "user", "content": "soup"}, {"role": "assistant", "content": "Boil the water."}],
    [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "Add salt. " * 7}],
    [{"role": "user", "content": "写一首五言绝句。"}, {"role": "assistant", "content": "白日"}],
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["Boil the water. Add salt. 白日依山尽"] * 4, 300)


def random_scorer(config: ModelConfig = SMALL, seed: int = 0) -> ScoringTransformer:
    model = ScoringTransformer.around(random_model(config, seed))
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return model


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Qwen3", {}),
        ("Qwen2", {"qk_norm": False, "qkv_bias": True}),
        ("Llama", {"qk_norm": False}),
    ],
)
def test_transformers_gives_the_same_scores(
    name: str, changes: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    scorer = Scorer(random_scorer(dataclasses.replace(SMALL, **changes)), tokenizer)
    folder = save_folder(scorer.model, tokenizer, tmp_path / "model")
    theirs, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert type(theirs).__name__ == f"{name}ForSequenceClassification"
    assert theirs.config.num_labels == 1
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    words = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [words.apply_chat_template(chat, return_dict=False) for chat in CONVERSATIONS]
    assert ids == [encode_chat(tokenizer, chat).ids for chat in CONVERSATIONS]
    # All at once, padded as transformers pads: by `pad_token_id`, behind the end.
    encoded: Any = {"input_ids": ids}
    padded = words.pad(encoded, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        found = theirs(**padded).logits[:, 0]
    expected = torch.tensor(scorer.scores(CONVERSATIONS))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


def test_ours_loads_what_ours_wrote_and_what_theirs_wrote(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    scorer = Scorer(random_scorer(), tokenizer)
    folder = save_folder(scorer.model, tokenizer, tmp_path / "ours")
    assert Scorer.load(folder).scores(CONVERSATIONS) == scorer.scores(CONVERSATIONS)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    theirs.config.tie_word_embeddings = False
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    found = Scorer.load(tmp_path / "theirs").scores(CONVERSATIONS)
    assert found == pytest.approx(scorer.scores(CONVERSATIONS), abs=1e-6)


def test_a_reward_model_and_a_language_model_are_not_taken_for_each_other(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_folder(random_scorer(), tokenizer, tmp_path / "scorer")
    save_folder(random_model(), tokenizer, tmp_path / "speaker")
    with pytest.raises(UserError, match="is a reward model, which scores"):
        load_folder(tmp_path / "scorer")
    with pytest.raises(UserError, match="is a language model, which answers"):
        load_scorer(tmp_path / "speaker")


def test_a_classifier_of_two_labels_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = transformers.Qwen3Config(
        vocab_size=320, hidden_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, intermediate_size=96,
    )  # fmt: skip
    config.num_labels = 2
    transformers.Qwen3ForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    with pytest.raises(UserError, match="a classifier of 2 labels"):
        load_scorer(tmp_path)


def test_long_conversations_lose_their_first_turns(tokenizer: Tokenizer) -> None:
    model = random_scorer()
    last = CONVERSATIONS[0]
    system = {"role": "system", "content": "Be kind."}
    room = len(encode_chat(tokenizer, [system, *last]).ids)
    long = [system, *CONVERSATIONS[1], *CONVERSATIONS[2], *last]
    short = Scorer(model, tokenizer, max_tokens=room + 3)
    assert short.scores([long]) == short.scores([[system, *last]])
    assert short.scores([long]) != Scorer(model, tokenizer).scores([long])
    with pytest.raises(UserError, match="conversation 0: its last turn alone is longer"):
        Scorer(model, tokenizer, max_tokens=5).scores([long])


def test_scores_do_not_depend_on_what_they_are_asked_with(tokenizer: Tokenizer) -> None:
    scorer = Scorer(random_scorer(), tokenizer)
    alone = [scorer.scores([chat])[0] for chat in CONVERSATIONS]
    assert scorer.scores(CONVERSATIONS) == pytest.approx(alone, abs=1e-5)
