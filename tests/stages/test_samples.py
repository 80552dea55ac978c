"""Samples are what greedy decoding gives, of prompts that hold no answer."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.generate.generator import Generator
from cygnet.generate.sampling import Sampling
from cygnet.model.transformer import Transformer
from cygnet.stages.samples import ANSWER_TOKENS, MAX_PROMPT_TOKENS, Prompts, held_out_prompts
from cygnet.text.chat import encode_chat
from cygnet.text.shards import Document, ShardReader, write_shards
from cygnet.text.tokenizer import Tokenizer
from tests.models import random_model


def answers(prompts: Prompts, model: Transformer) -> list[dict[str, Any]]:
    with torch.no_grad():
        return prompts.answered(lambda function, *arguments: function(model, *arguments))


def shards(folder: Path, tokenizer: Tokenizer, documents: list[Document]) -> ShardReader:
    has_labels = documents[0][1] is not None
    size = tokenizer.vocab_size
    write_shards(folder, documents, tokenizer.hash, size, {}, has_labels=has_labels)
    return ShardReader(folder, tokenizer.hash)


@pytest.mark.parametrize("seed", range(6))
def test_the_answers_are_those_of_greedy_decoding(tokenizer: Tokenizer, seed: int) -> None:
    """Prompts of different lengths side by side; some models end their answers early."""
    generator = torch.Generator().manual_seed(seed)
    asked = [
        torch.randint(3, tokenizer.vocab_size, (n,), generator=generator).tolist()
        for n in (7, 1, 30)
    ]
    model = random_model(seed=seed)
    # Ends of an answer are likely enough to come up.
    with torch.no_grad():
        model.output_weight[[tokenizer.im_end_id, tokenizer.eos_id]] *= 1.5
    before = torch.get_rng_state()
    found = answers(Prompts(tokenizer, asked, 128), model)
    assert torch.equal(torch.get_rng_state(), before)
    greedy = Sampling(temperature=0, max_new_tokens=ANSWER_TOKENS)
    expected = Generator(model, tokenizer).generate(asked, greedy)
    assert [row["answer"] for row in found] == [tokenizer.decode(ids) for ids in expected]
    assert [row["prompt"] for row in found] == [tokenizer.decode(ids) for ids in asked]


def test_a_prompt_and_its_answer_stay_within_the_room(tokenizer: Tokenizer) -> None:
    long = [5] * (MAX_PROMPT_TOKENS + 1)
    prompts = Prompts(tokenizer, [long, [5] * 40, [], [6] * 31, [7] * 30], room=32)
    assert prompts.prompts == [[6] * 31, [7] * 30]
    assert prompts.num_new == 1
    assert answers(Prompts(tokenizer, [long], room=512), random_model()) == []


def test_of_a_conversation_all_is_given_that_comes_before_the_answer(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    questions = [f"How is soup {number} made?" for number in range(13)]
    chats = []
    for question in questions:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "Boil."}]
        chat = encode_chat(tokenizer, turns)
        chats.append((chat.ids, chat.is_label))
    prompts = held_out_prompts(tokenizer, shards(tmp_path / "chats", tokenizer, chats), 256)
    given = [tokenizer.decode(ids) for ids in prompts.prompts]
    # From everywhere in the shards, and always the same.
    assert [[q for q in questions if q in text] for text in given] == [
        [questions[n]] for n in (0, 10, 7, 4)
    ]
    assert all(text.endswith("<|im_start|>assistant\n") for text in given)


def test_of_a_text_the_beginning_is_given_in_whole_characters(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    texts = ["鹅" * 40, "soup", "a swan on the lake " * 9]
    documents: list[Document] = [
        ([tokenizer.eos_id, *tokenizer.encode(text), tokenizer.eos_id], None) for text in texts
    ]
    reader = shards(tmp_path / "texts", tokenizer, documents)
    given = [tokenizer.decode(ids) for ids in held_out_prompts(tokenizer, reader, 64).prompts]
    for text, beginning in zip(texts, given, strict=True):
        assert ("<|endoftext|>" + text).startswith(beginning)
        assert len(beginning) < len(text) + len("<|endoftext|>")
    assert held_out_prompts(tokenizer, None, 64).prompts == []
