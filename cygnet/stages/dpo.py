"""Direct preference optimization (Rafailov et al. 2023): prefer the chosen answer of a pair.

Both answers of a pair lie in one row as two documents, so that pairs are packed as conversations
are, and attention stays within each answer. The reference is the model that the stage starts from;
its log-probabilities are computed once and kept on disk.

Shapes: B rows, T positions, M = B T, D documents of all rows, P = D / 2 pairs.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cygnet.config import TrainConfig
from cygnet.corpus.pipeline import HELDOUT, TRAIN
from cygnet.errors import UserError
from cygnet.files import sha256_file, write_atomic
from cygnet.model.loss import chunked_log_probs
from cygnet.model.transformer import Transformer
from cygnet.progress import say, track
from cygnet.stages.launch import load_start, train_and_save
from cygnet.stages.pairs import read_pairs
from cygnet.stages.pretrain import check_context
from cygnet.stages.samples import Prompts
from cygnet.text.chat import encode_chat
from cygnet.text.loader import IGNORE, PADDING, Batch, permute
from cygnet.text.packing import packing_plan
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.hardware import find_hardware
from cygnet.train.stage import Call

REFERENCE_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """The preference loss.

    Raises:
        UserError: a value is out of its range.
    """

    beta: float = 0.1
    """How strongly the model is held to the reference: larger holds it closer."""
    label_smoothing: float = 0.0
    """Share of pairs whose preference may be wrong (cDPO, Mitchell 2023)."""
    sft_weight: float = 1.0
    """Weight of the chosen answers' own loss per token beside the preference (RPO, Pang et al.
    2024), which keeps them from becoming unlikely together with the rejected ones."""

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.sft_weight < 0 or not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"preference: beta {self.beta} must be above zero, label_smoothing "
                f"{self.label_smoothing} in [0, 0.5), sft_weight {self.sft_weight} not below zero"
            )


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the loss of each pair and its margin, both (P,) float32.

    Equation 7 of Rafailov et al. 2023; with label smoothing, equation 3 of Mitchell 2023.

    Args:
        policy_chosen, policy_rejected: summed log-probabilities of the answers, (P,).
        reference_chosen, reference_rejected: the same under the reference.
        beta: scale of the implicit reward.
        label_smoothing: probability that a preference is the wrong way round.
    """
    margin = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    loss = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    return loss, margin


@dataclass(frozen=True, slots=True)
class PairBatch(Batch):
    """Rows of pairs: documents 2 i and 2 i + 1 of a row are chosen and rejected."""

    reference: Tensor
    """(B, most documents of a row) float32: what the reference gives each; NaN behind the last."""
    BLANK: ClassVar[dict[str, float]] = {**Batch.BLANK, "reference": math.nan}


class PairRows:
    """Pairs packed into rows: documents 2 i and 2 i + 1 of a row are chosen and rejected.

    Args:
        pairs: rows {"prompt", "chosen", "rejected"}.
        tokenizer: of the model.
        seq_len: positions in a row; longer pairs are skipped and counted.

    Attributes:
        rows: the whole set as one batch.
        num_pairs: pairs kept.
        skipped: which pairs do not fit a row.
        needed: positions that each pair fills.
        numbers: for each row, which of the pairs it holds.
    """

    def __init__(self, pairs: list[dict[str, Any]], tokenizer: Tokenizer, seq_len: int) -> None:
        encoded = [document for pair in pairs for document in encode_pair(tokenizer, pair)]
        lengths = [len(ids) - 1 for ids, _ in encoded]
        self.needed = [sum(lengths[2 * i : 2 * i + 2]) for i in range(len(pairs))]
        fits = [i for i, needed in enumerate(self.needed) if needed <= seq_len]
        self.skipped = [i for i, needed in enumerate(self.needed) if needed > seq_len]
        self.num_pairs = len(fits)
        sizes = [self.needed[i] + 1 for i in fits]
        plan = packing_plan(np.cumsum([0, *sizes]).astype(np.uint64), seq_len, may_cut=False)
        first_token = np.cumsum([0, *sizes])
        shape = (plan.num_rows, seq_len)
        tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        labels = np.full(shape, IGNORE, np.int64)
        documents = np.full(shape, PADDING, np.int32)
        self.numbers: list[list[int]] = [[] for _ in range(plan.num_rows)]
        for row in range(plan.num_rows):
            column = number = 0
            for start in plan.starts[plan.row_offsets[row] : plan.row_offsets[row + 1]]:
                pair = fits[int(np.searchsorted(first_token, start))]
                self.numbers[row].append(pair)
                for ids, is_label in encoded[2 * pair : 2 * pair + 2]:
                    span = slice(column, column + len(ids) - 1)
                    tokens[row, span] = ids[:-1]
                    labels[row, span] = np.where(is_label[1:], ids[1:], IGNORE)
                    documents[row, span] = number
                    positions[row, span] = np.arange(len(ids) - 1)
                    column, number = span.stop, number + 1
        self.rows = Batch(*map(torch.from_numpy, (tokens, labels, documents, positions)))


def encode_pair(
    tokenizer: Tokenizer, pair: dict[str, Any]
) -> tuple[tuple[list[int], list[bool]], tuple[list[int], list[bool]]]:
    """Return (ids, is label) of the chosen and of the rejected conversation.

    The last answer alone is labelled, also where the prompt holds earlier ones.
    """
    given = encode_chat(tokenizer, pair["prompt"], add_generation_prompt=True).ids
    both = []
    for name in ("chosen", "rejected"):
        answer = {"role": "assistant", "content": pair[name]}
        chat = encode_chat(tokenizer, [*pair["prompt"], answer])
        labels = [is_label and at >= len(given) for at, is_label in enumerate(chat.is_label)]
        both.append((chat.ids, labels))
    return both[0], both[1]


def answer_log_probs(model: Transformer, rows: Batch) -> tuple[Tensor, Tensor]:
    """Return the summed log-probability of every document's labels, and how many there are.

    Documents are counted through the rows in order; both results are (D,) float32.
    """
    hidden = model(rows.tokens, rows.positions, rows.document_ids)
    labels = rows.labels.flatten()
    counted = labels != IGNORE
    log_probs = chunked_log_probs(model.logits, hidden.flatten(0, 1)[counted], labels[counted])
    per_row = _documents_per_row(rows)
    first = per_row.cumsum(0) - per_row
    document = (first[:, None] + rows.document_ids).flatten()[counted]
    zeros = torch.zeros(int(per_row.sum()), device=log_probs.device)
    sums = zeros.index_add(0, document, log_probs)
    return sums, zeros.index_add(0, document, torch.ones_like(log_probs))


def with_reference(rows: Batch, log_probs: Tensor) -> PairBatch:
    """Put the reference's log-probabilities, (D,) in the order of the rows, beside the rows."""
    per_row = _documents_per_row(rows)
    width = int(per_row.max()) if len(per_row) else 0
    reference = torch.full((len(per_row), width), torch.nan)
    reference[torch.arange(width) < per_row[:, None]] = log_probs
    return PairBatch(rows.tokens, rows.labels, rows.document_ids, rows.positions, reference)


def _documents_per_row(rows: Batch) -> Tensor:
    return rows.document_ids.amax(dim=1).long() + 1


class DpoStage:
    """Packed pairs and the preference loss over them.

    Args:
        train, heldout: all pairs; the latter may hold none.
        train_config: rows per batch and seed.
        config: the loss.
        sources: for each row of `train`, where its pairs were read; for `describe`.
        prompts: what is asked while it trains.
    """

    name = "dpo"

    def __init__(
        self,
        train: PairBatch,
        heldout: PairBatch,
        train_config: TrainConfig,
        config: DpoConfig,
        sources: Sequence[Sequence[str]] = (),
        prompts: Prompts | None = None,
    ) -> None:
        self.train, self.heldout_pairs, self.prompts = train, heldout, prompts
        self.sources = sources
        self.config, self.seed = config, train_config.seed
        self.num_rows = len(train.tokens)
        self.rows_per_batch = min(train_config.rows_per_batch, self.num_rows)
        self.batches_per_epoch = self.num_rows / self.rows_per_batch

    def compile(self) -> None:
        """Nothing: the number of labels changes from batch to batch."""

    def batch(self, number: int) -> PairBatch:
        """Return the rows of one step, a pure function of the number."""
        return self.train.take(torch.from_numpy(self._places(number)))

    def weight(self, batch: Batch) -> int:
        """Return the number of pairs."""
        return int(_documents_per_row(batch).sum()) // 2

    def loss(self, model: Transformer, rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed preference loss, and summed accuracy, margin and log-probabilities."""
        assert isinstance(rows, PairBatch)
        log_probs, counts = answer_log_probs(model, rows)
        reference = rows.reference[~rows.reference.isnan()]
        chosen, rejected = log_probs[0::2], log_probs[1::2]
        losses, margin = dpo_loss(
            chosen, rejected, reference[0::2], reference[1::2],
            self.config.beta, self.config.label_smoothing,
        )  # fmt: skip
        chosen_mean, rejected_mean = chosen / counts[0::2], rejected / counts[1::2]
        total = losses.sum() - self.config.sft_weight * chosen_mean.sum()
        metrics = {
            "preference_loss": losses,
            "accuracy": (margin > 0).float(),
            "margin": margin,
            "chosen_log_prob": chosen_mean,
            "rejected_log_prob": rejected_mean,
        }
        return total, {name: value.detach().sum() for name, value in metrics.items()}

    def describe(self, number: int, row: int) -> str:
        """Name the row's pairs by where they were read."""
        place = int(self._places(number)[row])
        if not self.sources:
            return f"row {place} of the packed pairs"
        return f"the pairs of {', '.join(self.sources[place])}"

    def heldout(self, model: Transformer) -> dict[str, float]:
        """Return loss, accuracy and margin on the held-out pairs."""
        pairs = self.weight(self.heldout_pairs) if len(self.heldout_pairs.tokens) else 0
        sums: dict[str, float] = {}
        for start in range(0, len(self.heldout_pairs.tokens), REFERENCE_ROWS):
            part = self.heldout_pairs.rows(start, start + REFERENCE_ROWS)
            total, metrics = self.loss(model, part.to(next(model.parameters()).device))
            for name, value in {"loss": total, **metrics}.items():
                sums[f"heldout_{name}"] = sums.get(f"heldout_{name}", 0.0) + float(value) / pairs
        return sums

    def samples(self, call: Call) -> list[dict[str, Any]]:
        """Return what the model answers to some held-out prompts."""
        return self.prompts.answered(call) if self.prompts else []

    def _places(self, number: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        first = number * self.rows_per_batch
        epochs, ranks = np.divmod(np.arange(first, first + self.rows_per_batch), self.num_rows)
        return np.concatenate(
            [
                permute(ranks[epochs == epoch], self.num_rows, self.seed, int(epoch))
                for epoch in np.unique(epochs)
            ]
        )


def reference_log_probs(model: Transformer, rows: Batch, cache: Path) -> Tensor:
    """Return the model's `answer_log_probs` of all rows, (D,), from `cache` where it is there.

    A file that is damaged is made again.
    """
    num_documents = int(_documents_per_row(rows).sum())
    if cache.exists():
        try:
            found = np.load(cache, allow_pickle=False)
        except (ValueError, EOFError):
            found = np.zeros(0)
        if found.shape == (num_documents,) and found.dtype == np.float32:
            return torch.from_numpy(found)
        say(f"{cache}: damaged; computed again")
    device = next(model.parameters()).device
    parts = [torch.zeros(0)]
    with torch.no_grad():
        starts = range(0, len(rows.tokens), REFERENCE_ROWS)
        for start in track(starts, "reference"):
            part = rows.rows(start, start + REFERENCE_ROWS).to(device)
            parts.append(answer_log_probs(model, part)[0].cpu())
    log_probs = torch.cat(parts)
    file = io.BytesIO()
    np.save(file, log_probs.numpy(), allow_pickle=False)
    write_atomic(cache, file.getvalue())
    return log_probs


def dpo(
    pairs: Path,
    start: Path,
    cache: Path,
    run: Path,
    config: TrainConfig,
    preference: DpoConfig,
    renew: bool = False,
) -> Path:
    """Align the model at `start` with a folder of pairs and return the model folder.

    Args:
        pairs: `train.jsonl.zst` and `heldout.jsonl.zst`, as `build_pairs` writes them.
        start: the model to align; it is the reference too.
        cache: folder for the reference's log-probabilities.
        run: the run folder.
        config: training settings.
        preference: the loss.
        renew: see `train_and_save`.

    Raises:
        UserError: `start` is no model, a pair is damaged, or no pair fits a row.
    """
    model, tokenizer, start_hash = load_start(start)
    check_context(model, config)
    files = {name: pairs / name for name in (TRAIN, HELDOUT)}
    inputs = {
        "start": start_hash,
        "pairs": sha256_file(files[TRAIN]),
        "heldout_pairs": sha256_file(files[HELDOUT]),
        "preference": asdict(preference),
    }

    def stage() -> DpoStage:
        hardware = find_hardware(config)
        model.to(hardware.device).compute_dtype = hardware.dtype
        packed, sources = [], []
        pairs = {name: read_pairs(path) for name, path in files.items()}
        for name, path in files.items():
            rows = pairs[name]
            found = PairRows(rows, tokenizer, config.max_seq_len)
            if name == TRAIN and not found.num_pairs:
                raise UserError(_why_none_fits(path, found, config, model.config.max_position))
            places = [row.get("source", f"line {n} of {name}") for n, row in enumerate(rows, 1)]
            if found.skipped:
                _say_skipped(name, found, places)
            rounding = f"{config.max_seq_len} {hardware.dtype_name}"
            what = (start_hash, tokenizer.hash, sha256_file(path), rounding)
            key = hashlib.sha256("/".join(what).encode()).hexdigest()[:16]
            log_probs = reference_log_probs(model, found.rows, cache / f"{key}.npy")
            packed.append(with_reference(found.rows, log_probs))
            sources.append([[places[pair] for pair in row] for row in found.numbers])
        prompts = _asked(tokenizer, pairs[HELDOUT], config.max_seq_len)
        return DpoStage(packed[0], packed[1], config, preference, sources[0], prompts)

    return train_and_save("dpo", model, tokenizer, stage, config, run, inputs, renew)


def _say_skipped(name: str, found: PairRows, places: Sequence[str]) -> None:
    say(
        f"dpo: {len(found.skipped)} of {len(places)} pairs of {name} are longer than max_seq_len "
        f"and skipped, first {places[found.skipped[0]]} (the longest needs {max(found.needed)})"
    )


def _why_none_fits(path: Path, found: PairRows, config: TrainConfig, max_position: int) -> str:
    if not found.needed:
        return f"{path}: holds no pair; give some"
    shortest = min(found.needed)
    said = f"{path}: no pair fits max_seq_len {config.max_seq_len}, with both answers in one row"
    if shortest > max_position:
        return (
            f"{said}: the shortest needs {shortest}, and the model's max_position is "
            f"{max_position}; give shorter pairs"
        )
    return (
        f"{said}; raise it: --max_seq_len {shortest} holds the shortest pair, "
        f"--max_seq_len {max(found.needed)} all"
    )


def _asked(tokenizer: Tokenizer, pairs: Sequence[dict[str, Any]], room: int) -> Prompts:
    """Return the first prompts of some pairs, of which several may share one."""
    asked = {str(pair["prompt"]): pair["prompt"] for pair in pairs}.values()
    encoded = (encode_chat(tokenizer, messages, add_generation_prompt=True) for messages in asked)
    return Prompts(tokenizer, (chat.ids for chat in encoded), room)
