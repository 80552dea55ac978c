"""Decoding is exact, alone and in any batch (invariant 5), and text never breaks a character."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.errors import UserError
from cygnet.generate.engine import Generator, text_stream
from cygnet.generate.sampling import Sampling
from cygnet.text.tokenizer import Tokenizer, train_tokenizer
from tests.models import random_model

TOKENIZER = train_tokenizer(["a swan 天鹅 and a lake 湖水 in the grey rain"] * 3, 320)
GREEDY = Sampling(temperature=0, max_new_tokens=24)


@pytest.fixture
def generator() -> Generator:
    return Generator(random_model(), TOKENIZER)


def prompts(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(9, 300, (n,), generator=generator).tolist() for n in lengths]


def test_greedy_decoding_takes_the_likeliest_token_of_the_full_forward(
    generator: Generator,
) -> None:
    (prompt,) = prompts([30])
    (answer,) = generator.generate([prompt], GREEDY)
    model = generator.model
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([prompt + answer])))[0]
    expected = logits[:, : TOKENIZER.vocab_size].argmax(-1)[len(prompt) - 1 :].tolist()
    assert answer == expected[: len(answer)]
    if len(answer) < GREEDY.max_new_tokens:
        assert expected[len(answer)] in (TOKENIZER.im_end_id, TOKENIZER.eos_id)


@settings(max_examples=6, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=2, max_size=5))
def test_an_answer_is_the_same_alone_and_in_any_batch(lengths: list[int]) -> None:
    generator = Generator(random_model(), TOKENIZER)
    asked, seeds = prompts(lengths), list(range(len(lengths)))
    sampling = Sampling(temperature=0.9, max_new_tokens=12)
    together = generator.generate(asked, sampling, seeds=seeds)
    for prompt, seed, answer in zip(asked, seeds, together, strict=True):
        assert generator.generate([prompt], sampling, seeds=[seed]) == [answer]


def test_a_stream_gives_what_generate_gives(generator: Generator) -> None:
    (prompt,) = prompts([12])
    sampling = Sampling(temperature=0.8, max_new_tokens=20, seed=5)
    assert [*generator.stream(prompt, sampling)] == generator.generate([prompt], sampling)[0]


def test_the_contexts_end_stops_an_answer(generator: Generator) -> None:
    (prompt,) = prompts([500])
    (answer,) = generator.generate([prompt], Sampling(temperature=1.0, max_new_tokens=100))
    assert len(answer) <= generator.context - len(prompt)
    with pytest.raises(UserError, match="context ends at 512"):
        generator.generate(prompts([512]), GREEDY)


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=3), max_size=2))
@settings(max_examples=60, deadline=None)
def test_streamed_text_is_the_text_up_to_a_stop(text: str, stops: list[str]) -> None:
    pieces = [*text_stream(TOKENIZER, TOKENIZER.encode(text), stops)]
    whole = TOKENIZER.decode(TOKENIZER.encode(text))
    ends = [at for at in map(whole.find, stops) if at >= 0]
    assert "".join(pieces) == whole[: min(ends, default=len(whole))]
    assert all(pieces)


def test_half_a_character_is_never_shown() -> None:
    ids = TOKENIZER.encode("鹏")
    assert len(ids) > 1
    assert [*text_stream(TOKENIZER, ids)] == ["鹏"]


def distribution(sampling: Sampling, tokenizer: Tokenizer = TOKENIZER) -> set[int]:
    generator = Generator(random_model(), tokenizer)
    (prompt,) = prompts([8])
    answers = generator.generate([prompt] * 64, sampling, seeds=range(64))
    return {answer[0] for answer in answers if answer}


def test_top_k_and_top_p_leave_the_likeliest() -> None:
    (prompt,) = prompts([8])
    model = random_model()
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([prompt])))[0, -1, : TOKENIZER.vocab_size]
    allowed = set(logits.topk(3).indices.tolist())
    assert distribution(Sampling(top_k=3, top_p=1.0, max_new_tokens=1)) <= allowed
    assert distribution(Sampling(top_p=1e-6, max_new_tokens=1)) <= {int(logits.argmax())}


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 2}, {"max_new_tokens": 0}]
)
def test_sampling_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]
