"""An answer is the same in any company, whatever joins, leaves, is cut into chunks or re-used."""

import itertools
import json
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.errors import UserError
from cygnet.generate.constrained import Grammars
from cygnet.generate.engine import Engine
from cygnet.generate.request import Answer, Event, QueueFull, Request, best_of
from cygnet.generate.sampling import Sampling
from cygnet.text.tokenizer import train_tokenizer
from tests.models import SMALL, random_model

TOKENIZER = train_tokenizer(["a swan 天鹅 and a lake 湖水 in the grey rain"] * 3, 320)
MODEL = random_model()
GRAMMARS = Grammars(TOKENIZER)


def engine(num_slots: int = 4, **settings: int) -> Engine:
    return Engine(MODEL, TOKENIZER, num_slots=num_slots, **settings)  # type: ignore[arg-type]


def tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(9, 296, (count,), generator=generator).tolist()


def finish(running: Engine) -> list[Event]:
    events = []
    while not running.is_idle:
        events += running.step()
    return events


def alone(request: Request) -> Answer:
    running = engine(1)
    answer = running.submit(request)
    finish(running)
    return answer


REQUESTS = st.builds(
    lambda length, seed, sampling, bias, grammar: Request(
        prompt=tokens(length, length),
        sampling=replace(sampling, seed=seed),
        logit_bias=bias,
        logprobs=2,
        grammar=GRAMMARS.regex("[a-z]{2,9}") if grammar else None,
    ),
    length=st.integers(1, 60),
    seed=st.integers(0, 99),
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.7, 1.5]),
        top_p=st.sampled_from([1.0, 0.8]),
        top_k=st.sampled_from([0, 7]),
        min_p=st.sampled_from([0.0, 0.05]),
        repetition_penalty=st.sampled_from([1.0, 1.5]),
        presence_penalty=st.sampled_from([0.0, 1.0]),
        frequency_penalty=st.sampled_from([0.0, 0.5]),
        max_new_tokens=st.integers(1, 14),
        stop=st.sampled_from([(), ("a",)]),
    ),
    bias=st.sampled_from([{}, {40: 3.0, 41: -100.0}]),
    grammar=st.booleans(),
)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(REQUESTS, min_size=2, max_size=7),
    st.integers(1, 3),
    st.integers(3, 40),
    st.integers(0, 4),
)
def test_an_answer_is_the_same_alone_and_in_any_company(
    requests: list[Request], num_slots: int, chunk: int, steps_between: int
) -> None:
    running = engine(num_slots, chunk_tokens=chunk)
    answers, events = [], []
    for request in requests:
        answers.append(running.submit(request))
        for _ in range(steps_between):
            events += running.step()
    events += finish(running)
    for request, answer in zip(requests, answers, strict=True):
        expected = alone(request)
        assert answer.token_ids == expected.token_ids
        assert (answer.text, answer.finish_reason) == (expected.text, expected.finish_reason)
        own = [event for event in events if event.answer is answer]
        assert [i for event in own for i in event.token_ids] == answer.token_ids
        assert "".join(event.text for event in own) == answer.text
        assert [event.finish_reason for event in own][-1] == answer.finish_reason
        assert len(answer.logprobs) == len(answer.token_ids) == answer.usage.completion_tokens
    assert running.num_running == running.num_waiting == 0


def test_a_long_prompt_keeps_nobody_waiting_for_longer_than_a_chunk() -> None:
    running = engine(chunk_tokens=32)
    first = running.submit(Request(prompt=tokens(5), ignore_end=True))
    running.step()
    second = running.submit(Request(prompt=tokens(300, 1)))
    running.submit(Request(prompt=tokens(200, 2)))
    read: list[int] = []
    prefill = running._runner.prefill
    running._runner.prefill = lambda parts: (  # type: ignore[method-assign]
        read.append(sum(len(part.token_ids) for part in parts)) or prefill(parts)  # type: ignore[func-returns-value]
    )
    for number in range(9):
        assert [event.answer for event in running.step()] == [first], number
    assert second in [event.answer for event in running.step()]
    assert read == [32] * 10


def test_a_conversation_reads_only_what_is_new() -> None:
    running = engine(2)
    first = running.submit(Request(prompt=tokens(50), sampling=Sampling(max_new_tokens=10)))
    finish(running)
    prompt = [*first.request.prompt, *first.token_ids, *tokens(7, 3)]
    second = running.submit(Request(prompt=prompt, sampling=Sampling(temperature=0)))
    other = running.submit(Request(prompt=tokens(40, 9), sampling=Sampling(temperature=0)))
    finish(running)
    assert second.usage.cached_tokens == 50 + len(first.token_ids) - (
        first.finish_reason == "length"
    )
    assert other.usage.cached_tokens == 0
    for answer in (second, other):
        assert answer.token_ids == alone(answer.request).token_ids


def test_n_answers_read_their_prompt_once_and_draw_by_seeds_that_count_up() -> None:
    running = engine(4, chunk_tokens=16)
    request = Request(prompt=tokens(60), sampling=Sampling(max_new_tokens=8, seed=5), logprobs=0)
    answers = running.submit_many(request, 3)
    finish(running)
    assert [answer.usage.cached_tokens for answer in answers] == [0, 48, 48]
    for i, answer in enumerate(answers):
        one = replace(request, sampling=replace(request.sampling, seed=5 + i))
        assert answer.token_ids == alone(one).token_ids
    assert len({tuple(answer.token_ids) for answer in answers}) == 3
    best = best_of(answers, 2)
    means = [sum(p.logprob for p in a.logprobs) / len(a.logprobs) for a in best]
    assert means == sorted(means, reverse=True) and len(best) == 2


def test_slots_that_are_never_shared_are_taken_in_turn() -> None:
    running = engine(2)
    asked = [Request(prompt=tokens(30, i), sampling=Sampling(max_new_tokens=3)) for i in range(5)]
    for request in (*asked, asked[4], asked[3], asked[0]):
        answer = running.submit(request)
        finish(running)
        assert answer.token_ids == alone(request).token_ids
    assert answer.usage.cached_tokens == 0


def test_what_a_slot_held_before_is_not_taken_for_what_it_holds_now() -> None:
    running, longer = engine(2), tokens(40)
    running.submit(Request(prompt=longer, sampling=Sampling(max_new_tokens=1)))
    finish(running)
    begun = running.submit(Request(prompt=longer[:30], sampling=Sampling(max_new_tokens=40)))
    while len(begun.token_ids) < 8:
        running.step()
    again = Request(prompt=[*longer[:39], 77], sampling=Sampling(max_new_tokens=10))
    answer = running.submit(again)
    finish(running)
    assert answer.token_ids == alone(again).token_ids


def test_a_cancelled_request_frees_its_slot_at_once() -> None:
    running = engine(2, max_waiting=1)
    requests = [Request(prompt=tokens(200, i), ignore_end=True) for i in range(3)]
    one, two, three = (running.submit(request) for request in requests)
    with pytest.raises(QueueFull, match="3 answers wait for a slot already"):
        running.submit_many(requests[0], 2)
    with pytest.raises(UserError, match="4 answers at once, and this engine takes 3"):
        running.submit_many(requests[0], 4)
    running.step()
    running.cancel(one)
    assert running.num_running == 1
    running.step()
    assert running.num_running == 2 and running.num_waiting == 0
    running.cancel(three)
    assert three.finish_reason == one.finish_reason == "cancelled"
    finish(running)
    assert two.token_ids == alone(requests[1]).token_ids
    running.cancel(two)
    assert two.finish_reason == "length"
    events = running.run(requests[0])
    next(events)
    events.close()
    assert running.is_idle


def test_log_probabilities_are_those_of_the_full_forward() -> None:
    request = Request(
        prompt=tokens(20), sampling=Sampling(temperature=1.3, top_k=5), logprobs=3,
        logit_bias={30: 2.0},
    )  # fmt: skip
    answer = alone(request)
    ids = [*request.prompt, *answer.token_ids]
    with torch.no_grad():
        logits = MODEL.logits(MODEL(torch.tensor([ids])))[0, :, : TOKENIZER.vocab_size]
    expected = logits.log_softmax(-1)[19:-1]
    for found, row, token in zip(answer.logprobs, expected, answer.token_ids, strict=True):
        assert found.token_id == token
        assert found.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [i for i, _ in found.top] == row.topk(3).indices.tolist()
    assert answer.logprob_sum == pytest.approx(sum(p.logprob for p in answer.logprobs))


def test_a_bias_forbids_and_forces() -> None:
    request = Request(
        prompt=tokens(5), logit_bias={77: 1000.0}, sampling=Sampling(max_new_tokens=4)
    )
    assert alone(request).token_ids == [77] * 4
    greedy = replace(request, sampling=Sampling(temperature=0), logit_bias={})
    likeliest = alone(greedy).token_ids[0]
    assert likeliest not in alone(replace(greedy, logit_bias={likeliest: -1e9})).token_ids


def test_a_frequency_penalty_evens_out_what_the_answer_holds() -> None:
    bias = {77: 1000.0, 78: 1000.0, 79: 1000.0}
    sampling = Sampling(temperature=0, frequency_penalty=2, max_new_tokens=30)
    request = Request(prompt=tokens(5), logit_bias=bias, sampling=sampling)
    ids = alone(request).token_ids
    assert all(8 <= ids.count(token) <= 12 for token in bias)
    same = alone(replace(request, sampling=replace(sampling, frequency_penalty=0))).token_ids
    assert max(map(same.count, bias)) > 12


def test_a_stop_text_may_span_tokens_and_name_a_control_token() -> None:
    request = Request(prompt=tokens(12), sampling=Sampling(temperature=0.9, seed=4))
    whole = alone(request)
    pairs = [TOKENIZER.decode(pair) for pair in itertools.pairwise(whole.token_ids)]
    stop = next(pair for pair in pairs[3:] if re.fullmatch("[a-zA-Z0-9 ]+", pair))
    stopped = alone(replace(request, sampling=replace(request.sampling, stop=(stop,))))
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.finish_reason == "stop"
    think = TOKENIZER.special_ids["<think>"]
    forced = replace(request, logit_bias={think: 1000.0}, sampling=Sampling(max_new_tokens=2))
    assert alone(forced).text == "" and alone(forced).finish_reason == "length"
    assert alone(replace(forced, keep_special=True)).text == "<think><think>"
    ended = alone(replace(forced, sampling=Sampling(stop=("<think>",))))
    assert ended.finish_reason == "stop" and len(ended.token_ids) == 1


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "legs": {"type": "integer"}},
    "required": ["name", "legs"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(6))
def test_a_schema_is_kept(seed: int) -> None:
    sampling = Sampling(temperature=1.2, top_p=1.0, max_new_tokens=200, seed=seed)
    answer = alone(
        Request(prompt=tokens(5), sampling=sampling, grammar=GRAMMARS.json_schema(SCHEMA))
    )
    if answer.finish_reason == "stop":
        value = json.loads(answer.text)
        assert value.keys() == {"name", "legs"} and isinstance(value["legs"], int)
    else:  # endless digits or spaces, which the schema allows
        assert answer.usage.completion_tokens == 200


LEGS = {"name": {"enum": ["swan", "天鹅"]}, "legs": {"type": "array", "items": {"enum": [2, 4]}}}
NESTED = {
    "type": "object", "properties": {"bird": {"type": "object", "properties": LEGS}},
}  # fmt: skip


@pytest.mark.parametrize("indent", [None, 1, 2, 4, 8])
def test_a_schema_allows_json_on_one_line_and_indented(indent: int | None) -> None:
    matcher = GRAMMARS.json_schema(NESTED).matcher()
    value = {"bird": {"name": "天鹅", "legs": [2, 4]}}
    for token in TOKENIZER.encode(json.dumps(value, indent=indent, ensure_ascii=False)):
        assert matcher.allowed()[token]
        matcher.accept(token)
    assert matcher.allowed()[[TOKENIZER.im_end_id]].all()


@pytest.mark.parametrize("seed", range(6))
def test_white_space_never_goes_on_for_ever(seed: int) -> None:
    """The model likes nothing better than white space."""
    spaces = {token: 100.0 for text in (" ", "\n") for token in TOKENIZER.encode(text)}
    schema = {"type": "object", "properties": {"legs": {"enum": [2, 4]}}, "required": ["legs"],
              "additionalProperties": False}  # fmt: skip
    request = Request(
        prompt=tokens(5), sampling=Sampling(seed=seed, max_new_tokens=300), logit_bias=spaces,
        grammar=GRAMMARS.json_schema(schema),
    )  # fmt: skip
    answer = alone(request)
    assert answer.finish_reason == "stop" and json.loads(answer.text)["legs"] in (2, 4)


def test_a_pattern_is_kept_and_a_wrong_grammar_is_refused() -> None:
    grammar = GRAMMARS.regex("(swan|lake)-[0-9]{3}")
    texts = {
        alone(Request(prompt=tokens(5), grammar=grammar, sampling=Sampling(seed=seed))).text
        for seed in range(5)
    }
    assert all(re.fullmatch("(swan|lake)-[0-9]{3}", text) for text in texts) and len(texts) > 1
    for make, wrong in ((GRAMMARS.regex, "(("), (GRAMMARS.json_schema, {"type": "swan"})):
        with pytest.raises(UserError, match=r"^(pattern|schema): .+"):
            make(wrong)  # type: ignore[operator]


def test_what_cannot_be_answered_is_refused_by_name() -> None:
    running = engine()
    for request, message in (
        (Request(prompt=[]), "empty"),
        (Request(prompt=tokens(512)), "512 tokens, and the model's context ends at 512"),
        (Request(prompt=[5, 10_000]), "prompt holds ids beyond"),
        (Request(prompt=[5], logit_bias={-1: 1.0}), "logit_bias holds ids beyond"),
    ):
        with pytest.raises(UserError, match=message):
            running.submit(request)
    assert running.is_idle


DRAFT = random_model(replace(SMALL, num_layers=1))


def test_speculation_leaves_the_greedy_text_as_it_is() -> None:
    requests = [
        Request(prompt=tokens(9 + 7 * i, i), sampling=Sampling(temperature=0, max_new_tokens=20))
        for i in range(5)
    ]
    for draft in (DRAFT, MODEL):
        running = Engine(MODEL, TOKENIZER, num_slots=3, draft=draft)
        answers = [running.submit(request) for request in requests]
        steps = 0
        while not running.is_idle:
            running.step()
            steps += 1
        for request, answer in zip(requests, answers, strict=True):
            assert answer.token_ids == alone(request).token_ids
    assert steps < 20  # the model as its own draft: all that it proposes holds


def test_speculation_keeps_the_models_distribution() -> None:
    """The second and third token, over many seeds, against their exact probabilities."""
    config = replace(SMALL, vocab_size=TOKENIZER.vocab_size)
    model, draft = random_model(config), random_model(config, seed=1)
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=3, max_new_tokens=3)
    prompt = tokens(6)
    request = Request(prompt=prompt, sampling=sampling, ignore_end=True)
    running = Engine(model, TOKENIZER, num_slots=64, draft=draft, num_proposals=2)
    answers = running.submit_many(request, 3000)
    finish(running)
    counts = Counter(tuple(answer.token_ids) for answer in answers)
    expected = dict.fromkeys([()], 1.0)
    for _ in range(3):
        longer = {}
        for ids, share in expected.items():
            with torch.no_grad():
                logits = model.logits(model(torch.tensor([[*prompt, *ids]])))[0, -1]
            top = logits.topk(3)
            for token, p in zip(top.indices.tolist(), top.values.softmax(0).tolist(), strict=True):
                longer[*ids, token] = share * p
        expected = longer
    assert counts.keys() <= expected.keys()
    squares = sum((counts[ids] - 3000 * p) ** 2 / (3000 * p) for ids, p in expected.items())
    assert squares < 55  # chi-square of 26 degrees of freedom: 99.9 % lie below 54.1


def with_draft(num_slots: int = 4) -> Engine:
    return Engine(MODEL, TOKENIZER, num_slots=num_slots, draft=DRAFT, num_proposals=3)


PLAIN = Request(
    prompt=tokens(20, 5), sampling=Sampling(temperature=0.9, seed=7, max_new_tokens=24),
    ignore_end=True,
)  # fmt: skip
ONE_BY_ONE = [
    replace(PLAIN, sampling=replace(PLAIN.sampling, repetition_penalty=1.4, max_new_tokens=9)),
    replace(PLAIN, sampling=replace(PLAIN.sampling, frequency_penalty=0.7, max_new_tokens=5)),
    replace(PLAIN, logit_bias={40: 3.0, 41: -100.0}),
    replace(PLAIN, logprobs=2),
    replace(PLAIN, grammar=GRAMMARS.regex("[a-z]{2,9}")),
]


def test_with_a_draft_model_too_an_answer_is_the_same_in_any_company() -> None:
    """What may not be speculated goes along one token a step, and changes nobody's answer."""
    siblings = [replace(PLAIN, sampling=replace(PLAIN.sampling, seed=seed)) for seed in (8, 9)]
    requests = [PLAIN, *siblings, *ONE_BY_ONE, replace(PLAIN, prompt=tokens(33, 6))]
    expected = []
    for request in requests:
        running = with_draft(1)
        expected.append(running.submit(request))
        finish(running)
    for steps_between in (0, 2):
        running = with_draft()
        answers = []
        for request in requests:
            answers.append(running.submit(request))
            for _ in range(steps_between):
                running.step()
        finish(running)
        for answer, own in zip(answers, expected, strict=True):
            assert answer.token_ids == own.token_ids
            assert (answer.text, answer.finish_reason) == (own.text, own.finish_reason)
            assert len(answer.logprobs) == len(own.logprobs)


@pytest.mark.parametrize("request_", ONE_BY_ONE)
def test_what_a_draft_model_may_not_propose_is_what_the_model_alone_writes(
    request_: Request,
) -> None:
    """Greedily, since a draft model takes other random numbers; beside one that speculates."""
    greedy = replace(request_, sampling=replace(request_.sampling, temperature=0))
    running = with_draft()
    beside = running.submit(PLAIN)
    running.step()
    answer = running.submit(greedy)
    lengths = [len(event.token_ids) for event in finish(running) if event.answer is answer]
    assert max(lengths) == 1 and len(beside.token_ids) == 24
    expected = alone(greedy)
    assert answer.token_ids == expected.token_ids
    for found, own in zip(answer.logprobs, expected.logprobs, strict=True):
        assert found.logprob == pytest.approx(own.logprob, abs=1e-4)


@pytest.mark.parametrize("draft", [False, True])
def test_a_prompt_goes_on_from_one_that_was_cancelled(draft: bool) -> None:
    """Cancelled while its answer came, while its prompt was read, and before."""
    greedy = Sampling(temperature=0, max_new_tokens=12)
    for steps in (0, 1, 2, 6, 9):
        running = Engine(
            MODEL, TOKENIZER, num_slots=2, chunk_tokens=16, draft=DRAFT if draft else None
        )
        other = running.submit(Request(prompt=tokens(9, 1), sampling=greedy))
        stopped = running.submit(Request(prompt=tokens(70, 2), ignore_end=True))
        for _ in range(steps):
            running.step()
        running.cancel(stopped)
        assert stopped.finish_reason == "cancelled"
        prompt = [*stopped.request.prompt, *stopped.token_ids, *tokens(3, 4)]
        later = running.submit(Request(prompt=prompt, sampling=greedy))
        finish(running)
        assert (later.usage.cached_tokens > 0) == (steps > 0), steps
        for answer in (other, later):
            assert answer.token_ids == alone(answer.request).token_ids


def test_a_streamed_text_never_holds_half_a_character() -> None:
    text = "鹏鲲鵷天🦢é"
    assert len(TOKENIZER.encode(text)) > len(text)
    request = Request(prompt=tokens(5), grammar=GRAMMARS.regex(text), sampling=Sampling(seed=1))
    running = engine()
    answer = running.submit(request)
    pieces = [event.text for event in finish(running)]
    assert "".join(pieces) == answer.text == text
    assert all(piece in {"", *text} for piece in pieces)
    # Cut off within a character, that much is told at the end alone.
    cut = replace(request, sampling=Sampling(seed=1, max_new_tokens=len(answer.token_ids) - 1))
    running = engine()
    answer = running.submit(cut)
    pieces = [event.text for event in finish(running)]
    assert answer.text == TOKENIZER.decode(answer.token_ids)
    assert answer.text.startswith(text[:-1]) and "\ufffd" not in "".join(pieces[:-1])


@settings(max_examples=25, deadline=None)
@given(
    st.text("ab天é", min_size=1, max_size=12), st.lists(st.text("ab天é", min_size=1, max_size=4))
)
def test_a_stop_text_ends_an_answer_where_it_begins_however_it_is_cut(
    text: str, stops: list[str]
) -> None:
    """The model writes a given text; nothing of the first stop text in it is ever streamed."""
    sampling = Sampling(seed=1, stop=tuple(stops), max_new_tokens=100)
    request = Request(prompt=tokens(5), grammar=GRAMMARS.regex(re.escape(text)), sampling=sampling)
    running = engine()
    answer = running.submit(request)
    streamed = "".join(event.text for event in finish(running))
    begins = [at for at in map(text.find, stops) if at >= 0]
    assert streamed == answer.text
    assert answer.finish_reason == "stop"
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    if begins:
        # The stop text that is whole first ends it; what came before it in the text is given.
        assert len(answer.text) in begins and len(answer.text) <= min(ends)
        assert text.startswith(answer.text)
    else:
        assert answer.text == text


def test_a_request_that_cannot_begin_costs_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when Ctrl-C comes just then."""
    running = engine(1)
    request = Request(prompt=tokens(9), sampling=Sampling(max_new_tokens=3), ignore_end=True)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cygnet.generate.engine.Row", interrupted)
        next(running.run(request))
    assert running.is_idle
    assert len([event for event in running.run(request) if event.token_ids]) == 3
