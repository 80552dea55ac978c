"""YaRN: a model decodes beyond the context that it was trained for, exactly (invariant 5)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cygnet.errors import UserError
from cygnet.export.command import ExportCommand, export_command
from cygnet.export.huggingface import load_folder, save_folder
from cygnet.generate.conversation import LocalModel
from cygnet.generate.engine import Engine
from cygnet.generate.request import Answer, Request
from cygnet.generate.sampling import Sampling
from cygnet.model.rope import yarn_config
from cygnet.model.transformer import Transformer
from tests.generate.conftest import swan_tokenizer
from tests.models import SMALL, random_model

TRAINED = 64
SHORT = dataclasses.replace(SMALL, max_position=TRAINED)
TOKENIZER = swan_tokenizer()


def stretched() -> Transformer:
    return random_model(yarn_config(SHORT, 4))


def tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(9, 296, (count,), generator=generator).tolist()


def full_forward(model: Transformer, ids: Sequence[int]) -> torch.Tensor:
    """Return the log-probabilities behind each token, of one pass over all of them."""
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([ids])))[0, :, : TOKENIZER.vocab_size]
    return logits.log_softmax(-1)


def assert_is_full_forward(model: Transformer, answer: Answer) -> None:
    prompt = answer.request.prompt
    expected = full_forward(model, [*prompt, *answer.token_ids])[len(prompt) - 1 : -1]
    assert answer.token_ids == expected.argmax(-1).tolist()
    found = torch.tensor([step.logprob for step in answer.logprobs])
    torch.testing.assert_close(found, expected.max(-1).values, atol=1e-4, rtol=0)


def test_answers_beyond_the_trained_context_are_those_of_the_full_forward() -> None:
    """Prompts within it, across its end and beyond; in chunks, in company, and a second turn."""
    model = stretched()
    engine = Engine(model, TOKENIZER, num_slots=2, chunk_tokens=48)
    assert engine.max_len == 4 * TRAINED

    def ask(prompt: list[int]) -> Answer:
        sampling = Sampling(temperature=0, max_new_tokens=60)
        return engine.submit(Request(prompt=prompt, sampling=sampling, logprobs=0, ignore_end=True))

    answers = [ask(tokens(length, length)) for length in (20, 60, 100, 190)]
    while not engine.is_idle:
        engine.step()
    first = answers[-1]
    answers.append(ask([*first.request.prompt, *first.token_ids[:-1]]))
    while not engine.is_idle:
        engine.step()
    assert answers[-1].usage.cached_tokens > 3 * TRAINED
    for answer in answers:
        assert len(answer.request.prompt) + len(answer.token_ids) > TRAINED
        assert_is_full_forward(model, answer)


def test_stretching_changes_what_is_computed() -> None:
    """Without it the comparison above would hold of any longer context."""
    longer = random_model(dataclasses.replace(SHORT, max_position=4 * TRAINED))
    ids = tokens(150)
    difference = full_forward(stretched(), ids) - full_forward(longer, ids)
    assert difference[TRAINED:].abs().amax(-1).min() > 0.01


def test_what_cannot_be_stretched_is_refused() -> None:
    for factor in (1.0, 0.5, -4.0, float("inf"), float("nan")):
        with pytest.raises(UserError, match="it must be above 1"):
            yarn_config(SHORT, factor)
    llama3 = dataclasses.replace(
        SHORT, rope_scaling="llama3", rope_factor=8.0, rope_original_max_position=16
    )
    for config in (llama3, yarn_config(SHORT, 4)):
        with pytest.raises(UserError, match=f"stretched already, by {config.rope_scaling} "):
            yarn_config(config, 2)


def test_a_model_folder_is_stretched_where_it_is_asked_for(tmp_path: Path) -> None:
    save_folder(random_model(SHORT), TOKENIZER, tmp_path / "short")
    source = LocalModel(tmp_path / "short", yarn_factor=4)
    assert source.engine.max_len == 4 * TRAINED
    asked = [{"role": "user", "content": "swan " * 80}]
    sampling = Sampling(temperature=0, max_new_tokens=20)
    assert [*source.answer(asked, sampling)]
    with pytest.raises(UserError, match="context holds 64"):
        next(LocalModel(tmp_path / "short").answer(asked, sampling))


def test_an_exported_folder_stays_stretched_in_transformers_too(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    save_folder(random_model(SHORT), TOKENIZER, tmp_path / "short")
    out = tmp_path / "long"
    # Exporting compares with transformers.
    export_command(ExportCommand(model=tmp_path / "short", out=out, yarn_factor=4))
    model, _ = load_folder(out)
    assert model.config == dataclasses.replace(yarn_config(SHORT, 4), head_dim=SHORT.head_size)
