"""Learning from preferences: prefer the chosen answer of a pair, or the wanted of many.

The reference is the model that the stage starts from; its log-probabilities are computed once and
kept on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cygnet.config import TrainConfig
from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.errors import UserError
from cygnet.files import sha256_file
from cygnet.model.lora import NO_LORA, LoraConfig
from cygnet.model.transformer import Transformer
from cygnet.progress import say
from cygnet.stages.launch import load_start, train_and_save
from cygnet.stages.packed import documents_per_row
from cygnet.stages.preference.answer_rows import (
    AnswerBatch,
    PackedAnswers,
    PairRows,
    reference_log_probs,
    with_reference,
)
from cygnet.stages.preference.config import DpoConfig
from cygnet.stages.preference.kto import (
    KtoStage,
    LabelledBatch,
    LabelledRows,
    as_answers,
    labelled_batch,
)
from cygnet.stages.preference.pair_stage import DpoStage
from cygnet.stages.preference.pairs import read_pairs
from cygnet.stages.pretrain import check_context
from cygnet.stages.samples import Prompts
from cygnet.text.chat import encode_chat
from cygnet.text.loader import Batch
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.hardware import find_hardware

__all__ = ["DpoConfig", "DpoStage", "KtoStage", "dpo"]

KTO_BALANCE = (1.0, 4 / 3)
"""How many times more wanted answers may weigh than unwanted (Ethayarajh et al. 2024, eq. 8)."""


def dpo(
    pairs: Path,
    start: Path,
    cache: Path,
    run: Path,
    config: TrainConfig,
    preference: DpoConfig,
    renew: bool = False,
    lora: LoraConfig = NO_LORA,
) -> Path:
    """Align the model at `start` with a folder of pairs and return the model folder.

    Args:
        pairs: `train.jsonl.zst` and `heldout.jsonl.zst`, as `build_pairs` writes them.
        start: the model to align; it is the reference too.
        cache: folder for the reference's log-probabilities.
        run: the run folder.
        config: training settings.
        preference: the loss.
        renew, lora: see `train_and_save`.

    Raises:
        UserError: `start` is no model, a pair is damaged, or no pair fits a row.
    """
    model, tokenizer, start_hash = load_start(start)
    check_context(model, config)
    preference = preference.resolved()
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
        rounding = f"{config.max_seq_len} {hardware.dtype_name} {tokenizer.vocab_size}"
        key = (start_hash, tokenizer.hash, rounding)
        reference = _Reference(
            model, cache, key, tokenizer.vocab_size, preference.reference == "none"
        )
        return make_stage(files, tokenizer, model, config, preference, reference)

    return train_and_save(
        "dpo", model, tokenizer, stage, config, run, inputs, renew, lora=lora, start=start
    )


class _Reference:
    """What the starting model gives answers, from the folder that keeps it, or zeros.

    Args:
        model: the starting model.
        cache: the folder.
        key: all else that decides a log-probability besides the answers.
        vocab_size: of the tokenizer.
        is_none: whether there is no reference.
    """

    def __init__(
        self, model: Transformer, cache: Path, key: Sequence[str], vocab_size: int, is_none: bool
    ) -> None:
        self.model, self.cache, self.key, self.is_none = model, cache, key, is_none
        self.vocab_size = vocab_size

    def beside(self, rows: Batch, *content: str) -> AnswerBatch:
        """Return the rows with the reference; `content` names them: their file's hash and use."""
        if self.is_none:
            return with_reference(rows, torch.zeros(int(documents_per_row(rows).sum())))
        start_hash, tokenizer_hash, rounding = self.key
        what = (start_hash, tokenizer_hash, content[0], rounding, *content[1:])
        name = hashlib.sha256("/".join(what).encode()).hexdigest()[:16]
        path = self.cache / f"{name}.npy"
        log_probs = reference_log_probs(self.model, rows, path, self.vocab_size)
        return with_reference(rows, log_probs)


def make_stage(
    files: dict[str, Path],
    tokenizer: Tokenizer,
    model: Transformer,
    config: TrainConfig,
    preference: DpoConfig,
    reference: _Reference,
) -> DpoStage:
    """Read, encode and pack what is in the files of training and held-out pairs."""
    is_kto = preference.loss == "kto"
    batches: list[AnswerBatch] = []
    labelled: list[tuple[LabelledBatch, AnswerBatch]] = []
    sources, shares = [], []
    rows: list[dict[str, Any]] = []
    for name, path in files.items():
        rows, share = _read(path, is_kto)
        rows = as_answers(rows) if is_kto else rows
        found = (LabelledRows if is_kto else PairRows)(rows, tokenizer, config.max_seq_len)
        if name == TRAIN and not found.num_kept:
            raise UserError(_why_none_fits(path, found, config, model.config.max_position))
        if found.skipped:
            _say_skipped(name, found, rows, tokenizer, config.max_seq_len)
        file_hash = sha256_file(path)
        if isinstance(found, LabelledRows):
            if name == TRAIN:
                _check_labels(path, found, preference)
            answers = reference.beside(found.rows, file_hash, "kto")
            mismatched = reference.beside(found.mismatched, file_hash, "kto", "mismatched")
            labelled.append((labelled_batch(answers, found.desirable), mismatched))
        else:
            batches.append(reference.beside(found.rows, file_hash))
        sources.append([[rows[number]["source"] for number in row] for row in found.numbers])
        shares.append(share)
    prompts = _asked(tokenizer, rows, config.max_seq_len)
    others = (config, preference, sources[0], prompts, shares[0], tokenizer.vocab_size)
    if is_kto:
        return KtoStage(*labelled, *others)
    return DpoStage(batches[0], batches[1], *others)


def _read(path: Path, is_kto: bool) -> tuple[list[dict[str, Any]], float]:
    """Return rows, each with its `source`, and which share was left out for equal sides."""
    given = read_pairs(path, labelled=is_kto)
    for number, row in enumerate(given, start=1):
        row.setdefault("source", f"line {number} of {path.name}")
    equal = [row for row in given if "label" not in row and _are_equal(row)]
    if equal:
        say(
            f"dpo: {len(equal)} of {len(given)} pairs of {path.name} have equal sides and are left "
            f"out, first {equal[0]['source']}"
        )
    kept = [row for row in given if "label" in row or not _are_equal(row)]
    if given and not kept:
        raise UserError(f"{path}: in every pair chosen and rejected are equal; there is no signal")
    return kept, len(equal) / max(len(given), 1)


def _are_equal(pair: dict[str, Any]) -> bool:
    return pair["chosen"].strip() == pair["rejected"].strip()


def _check_labels(path: Path, found: LabelledRows, preference: DpoConfig) -> None:
    """Say what in the labels, or in how answers lie together, would make KTO learn badly.

    Raises:
        UserError: all labels are the same.
    """
    wanted, unwanted = int(found.desirable.sum()), int((1 - found.desirable).sum())
    if not wanted or not unwanted:
        raise UserError(
            f"{path}: every answer has the label {'true' if wanted else 'false'}; kto learns from "
            "wanted and unwanted ones"
        )
    balance = preference.desirable_weight * wanted / (preference.undesirable_weight * unwanted)
    low, high = KTO_BALANCE
    if not 0.99 * low <= balance <= 1.01 * high:
        weight = preference.undesirable_weight * unwanted / wanted
        say(
            f"dpo: {wanted} answers are wanted and {unwanted} not, which weigh {balance:.2f} to 1; "
            f"kto does best from {low:g} to {high:.2f}: --desirable_weight {weight:.2f}"
        )
    if not documents_per_row(found.mismatched).sum():
        say(
            "dpo: no row holds answers to two prompts, so the KL of kto is taken as zero; raise "
            "--max_seq_len"
        )


def _say_skipped(
    name: str,
    found: PackedAnswers,
    rows: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    seq_len: int,
) -> None:
    what = "answers" if isinstance(found, LabelledRows) else "pairs"
    full = sum(len(_prompt_ids(tokenizer, rows[i])) >= seq_len for i in found.skipped)
    no_room = f"; the prompts of {full} leave no room for any answer" if full else ""
    say(
        f"dpo: {len(found.skipped)} of {len(rows)} {what} of {name} are longer than max_seq_len "
        f"and skipped, first {rows[found.skipped[0]]['source']} (the longest needs "
        f"{max(found.needed)}{no_room})"
    )


def _why_none_fits(path: Path, found: PackedAnswers, config: TrainConfig, max_position: int) -> str:
    if not found.needed:
        return f"{path}: holds no pair; give some"
    shortest = min(found.needed)
    what = "no answer fits" if isinstance(found, LabelledRows) else "no pair fits"
    row = "" if isinstance(found, LabelledRows) else ", with both answers in one row"
    said = f"{path}: {what} max_seq_len {config.max_seq_len}{row}"
    if shortest > max_position:
        return (
            f"{said}: the shortest needs {shortest}, and the model's max_position is "
            f"{max_position}; give shorter pairs"
        )
    return (
        f"{said}; raise it: --max_seq_len {shortest} holds the shortest pair, "
        f"--max_seq_len {max(found.needed)} all"
    )


def _prompt_ids(tokenizer: Tokenizer, row: dict[str, Any]) -> list[int]:
    return encode_chat(tokenizer, row["prompt"], add_generation_prompt=True).ids


def _asked(tokenizer: Tokenizer, rows: Iterable[dict[str, Any]], room: int) -> Prompts:
    """Return the first prompts of some rows, of which several may share one."""
    asked = {str(row["prompt"]): row for row in rows}.values()
    return Prompts(tokenizer, (_prompt_ids(tokenizer, row) for row in asked), room)
