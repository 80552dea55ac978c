"""DPO is the paper's (invariant 9), and packed pairs are each pair alone (invariant 1)."""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.config import TrainConfig
from cygnet.errors import UserError
from cygnet.stages.preference.answer_rows import (
    PairRows,
    answer_log_probs,
    encode_pair,
    reference_log_probs,
    with_reference,
)
from cygnet.stages.preference.dpo import DpoConfig, DpoStage
from cygnet.stages.preference.losses import dpo_loss, ipo_loss, orpo_loss, simpo_loss
from cygnet.text.tokenizer import Tokenizer
from tests.models import SMALL, random_model

WORDS = "soup water salt 白日 黄河 make add boil".split()
CONFIG = TrainConfig(batch_tokens=512, max_seq_len=128, steps=1)


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    chooser = random.Random(seed)

    def say(most: int) -> str:
        return " ".join(chooser.choices(WORDS, k=chooser.randint(1, most)))

    return [
        {
            "prompt": [{"role": "user", "content": say(6)}],
            "chosen": say(10),
            "rejected": say(10),
        }
        for _ in range(count)
    ]


def stage(tokenizer: Tokenizer, count: int = 12, config: DpoConfig | None = None) -> DpoStage:
    rows = PairRows(pairs(count), tokenizer, CONFIG.max_seq_len).rows
    log_probs, _ = answer_log_probs(random_model(seed=1), rows)
    batch = with_reference(rows, log_probs.detach())
    return DpoStage(batch, batch, CONFIG, config or DpoConfig())


@settings(max_examples=30)
@given(
    count=st.integers(1, 6),
    beta=st.floats(0.01, 2),
    smoothing=st.floats(0, 0.49),
    seed=st.integers(0, 99),
)
def test_the_loss_is_equation_7(count: int, beta: float, smoothing: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = 5 * torch.randn(4, count, generator=generator, dtype=torch.float64)
    policy_w, policy_l = (values[i].requires_grad_() for i in range(2))
    reference_w, reference_l = values[2].detach(), values[3].detach()
    policy_w, policy_l = policy_w.detach().requires_grad_(), policy_l.detach().requires_grad_()
    loss, margin = dpo_loss(policy_w, policy_l, reference_w, reference_l, beta, smoothing)
    for i in range(count):
        # -log sigma(beta log(pi(w)/ref(w)) - beta log(pi(l)/ref(l))), ratios spelt out
        ratio_w = float((policy_w[i] - reference_w[i]).detach().exp())
        ratio_l = float((policy_l[i] - reference_l[i]).detach().exp())
        z = beta * np.log(ratio_w) - beta * np.log(ratio_l)
        sigma = 1 / (1 + np.exp(-z))
        # -log sigma(z) is log(1 + exp(-z)), which does not round to log(0)
        expected = (1 - smoothing) * np.log1p(np.exp(-z)) + smoothing * np.log1p(np.exp(z))
        assert float(loss[i].detach()) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert float(margin[i].detach()) == pytest.approx(z, rel=1e-6, abs=1e-9)
        # d loss / d policy_w = -beta (1 - smoothing - sigma): appendix A.4, with smoothing
        (gradient,) = torch.autograd.grad(loss[i], policy_w, retain_graph=True)
        assert float(gradient[i]) == pytest.approx(
            -beta * (1 - smoothing - sigma), rel=1e-5, abs=1e-9
        )


def test_the_answers_tokens_alone_are_labelled(tokenizer: Tokenizer) -> None:
    pair = {
        "prompt": [
            {"role": "user", "content": "soup"},
            {"role": "assistant", "content": "an earlier answer"},
            {"role": "user", "content": "salt"},
        ],
        "chosen": "water",
        "rejected": "boil",
    }
    for (ids, labels), text in zip(encode_pair(tokenizer, pair), ("water", "boil"), strict=True):
        learnt = [i for i, is_label in zip(ids, labels, strict=True) if is_label]
        assert tokenizer.decode(learnt) == f"{text}<|im_end|>"


@settings(max_examples=10)
@given(count=st.integers(1, 14), seed=st.integers(0, 99))
def test_packed_pairs_are_each_pair_alone(count: int, seed: int) -> None:
    from cygnet.text.tokenizer import train_tokenizer

    tokenizer = train_tokenizer([" ".join(WORDS)] * 3, 290)
    model, rows = random_model(), pairs(count, seed)
    packed = PairRows(rows, tokenizer, 128)
    assert packed.num_kept == count
    together, counts = answer_log_probs(model, packed.rows)
    alone = [answer_log_probs(model, PairRows([row], tokenizer, 128).rows) for row in rows]
    found = sorted(tuple(round(float(x), 2) for x in two) for two in together.view(-1, 2))
    expected = sorted(tuple(round(float(x), 2) for x in sums) for sums, _ in alone)
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert int(counts.sum()) == sum(int(n.sum()) for _, n in alone)


def test_parts_of_a_batch_sum_to_the_batch(tokenizer: Tokenizer) -> None:
    dpo, model = stage(tokenizer), random_model()
    batch = dpo.batch(0)
    whole, metrics = dpo.loss(model, batch)
    parts = [dpo.loss(model, batch.rows(i, i + 1)) for i in range(len(batch.tokens))]
    torch.testing.assert_close(sum(p[0] for p in parts), whole, rtol=1e-4, atol=1e-4)
    for name, value in metrics.items():
        torch.testing.assert_close(sum(p[1][name] for p in parts), value, rtol=1e-4, atol=1e-4)


def test_at_the_reference_the_loss_is_log_2_and_no_pair_is_preferred(tokenizer: Tokenizer) -> None:
    dpo = stage(tokenizer, config=DpoConfig(sft_weight=0))
    found = dpo.heldout(random_model(seed=1))
    assert found["heldout_loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert found["heldout_margin"] == pytest.approx(0, abs=1e-3)


def test_every_pair_is_seen_once_an_epoch_and_batches_are_pure(tokenizer: Tokenizer) -> None:
    rows = PairRows(pairs(40), tokenizer, CONFIG.max_seq_len).rows
    log_probs = torch.arange(80.0)
    batch = with_reference(rows, log_probs)
    dpo = DpoStage(batch, batch, replace(CONFIG, batch_tokens=128), DpoConfig())
    seen = [dpo.batch(n) for n in range(int(dpo.batches_per_epoch))]
    references = torch.cat([b.reference[~b.reference.isnan()] for b in seen])
    assert torch.equal(references.sort().values, log_probs)
    assert torch.equal(dpo.batch(3).tokens, seen[3].tokens)


def test_the_reference_is_computed_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = PairRows(pairs(5), tokenizer, 128).rows
    first = reference_log_probs(random_model(seed=1), rows, tmp_path / "a.npy")
    again = reference_log_probs(random_model(seed=2), rows, tmp_path / "a.npy")
    assert torch.equal(first, again)


def test_a_pair_longer_than_a_row_is_skipped_and_counted(tokenizer: Tokenizer) -> None:
    long = {**pairs(1)[0], "chosen": "soup " * 200}
    packed = PairRows([*pairs(3), long], tokenizer, 128)
    assert (packed.num_kept, packed.skipped) == (3, [3])


@pytest.mark.parametrize("wrong", [
     {"beta": 0.0}, {"label_smoothing": 0.5}, {"sft_weight": -1.0},
     {"beta": math.nan}, {"loss": "simpo", "simpo_gamma": math.nan}])  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="preference"):
        DpoConfig(**wrong)


def test_the_small_model_fits_the_tokenizer(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size <= SMALL.vocab_size


WIRED = {
    "dpo": (DpoConfig(), lambda c, r, kc, kr, n: dpo_loss(c, r, kc, kr, 0.1)),
    "dpo-length": (
        DpoConfig(length_normalize=True, beta=5.0),
        lambda c, r, kc, kr, n: dpo_loss(c / n[0], r / n[1], kc / n[0], kr / n[1], 5.0),
    ),
    "cdpo": (DpoConfig(loss="cdpo"), lambda c, r, kc, kr, n: dpo_loss(c, r, kc, kr, 0.1, 0.1)),
    "ipo": (DpoConfig(loss="ipo", beta=0.3), lambda c, r, kc, kr, n: ipo_loss(c, r, kc, kr, 0.3)),
    "ipo-length": (
        DpoConfig(loss="ipo", length_normalize=True, beta=0.3),
        lambda c, r, kc, kr, n: ipo_loss(c / n[0], r / n[1], kc / n[0], kr / n[1], 0.3),
    ),
    "simpo": (
        DpoConfig(loss="simpo", simpo_gamma=0.4),
        lambda c, r, kc, kr, n: simpo_loss(c / n[0], r / n[1], 2.0, 0.4),
    ),
    "orpo": (DpoConfig(loss="orpo"), lambda c, r, kc, kr, n: orpo_loss(c / n[0], r / n[1], 0.1)),
}


@pytest.mark.parametrize("name", WIRED)
def test_each_loss_gets_the_sums_or_means_that_it_is_of(name: str, tokenizer: Tokenizer) -> None:
    config, loss = WIRED[name]
    dpo, model = stage(tokenizer, config=config), random_model(seed=3)
    rows = dpo.train
    with torch.no_grad():
        total, metrics = dpo.loss(model, rows)
        sums, counts = answer_log_probs(model, rows)
    kept = rows.reference[~rows.reference.isnan()]
    expected, margin = loss(sums[0::2], sums[1::2], kept[0::2], kept[1::2],
                            (counts[0::2], counts[1::2]))  # fmt: skip
    torch.testing.assert_close(metrics["preference_loss"], expected.sum())
    torch.testing.assert_close(metrics["margin"], margin.sum())
    own = (sums / counts)[0::2].sum() * (config.resolved().sft_weight or 0)
    torch.testing.assert_close(total, expected.sum() - own)
    torch.testing.assert_close(metrics["chosen_length"], counts[0::2].sum())
    moved = ((sums - kept) / counts).square() / 2
    torch.testing.assert_close(metrics["kl"], moved.view(-1, 2).mean(1).sum())
    if name in ("dpo", "dpo-length", "ipo"):
        reward = metrics["chosen_reward"] - metrics["rejected_reward"]
        torch.testing.assert_close(reward, margin.sum(), rtol=1e-4, atol=1e-4)


def test_outputs_that_are_no_tokens_change_nothing(tokenizer: Tokenizer) -> None:
    """A model may have a padded vocabulary."""
    size = tokenizer.vocab_size
    model = random_model(replace(SMALL, vocab_size=size + 40))
    rows = PairRows(pairs(4), tokenizer, CONFIG.max_seq_len).rows
    found, _ = answer_log_probs(model, rows, size)
    with torch.no_grad():
        model.output_weight[size:] = 0
        model.output_weight[size:, 0] = 50
    torch.testing.assert_close(answer_log_probs(model, rows, size)[0], found)
    assert not torch.allclose(answer_log_probs(model, rows)[0], found)
    stage_of_all = stage(tokenizer)
    stage_of_all.vocab_size = size
    _, metrics = stage_of_all.loss(model, stage_of_all.batch(0))
    with torch.no_grad():
        model.output_weight[size:] = 0
    torch.testing.assert_close(
        stage_of_all.loss(model, stage_of_all.batch(0))[1]["margin"], metrics["margin"]
    )
