from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cygnet.evals import metrics
from cygnet.evals.metrics import (
    Scored,
    answer_log_likelihood,
    bits_per_byte,
    log_likelihoods,
    preference,
)

TALK = [
    {"role": "user", "content": "What is a comet?"},
    {"role": "assistant", "content": "A small body of ice."},
]


def plain_score(model, sequence: Scored) -> float:
    """The definition, one token at a time, without batches."""
    ids = torch.tensor(sequence.ids)
    log_probs = model.logits(model(ids[None])).double().log_softmax(-1)[0]
    return sum(float(log_probs[i - 1, ids[i]]) for i in range(1, len(ids)) if sequence.counted[i])


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=1, max_size=40),
        min_size=1,
        max_size=8,
    )
)
def test_batched_equals_alone(model, rows):
    sequences = [Scored([i for i, _ in row], [c for _, c in row]) for row in rows]
    found = log_likelihoods(model, sequences)
    with torch.no_grad():
        expected = [plain_score(model, sequence) for sequence in sequences]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_small_batches_give_the_same(model, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, 300, (n,), generator=generator).tolist() for n in range(1, 60)]
    sequences = [Scored(i, [True] * len(i)) for i in ids]
    whole = log_likelihoods(model, sequences)
    monkeypatch.setattr(metrics, "BATCH_TOKENS", 50)
    monkeypatch.setattr(metrics, "CHUNK_POSITIONS", 7)
    assert log_likelihoods(model, sequences) == pytest.approx(whole, rel=1e-5, abs=1e-5)


def test_uniform_model_pays_log2_of_the_vocabulary_for_each_token(model, tokenizer):
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    texts = ["床前明月光，疑是地上霜。", "a comet", "", "x" * 1000]
    for (bits, num_bytes), text in zip(bits_per_byte(model, tokenizer, texts), texts, strict=True):
        num_tokens = len(tokenizer.encode(text)) + 1  # the end is paid for too
        assert bits == pytest.approx(num_tokens * math.log2(tokenizer.vocab_size), rel=1e-5)
        assert num_bytes == len(text.encode())


def test_windows_count_every_token_once(model, tokenizer):
    text = "A comet is a small body of ice that warms. " * 10
    ids = [tokenizer.eos_id, *tokenizer.encode(text), tokenizer.eos_id]
    window = 32
    with torch.no_grad():
        pieces = [ids[i : i + window + 1] for i in range(0, len(ids) - 1, window)]
        expected = sum(plain_score(model, Scored(p, [True] * len(p))) for p in pieces)
    ((bits, _),) = bits_per_byte(model, tokenizer, [text], context=window)
    assert bits == pytest.approx(-expected / math.log(2), rel=1e-5)
    assert sum(len(piece) - 1 for piece in pieces) == len(ids) - 1


def test_document_does_not_depend_on_its_company(model, tokenizer):
    texts = ["first text", "床前明月光", "a third, longer text " * 4]
    together = bits_per_byte(model, tokenizer, texts)
    for text, found in zip(texts, together, strict=True):
        assert bits_per_byte(model, tokenizer, [text])[0] == pytest.approx(found, rel=1e-5)


def test_answer_is_scored_without_the_question(model, tokenizer):
    (score,) = answer_log_likelihood(model, tokenizer, [TALK])
    answer = tokenizer.encode(TALK[1]["content"])
    assert score.num_tokens == len(answer) + 1  # and <|im_end|>
    assert score.num_bytes == len(TALK[1]["content"].encode())
    start = "<|im_start|>user\nWhat is a comet?<|im_end|>\n<|im_start|>assistant\n"
    head = []
    for part in (
        start.replace("<|im_start|>", "\x01s\x01").replace("<|im_end|>", "\x01e\x01").split("\x01")
    ):
        special = {"s": [tokenizer.im_start_id], "e": [tokenizer.im_end_id]}
        head += special.get(part) or tokenizer.encode(part)
    whole = [*head, *answer, tokenizer.im_end_id]
    counted = [i >= len(head) for i in range(len(whole))]
    with torch.no_grad():
        expected = plain_score(model, Scored(whole, counted))
    assert score.log_likelihood == pytest.approx(expected, rel=1e-4)


def test_conversation_longer_than_the_context_is_cut(model, tokenizer):
    long = [TALK[0], {"role": "assistant", "content": "ice and dust " * 200}]
    deaf = [{"role": "user", "content": "why? " * 300}, TALK[1]]
    cut, unheard = answer_log_likelihood(model, tokenizer, [long, deaf])
    assert 0 < cut.num_tokens < model.config.max_position
    assert cut.num_bytes < len(long[1]["content"])
    assert (unheard.log_likelihood, unheard.num_tokens, unheard.num_bytes) == (0.0, 0, 0)


def test_preference_scores_the_last_answer_alone(model, tokenizer):
    prompt = [*TALK, {"role": "user", "content": "And a planet?"}]
    ((pair),) = preference(model, tokenizer, [(prompt, "A big ball.", "床前")])
    assert pair.chosen.num_tokens == len(tokenizer.encode("A big ball.")) + 1
    assert pair.rejected.num_tokens == len(tokenizer.encode("床前")) + 1
    both = [[*prompt, {"role": "assistant", "content": "A big ball."}], TALK]
    whole = answer_log_likelihood(model, tokenizer, both)[0]
    assert whole.num_tokens > pair.chosen.num_tokens
    ((swapped),) = preference(model, tokenizer, [(prompt, "床前", "A big ball.")])
    assert swapped.margin == pytest.approx(-pair.margin, rel=1e-4)
    ((same),) = preference(model, tokenizer, [(prompt, "ice", "ice")])
    assert same.margin == pytest.approx(0, abs=1e-6)


def test_activations_are_of_the_compute_dtype(model, tokenizer):
    exact = bits_per_byte(model, tokenizer, ["a comet of ice"])[0][0]
    model.compute_dtype = torch.bfloat16
    seen = []
    model.model.norm.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    rounded = bits_per_byte(model, tokenizer, ["a comet of ice"])[0][0]
    assert seen == [torch.bfloat16]
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.05)
