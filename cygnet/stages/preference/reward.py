"""A reward model: a language model that gives a conversation a number, more for a better one.

Conversations are packed into rows as those of DPO are, both sides of a pair in one row, and the
score is read at each one's last token. Pairs are learnt by Bradley and Terry's model, ratings by
the proportional-odds model (`cygnet.stages.preference.reward_losses`).

Shapes: B rows, T positions, D conversations of all rows, P = D / 2 pairs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cygnet.config import TrainConfig
from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.errors import UserError
from cygnet.export.huggingface import save_folder
from cygnet.files import sha256_file
from cygnet.generate.scorer import Scorer, fitting_ids
from cygnet.model.lora import NO_LORA, LoraConfig
from cygnet.model.scoring import ScoringTransformer, as_scoring
from cygnet.model.transformer import Transformer
from cygnet.progress import say
from cygnet.stages.launch import load_start, train_and_save
from cygnet.stages.packed import Encoded
from cygnet.stages.preference.answer_rows import PackedAnswers, spread_over_rows
from cygnet.stages.preference.reward_data import (
    Row,
    Scale,
    conversations,
    pairs_of,
    read_preferences,
)
from cygnet.stages.preference.reward_losses import (
    bradley_terry_loss,
    ordinal_loss,
    preference_share,
    scale_thresholds,
)
from cygnet.stages.pretrain import check_context
from cygnet.text.chat import encode_chat
from cygnet.text.loader import IGNORE, Batch, endless_order
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.stage import Call

HELDOUT_ROWS_AT_ONCE = 8
ALIKE = 0.1
"""Two conversations whose lengths differ by no more than this share are about as long."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The reward model's loss and what is held out.

    Raises:
        UserError: a value is out of its range.
    """

    center_coef: float = 0.01
    """Weight of the squared sum of a pair's scores, which keeps scores around zero (Eisenstein et
    al. 2023). Ratings are centred by themselves."""
    heldout_share: float = 0.1
    """Share of the prompts or conversations of --data that accuracy and calibration are measured
    on; Cygnet's own pairs bring held-out ones along."""

    def __post_init__(self) -> None:
        if self.center_coef < 0:
            raise UserError(f"center_coef {self.center_coef}: it must not be below zero")
        if not 0 < self.heldout_share < 1:
            raise UserError(f"heldout_share {self.heldout_share}: it must lie between 0 and 1")


@dataclass(frozen=True, slots=True)
class RewardBatch(Batch):
    """Rows of conversations; the one label of each stands at its last token, and says no more than
    that the score is read there."""

    targets: Tensor
    """(B, most conversations of a row) float32, NaN behind the last: of pairs the margin, for both
    sides, where documents 2 i and 2 i + 1 are chosen and rejected; of ratings the level."""
    BLANK: ClassVar[dict[str, float]] = {**Batch.BLANK, "targets": math.nan}


def document_scores(model: ScoringTransformer, rows: Batch) -> Tensor:
    """Return the score of every conversation, (D,) float32, in the order of the rows."""
    hidden_BTD = model(rows.tokens, rows.positions, rows.document_ids)
    return model.scores(hidden_BTD[rows.labels != IGNORE])


class RewardStage:
    """Packed conversations and what is learnt from them.

    Args:
        train, heldout: all conversations; the latter may hold none.
        train_config: rows per batch and seed.
        config: the loss.
        thresholds: (K - 1,) of the ratings' scale; none where there are pairs.
        sources: for each row of `train`, where its conversations were read; for `describe`.
    """

    name = "reward"

    def __init__(
        self,
        train: RewardBatch,
        heldout: RewardBatch,
        train_config: TrainConfig,
        config: RewardConfig,
        thresholds: Tensor | None = None,
        sources: Sequence[Sequence[str]] = (),
    ) -> None:
        self.train, self.heldout_rows, self.sources = train, heldout, sources
        self.config, self.seed, self.thresholds = config, train_config.seed, thresholds
        self.num_rows = len(train.tokens)
        self.rows_per_batch = min(train_config.rows_per_batch, self.num_rows)
        self.batches_per_epoch = self.num_rows / self.rows_per_batch

    def compile(self) -> None:
        """Nothing: a loss over a few numbers."""

    def batch(self, number: int) -> RewardBatch:
        """Return the rows of one step, a pure function of the number."""
        return self.train.take(torch.from_numpy(self._places(number)))

    def weight(self, batch: Batch) -> int:
        """Return the number of pairs, or of rated conversations."""
        return batch.num_labels // (2 if self.thresholds is None else 1)

    def loss(self, model: Transformer, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss, and summed metrics of the scores."""
        assert isinstance(rows, RewardBatch)
        return self._loss(document_scores(as_scoring(model), rows), rows)

    def _loss(self, scores: Tensor, rows: RewardBatch) -> tuple[Tensor, dict[str, Tensor]]:
        targets = rows.targets[~rows.targets.isnan()]
        if self.thresholds is not None:
            losses = ordinal_loss(scores, targets.long(), self.thresholds.to(scores))
            metrics = {"score": scores, "score_square": scores.square()}
        else:
            chosen, rejected = scores[0::2], scores[1::2]
            losses = bradley_terry_loss(chosen, rejected, targets[0::2], self.config.center_coef)
            metrics = {
                "accuracy": _wins(chosen, rejected),
                "margin": chosen - rejected,
                "score": (chosen + rejected) / 2,
            }
        return losses.sum(), {name: value.detach().sum() for name, value in metrics.items()}

    def describe(self, number: int, row: int) -> str:
        """Name the row's conversations by where they were read."""
        place = int(self._places(number)[row])
        if not self.sources:
            return f"row {place} of the packed conversations"
        return f"the conversations of {', '.join(self.sources[place])}"

    def heldout(self, model: Transformer) -> dict[str, float]:
        """Return the held-out loss, and how often the better one of two has the higher score."""
        rows = self.heldout_rows
        if not len(rows.tokens):
            return {}
        device = next(model.parameters()).device
        parts = [
            document_scores(as_scoring(model), rows.rows(at, at + HELDOUT_ROWS_AT_ONCE).to(device))
            for at in range(0, len(rows.tokens), HELDOUT_ROWS_AT_ONCE)
        ]
        scores = torch.cat(parts).cpu()
        total, metrics = self._loss(scores.detach(), rows)
        found = {"loss": total, **metrics}
        means = {f"heldout_{name}": float(x) / self.weight(rows) for name, x in found.items()}
        if self.thresholds is not None:
            levels = rows.targets[~rows.targets.isnan()].tolist()
            pairs = torch.tensor(pairs_of(levels, range(len(levels))), dtype=torch.int64)
            if len(pairs):
                better, worse = scores[pairs].unbind(1)
                means["heldout_accuracy"] = float(_wins(better, worse).mean())
        return means

    def samples(self, call: Call) -> list[dict[str, Any]]:
        """Return nothing: it does not answer."""
        return []

    def _places(self, number: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        first = number * self.rows_per_batch
        return endless_order(first, self.rows_per_batch, self.num_rows, self.seed)


def _wins(better: Tensor, worse: Tensor) -> Tensor:
    """Return 1 where the better one leads, 1/2 at a tie."""
    return (better > worse).float() + (better == worse).float() / 2


def scorer_around(model: Transformer) -> ScoringTransformer:
    """Return the model with a score, and without the output matrix that a score has no use for."""
    config = dataclasses.replace(model.config, tie_embeddings=True)
    weights = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    return ScoringTransformer.around(Transformer.from_weights(config, weights, model.compute_dtype))


class PackedPreferences:
    """Rows of a preferences file, encoded and packed.

    Args:
        rows: pairs or ratings.
        tokenizer: of the model.
        seq_len: positions in a row. Longer conversations lose their first turns; pairs that are
            longer, both sides together, are skipped, so that neither side is cut.
        scale: of the ratings.

    Attributes:
        batch: all of them.
        num_kept: pairs or conversations kept.
        skipped: which do not fit a row.
        needed: positions that each pair or conversation fills.
        places: where each pair or conversation was read.
        sources: the same for each row of the batch.
    """

    def __init__(
        self, rows: Sequence[Row], tokenizer: Tokenizer, seq_len: int, scale: Scale | None
    ) -> None:
        groups = [
            [
                (fitting_ids(tokenizer, chat, seq_len) if scale else None)
                or encode_chat(tokenizer, chat).ids
                for chat in conversations(row)
            ]
            for row in rows
        ]
        if scale:
            levels = scale.levels([row["rating"] for row in rows])
            targets = [[float(level)] for level in levels]
        else:
            targets = [[float(row.get("margin", 0.0))] * 2 for row in rows]
        self.batch, packed = pack(groups, targets, seq_len)
        self.num_kept, self.skipped, self.needed = packed.num_kept, packed.skipped, packed.needed
        self.places = [row.get("source", f"line {n}") for n, row in enumerate(rows, 1)]
        self.sources = [[self.places[pair] for pair in row] for row in packed.numbers]


def pack(
    groups: Sequence[Sequence[Sequence[int]]], targets: Sequence[Sequence[float]], seq_len: int
) -> tuple[RewardBatch, PackedAnswers]:
    """Return conversations in rows, and which row holds what.

    Args:
        groups: the ids of what must lie in one row: a pair's two sides, or one conversation.
        targets: a number for each conversation.
        seq_len: positions in a row; longer groups are left out.
    """
    packed = PackedAnswers([[_read_at_end(ids) for ids in group] for group in groups], seq_len)
    ordered = [value for row in packed.numbers for group in row for value in targets[group]]
    rows = packed.rows
    spread = spread_over_rows(rows, torch.tensor(ordered))
    batch = RewardBatch(rows.tokens, rows.labels, rows.document_ids, rows.positions, spread)
    return batch, packed


def _read_at_end(ids: Sequence[int]) -> Encoded:
    """Return a conversation of which every token is given, the score being read at the last.

    A packed document's last token is only a label, so one more stands behind it.
    """
    return [*ids, 0], [*[False] * len(ids), True]


def reward(
    preferences: Path,
    start: Path,
    run: Path,
    config: TrainConfig,
    loss: RewardConfig,
    renew: bool = False,
    lora: LoraConfig = NO_LORA,
) -> Path:
    """Train a reward model from the model at `start` and return its folder.

    Args:
        preferences: as `take_preferences` or `build_pairs` writes them.
        start: the model that becomes the reward model.
        run: the run folder.
        config: training settings.
        loss: what is learnt.
        renew, lora: see `train_and_save`.

    Raises:
        UserError: `start` is no model, or nothing fits a row.
    """
    model, tokenizer, start_hash = load_start(start)
    check_context(model, config)
    files = {name: preferences / name for name in (TRAIN, HELDOUT)}
    rows = {name: read_preferences(path) for name, path in files.items()}
    if not rows[TRAIN]:
        raise UserError(f"{files[TRAIN]}: no pair of two different answers; give some")
    scale, thresholds = scale_of(rows[TRAIN])
    inputs = {
        "start": start_hash,
        "pairs": sha256_file(files[TRAIN]),
        "heldout_pairs": sha256_file(files[HELDOUT]),
        "reward": asdict(loss),
    }
    notes: dict[str, Any] = {"learnt_from": "pairs", "max_tokens": config.max_seq_len}
    if scale and thresholds is not None:
        notes |= {
            "learnt_from": "ratings", "edges": list(scale.edges),
            "thresholds": thresholds.tolist(),
        }  # fmt: skip

    def stage() -> RewardStage:
        packed = {
            name: PackedPreferences(rows[name], tokenizer, config.max_seq_len, scale)
            for name in files
        }
        for name, found in packed.items():
            if name == TRAIN and not found.num_kept:
                raise UserError(
                    f"{files[name]}: nothing fits max_seq_len {config.max_seq_len}; the shortest "
                    f"needs {min(found.needed)} and the model's max_position is "
                    f"{model.config.max_position}"
                )
            if found.skipped:
                say(
                    f"reward: {len(found.skipped)} of {len(rows[name])} of {name} are longer than "
                    f"max_seq_len and skipped, first {found.places[found.skipped[0]]}"
                )
        return RewardStage(
            packed[TRAIN].batch, packed[HELDOUT].batch, config, loss, thresholds,
            packed[TRAIN].sources,
        )  # fmt: skip

    def save(trained: Transformer, tokenizer: Tokenizer, folder: Path) -> None:
        save_folder(trained, tokenizer, folder, {"reward": notes})

    return train_and_save(
        "reward", scorer_around(model), tokenizer, stage, config, run, inputs, renew, save,
        lora, start,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Compared:
    """Held-out conversations with their scores, and pairs of which one is known to be better.

    Attributes:
        scores, tokens: of each conversation that is read; what is cut off it is not counted.
        pairs: places of the better and the worse one, each conversation in one pair at most.
        alike: the same of pairs of about one length.
        shares: how sure the model is that the better one is better, one for each of `pairs`.
        kinds: what each of `pairs` differs in, where that is known.
    """

    scores: list[float]
    tokens: list[int]
    pairs: list[tuple[int, int]]
    alike: list[tuple[int, int]]
    shares: list[float]
    kinds: list[str]


def compare_heldout(scorer: Scorer, preferences: Path) -> Compared:
    """Let a reward model score the held-out pairs or ratings of a preferences folder.

    What is longer than the model reads is left out, a pair with both sides, and said.
    """
    rows = read_preferences(preferences / HELDOUT)
    scale, thresholds = scale_of(read_preferences(preferences / TRAIN))
    encoded = [
        fitting_ids(scorer.tokenizer, chat, scorer.max_tokens)
        for row in rows
        for chat in conversations(row)
    ]
    sides = 1 if scale else 2
    parts = [encoded[at : at + sides] for at in range(0, len(encoded), sides)]
    kept = [n for n, part in enumerate(parts) if all(part)]
    if len(kept) < len(rows):
        say(
            f"reward: {len(rows) - len(kept)} of {len(rows)} of {HELDOUT} are longer than the "
            f"{scorer.max_tokens} tokens that the model reads, and not judged"
        )
    readable = [ids for n in kept for ids in parts[n] if ids]
    tokens = [len(ids) for ids in readable]
    if scale:
        ratings = scale.levels([rows[n]["rating"] for n in kept])
        pairs = pairs_of(ratings, np.random.default_rng(0).permutation(len(kept)).tolist())
        candidates = pairs_of(ratings, sorted(range(len(kept)), key=tokens.__getitem__))
        kinds = [""] * len(pairs)
    else:
        candidates = pairs = [(2 * at, 2 * at + 1) for at in range(len(kept))]
        kinds = [str(rows[n].get("why", "")) for n in kept]
    scores = scorer.scores_of_ids(readable)
    better, worse = torch.tensor(scores)[torch.tensor(pairs, dtype=torch.int64).view(-1, 2)].T
    shares = preference_share(better, worse, thresholds).tolist()
    alike = [(a, b) for a, b in candidates if _about_as_long(tokens[a], tokens[b])]
    return Compared(scores, tokens, pairs, alike, shares, kinds)


def _about_as_long(first: int, second: int) -> bool:
    return abs(first - second) <= ALIKE * max(first, second)


def scale_of(rows: Sequence[Row]) -> tuple[Scale | None, Tensor | None]:
    """Return the scale of ratings and its thresholds; none of pairs."""
    if "rating" not in rows[0]:
        return None, None
    ratings = [row["rating"] for row in rows]
    scale = Scale.of(ratings)
    levels = torch.tensor(scale.levels(ratings))
    return scale, scale_thresholds(levels, len(scale.edges) + 1)
