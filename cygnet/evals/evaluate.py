"""Everything that is measured after a stage: `evaluate` gives a `StageResult`, kept as eval.json.

What the held-out data does not hold (no poems asked for, no pairs, ...) is not measured: the
metric is absent from the result, never zero.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cygnet.evals.bootstrap import Item, estimate
from cygnet.evals.compression import yardsticks
from cygnet.evals.result import (
    DOMAIN_METRIC,
    OPENING,
    POEM,
    RECIPE,
    EvalConfig,
    Sample,
    StageResult,
)
from cygnet.han import POEM_FORMS
from cygnet.text.forms import (
    is_poem_of_form,
    recipe_checks,
    repetition_rate,
    text_units,
)

if TYPE_CHECKING:
    from cygnet.model.transformer import Transformer
    from cygnet.text.tokenizer import Tokenizer

Row = Mapping[str, Any]
OPENING_TOKENS = 24
"""Tokens of a held-out document that an `opening` sample has to go on from."""


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    heldout_documents: Sequence[Row],
    heldout_instructions: Sequence[Row],
    heldout_pairs: Sequence[Row],
    config: EvalConfig,
) -> StageResult:
    """Measure a model on held-out data.

    Args:
        model: in the state that is to be measured.
        tokenizer: the one that it was trained with.
        heldout_documents: clean documents ("text", "domain").
        heldout_instructions: {"messages", "kind", "subject", "form"}; may be empty.
        heldout_pairs: {"prompt": messages, "chosen", "rejected", "kind"}; may be empty.
        config: how much is measured.
    """
    measured = _Measured(config)
    _measure_documents(measured, model, tokenizer, heldout_documents)
    _measure_answers(measured, model, tokenizer, heldout_instructions)
    _measure_pairs(measured, model, tokenizer, heldout_pairs)
    _measure_samples(measured, model, tokenizer, heldout_documents, heldout_instructions)
    return measured.result


class _Measured:
    """Collects metrics with their intervals."""

    def __init__(self, config: EvalConfig) -> None:
        self.config = config
        self.result = StageResult()

    def add(self, name: str, items: Iterable[Item], measured_on: Any) -> None:
        kept = [(float(top), float(bottom)) for top, bottom in items]
        found = estimate(kept, self.config.bootstrap_resamples, self.config.seed)
        if found:
            self.result.metrics[name] = found
            shares = [[round(top, 4), bottom] for top, bottom in kept]
            self.result.items[name] = {"of": _hash(measured_on), "shares": shares}


def _measure_documents(
    measured: _Measured, model: Transformer, tokenizer: Tokenizer, documents: Sequence[Row]
) -> None:
    from cygnet.evals.metrics import bits_per_byte

    domains: dict[str, list[str]] = {}
    for document in _in_hash_order(documents, "text"):
        texts = domains.setdefault(document.get("domain", "text"), [])
        if len(texts) < measured.config.max_documents_per_domain:
            texts.append(document["text"])
    everything: list[Item] = []
    for domain, texts in sorted(domains.items()):
        title = f"bits per byte, {domain}"
        items = bits_per_byte(model, tokenizer, texts, measured.config.context, title)
        measured.add(DOMAIN_METRIC + domain, items, texts)
        everything += items
    if len(domains) > 1:
        measured.add("bits_per_byte", everything, sorted(domains.items()))
    elif domains:
        measured.add("bits_per_byte", everything, next(iter(domains.values())))
    for domain, yardstick in yardsticks(domains).items():
        measured.result.yardsticks[domain] = dataclasses.asdict(yardstick)


def _measure_answers(
    measured: _Measured, model: Transformer, tokenizer: Tokenizer, rows: Sequence[Row]
) -> None:
    from cygnet.evals.metrics import answer_log_likelihood

    chosen = [row["messages"] for row in _in_hash_order(rows, "messages")]
    chosen = chosen[: measured.config.max_instructions]
    scores = answer_log_likelihood(model, tokenizer, chosen)
    measured.add(
        "answer_log_likelihood", [(s.log_likelihood, s.num_tokens) for s in scores], chosen
    )


def _measure_pairs(
    measured: _Measured, model: Transformer, tokenizer: Tokenizer, rows: Sequence[Row]
) -> None:
    from cygnet.evals.metrics import preference

    ordered = _in_hash_order(rows, "prompt", "chosen", "rejected")[: measured.config.max_pairs]
    pairs = [(row["prompt"], row["chosen"], row["rejected"]) for row in ordered]
    scores = preference(model, tokenizer, pairs)
    # Of a pair whose prompt fills the context, nothing is left to compare.
    scores = [s for s in scores if s.chosen.num_tokens and s.rejected.num_tokens]
    measured.add("preference_accuracy", [(float(s.margin > 0), 1) for s in scores], pairs)
    measured.add("preference_margin", [(s.margin, 1) for s in scores], pairs)


def _measure_samples(
    measured: _Measured,
    model: Transformer,
    tokenizer: Tokenizer,
    documents: Sequence[Row],
    instructions: Sequence[Row],
) -> None:
    samples = answer(model, tokenizer, documents, instructions, measured.config)
    measured.result.samples.extend(samples)
    answers = [sample.answer for sample in samples if sample.kind != OPENING]
    prompts = [(sample.kind, sample.prompt, sample.form) for sample in samples]
    for name, kind in (("poem_form_accuracy", POEM), ("recipe_completeness", RECIPE)):
        judged = [s for s in samples if s.kind == kind and s.passed is not None]
        measured.add(name, [(float(s.passed or False), 1) for s in judged], prompts)
    measured.add("repetition_rate", [(repetition_rate(a), 1) for a in answers], prompts)
    measured.add("distinct_2", distinct_shares(answers), prompts)


def answer(
    model: Transformer,
    tokenizer: Tokenizer,
    documents: Sequence[Row],
    instructions: Sequence[Row],
    config: EvalConfig,
) -> list[Sample]:
    """Let the model answer held-out prompts and go on from held-out openings.

    The prompts, their order and the seed of each depend on the data and the settings alone.
    """
    from cygnet.generate.generator import Generator
    from cygnet.generate.sampling import Sampling

    asked = [
        *_instruction_prompts(tokenizer, instructions, config, model.config.max_position),
        *_openings(tokenizer, documents, config),
    ]
    sampling = Sampling(
        temperature=config.temperature,
        top_p=config.top_p,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
    )
    answers = Generator(model, tokenizer).generate(
        [ids for ids, _ in asked],
        sampling,
        seeds=[config.seed + i for i in range(len(asked))],
        title="answers to held-out prompts",
    )
    return [
        _judged(dataclasses.replace(sample, answer=tokenizer.decode(ids, skip_special=True)))
        for (_, sample), ids in zip(asked, answers, strict=True)
    ]


def distinct_shares(texts: Sequence[str]) -> list[Item]:
    """Return for each text its share of the distinct word pairs of all, and its word pairs.

    An occurrence counts 1 / (occurrences in all texts), so that the ratio of the sums is distinct-2
    of the texts together (Li et al. 2016, "A Diversity-Promoting Objective Function", arXiv
    1510.03055, section 5.2), which is near zero when all answers are the same.
    """
    pairs = [list(pairwise(text_units(text))) for text in texts]
    counts = Counter(pair for of_text in pairs for pair in of_text)
    return [(sum(1 / counts[pair] for pair in of_text), len(of_text)) for of_text in pairs]


def _instruction_prompts(
    tokenizer: Tokenizer, rows: Sequence[Row], config: EvalConfig, context: int
) -> list[tuple[list[int], Sample]]:
    from cygnet.text.chat import encode_chat

    wanted = {POEM: config.num_poems, RECIPE: config.num_recipes}
    taken: Counter[str] = Counter()
    prompts = []
    for row in sorted(_in_hash_order(rows, "messages"), key=lambda row: str(row.get("kind"))):
        kind, form = str(row.get("kind") or "other"), row.get("form")
        messages, reference = list(row["messages"]), ""
        while messages and messages[-1]["role"] == "assistant":
            reference = messages.pop().get("content") or ""
        if not messages or taken[kind] >= wanted.get(kind, config.num_others):
            continue
        if kind == POEM and form not in POEM_FORMS:
            continue
        ids = encode_chat(
            tokenizer, messages, tools=row.get("tools") or None, add_generation_prompt=True
        ).ids
        if len(ids) >= context:
            continue
        taken[kind] += 1
        question = messages[-1].get("content") or ""
        prompts.append((ids, Sample(kind, question, "", reference, form)))
    return prompts


def _openings(
    tokenizer: Tokenizer, documents: Sequence[Row], config: EvalConfig
) -> list[tuple[list[int], Sample]]:
    """Return the first tokens of some held-out documents: what a base model can go on from."""
    taken: Counter[str] = Counter()
    prompts = []
    by_domain = sorted(
        _in_hash_order(documents, "text"), key=lambda document: document.get("domain", "text")
    )
    for document in by_domain:
        domain = document.get("domain", "text")
        if taken[domain] >= config.num_others:
            continue
        ids = tokenizer.encode(document["text"])
        given = ids[: min(OPENING_TOKENS, len(ids) // 2)]
        while given and tokenizer.decode(given).endswith("\ufffd"):
            given.pop()  # half a character
        if given:
            taken[domain] += 1
            opening = tokenizer.decode(given)
            sample = Sample(OPENING, opening, "", document["text"][len(opening) :])
            prompts.append(([tokenizer.eos_id, *given], sample))
    return prompts


def _judged(sample: Sample) -> Sample:
    if sample.kind == POEM and sample.form:
        return dataclasses.replace(sample, passed=is_poem_of_form(sample.answer, sample.form))
    if sample.kind == RECIPE:
        return dataclasses.replace(sample, passed=recipe_checks(sample.answer).complete)
    return sample


def _in_hash_order(rows: Sequence[Row], *names: str) -> list[Row]:
    """Order rows by a hash of some fields, so that any first few are a fair, repeatable draw."""
    return sorted(rows, key=lambda row: _hash([row.get(name) for name in names]))


def _hash(value: Any) -> str:
    content = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
