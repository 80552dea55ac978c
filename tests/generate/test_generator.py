"""Decoding is exact, alone and in any batch (invariant 5), and text never breaks a character."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.errors import UserError
from cygnet.generate.generator import Generator
from cygnet.generate.runner import laid_out
from cygnet.generate.sampling import Sampling
from cygnet.generate.text import text_stream
from cygnet.text.tokenizer import Tokenizer, train_tokenizer
from tests.models import random_model

TOKENIZER = train_tokenizer(["a swan 天鹅 and a lake 湖水 in the grey rain"] * 3, 320)
GREEDY = Sampling(temperature=0, max_new_tokens=24)


@pytest.fixture
def generator() -> Generator:
    return Generator(random_model(), TOKENIZER)


def prompts(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(9, 296, (n,), generator=generator).tolist() for n in lengths]


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
    with pytest.raises(UserError, match=r"prompt 1 has 512 tokens.*context ends at 512"):
        generator.generate(prompts([5, 512]), GREEDY)
    with pytest.raises(UserError, match="prompt 0 is empty"):
        generator.generate([[]], GREEDY)


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


def test_bfloat16_answers_are_those_of_the_bfloat16_model() -> None:
    """What decodes has its matrices cast once and joined; that changes logits by rounding."""
    model = random_model()
    model.compute_dtype = torch.bfloat16
    tokens = torch.tensor(prompts([20]))
    with torch.no_grad():
        copy = laid_out(model)
        found, expected = copy.logits(copy(tokens)), model.logits(model(tokens))
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.02)
    assert copy.output_weight.dtype == torch.bfloat16
    assert model.output_weight.dtype == torch.float32


def test_a_strong_penalty_forbids_what_occurred(generator: Generator) -> None:
    (prompt,) = prompts([12])
    sampling = Sampling(temperature=0, repetition_penalty=1e6, max_new_tokens=20)
    (answer,) = generator.generate([prompt], sampling)
    assert len({*answer, *prompt}) == len(answer) + len({*prompt})


def test_a_stop_text_ends_an_answer(generator: Generator) -> None:
    (prompt,) = prompts([12])
    whole = generator.generate([prompt], Sampling(temperature=0.9, seed=4))[0]
    text = TOKENIZER.decode(whole, skip_special=True)
    pairs = [TOKENIZER.decode(pair) for pair in itertools.pairwise(whole)]
    stop = next(pair for pair in pairs[3:] if re.fullmatch("[a-zA-Z0-9 ]+", pair))
    sampling = Sampling(temperature=0.9, seed=4, stop=(stop,))
    (answer,) = generator.generate([prompt], sampling)
    assert answer == whole[: len(answer)]
    assert stop in TOKENIZER.decode(answer)
    assert stop not in TOKENIZER.decode(answer[:-1])
    assert "".join(text_stream(TOKENIZER, answer, [stop])) == text[: text.index(stop)]


def test_ids_that_the_tokenizer_does_not_know_are_never_chosen() -> None:
    model = random_model()
    assert model.config.vocab_size > TOKENIZER.vocab_size
    with torch.no_grad():
        model.model.embed_tokens.weight[TOKENIZER.vocab_size :] *= 50
    answers = Generator(model, TOKENIZER).generate(
        prompts([5] * 8), Sampling(temperature=2.0, top_p=1.0, max_new_tokens=20)
    )
    assert max(map(max, answers)) < TOKENIZER.vocab_size


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(generator: Generator) -> None:
    (prompt,) = prompts([12])
    sampling = Sampling(temperature=1.0, max_new_tokens=20)
    one, again, other = (generator.generate([prompt], sampling, seeds=[s])[0] for s in (1, 1, 2))
    assert one == again != other


def test_the_weights_of_the_moment_are_used(generator: Generator) -> None:
    (prompt,) = prompts([12])
    generator.model.compute_dtype = torch.bfloat16
    before = generator.generate([prompt], GREEDY)
    with torch.no_grad():
        for parameter in generator.model.parameters():
            parameter.copy_(parameter.flip(0))
    assert generator.generate([prompt], GREEDY) != before
