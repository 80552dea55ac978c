"""A distillation run: from a teacher and a student to the student's finished model folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from cygnet.config import ModelConfig, TrainConfig
from cygnet.corpus.document import HELDOUT, TRAIN
from cygnet.errors import UserError
from cygnet.files import sha256_file
from cygnet.generate.runner import laid_out
from cygnet.model.lora import NO_LORA, LoraConfig
from cygnet.progress import say
from cygnet.stages.distillation.distill import DistillConfig, DistillStage
from cygnet.stages.distillation.on_policy import OnPolicyStage
from cygnet.stages.launch import load_start, train_and_save
from cygnet.stages.next_token import open_shards
from cygnet.stages.pretrain import check_context, new_model
from cygnet.stages.reinforcement.prompts import asked_prompts
from cygnet.stages.sft import SftConfig, make_shards
from cygnet.text.tokenize import tokenize_documents
from cygnet.text.tokenizer import Tokenizer
from cygnet.train.hardware import find_hardware


def distill(
    teacher: Path,
    start: Path | None,
    sizes: ModelConfig,
    data: Path,
    shards: Path,
    run: Path,
    config: TrainConfig,
    method: DistillConfig,
    renew: bool = False,
    lora: LoraConfig = NO_LORA,
) -> Path:
    """Let a student learn from the teacher and return the student's model folder.

    Args:
        teacher: a run or model folder.
        start: the student; none makes a new one with the teacher's tokenizer.
        sizes: of a new student.
        data: a folder of `cygnet data`, or of conversations (`method.learn_from`).
        shards: where the token shards are, or are made.
        run: the run folder.
        config: training settings.
        method: what is learnt.
        renew, lora: see `train_and_save`.

    Raises:
        UserError: one of them is no model, or the teacher's tokens are not the student's.
    """
    if lora.lora and start is None:
        raise UserError("--lora needs --from: adapters go beside the weights of a trained student")
    inputs: dict[str, Any] = {"start": None, "method": asdict(method)}
    tutor, tokenizer, inputs["teacher"] = load_start(teacher)
    if start is None:
        model = new_model(sizes, tokenizer, config.seed)
    else:
        model, own, inputs["start"] = load_start(start)
        check_vocabulary(teacher, tokenizer, start, own)
        tokenizer = own
    check_context(model, config)
    check_context(tutor, config)
    inputs |= {"data": sha256_file(data / "manifest.json"), "tokenizer": tokenizer.hash}
    say(
        f"distill: a student of {model.config.num_parameters:,} parameters, a teacher of "
        f"{tutor.config.num_parameters:,}"
    )

    def stage() -> DistillStage:
        hardware = find_hardware(config)
        tutor.to(hardware.device).compute_dtype = hardware.dtype
        if method.learn_from == "conversations":
            make_shards(data, tokenizer, shards, config.max_seq_len, SftConfig())
        else:
            for split in (TRAIN, HELDOUT):
                tokenize_documents(data / split, tokenizer, shards / split.partition(".")[0])
        given = (laid_out(tutor), *open_shards(shards, tokenizer.hash), config, tokenizer, method)
        if not method.on_policy:
            return DistillStage(*given)
        return OnPolicyStage(*given, *asked_prompts(data))

    return train_and_save(
        "distill", model, tokenizer, stage, config, run, inputs, renew, lora=lora, start=start
    )


def check_vocabulary(teacher: Path, its: Tokenizer, student: Path, own: Tokenizer) -> None:
    """Refuse a teacher whose token ids mean something else than the student's.

    Raises:
        UserError: says how they differ, and what works instead.
    """
    if its.vocabulary_hash == own.vocabulary_hash:
        return
    how = f"{its.vocab_size} entries against {own.vocab_size}"
    if its.vocab_size == own.vocab_size:
        how = f"both of {own.vocab_size} entries, but not the same ones"
    raise UserError(
        f"{teacher}: its tokenizer is not that of {student} ({how}), so its probabilities are of "
        f"other tokens; let the student learn from its answers: cygnet serve {teacher}, then "
        "--teacher_url in place of --teacher; or leave --from out, for a new student with the "
        "teacher's tokenizer"
    )
