"""A GRPO run: from a model, prompts and rewards to the finished model folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from cygnet.config import TrainConfig
from cygnet.errors import UserError
from cygnet.files import digest_of, fair_draw, sha256_file
from cygnet.model.lora import NO_LORA, LoraConfig
from cygnet.stages.launch import load_start, train_and_save
from cygnet.stages.pretrain import check_context
from cygnet.stages.reinforcement.functions import absolute, is_file_reference
from cygnet.stages.reinforcement.groups import Judge
from cygnet.stages.reinforcement.grpo import GrpoConfig, GrpoStage
from cygnet.stages.reinforcement.prompts import Split, with_room
from cygnet.stages.reinforcement.rewards.builtin import reward_name
from cygnet.stages.reinforcement.rollout import Environment, Roller, RolloutConfig
from cygnet.train.hardware import find_hardware


def grpo(
    prompts: Split,
    judge: Judge | None,
    start: Path,
    run: Path,
    config: TrainConfig,
    method: GrpoConfig,
    rewards: Sequence[str] = (),
    environment: Callable[[], Environment] | None = None,
    renew: bool = False,
    lora: LoraConfig = NO_LORA,
    environment_name: str | None = None,
) -> Path:
    """Let the model at `start` learn from what its answers earn; return the model folder.

    Args:
        prompts: rows to learn from, and those that are only judged.
        judge: rewards answers; none where the environment alone does.
        start: the model; it is the reference of the KL term too.
        run: the run folder.
        config: training settings.
        method: how answers are drawn and learnt from.
        rewards: what the judge is made of, for the record; of a person's files the content counts.
        environment: makes the world of an episode of several turns.
        renew, lora: see `train_and_save`.
        environment_name: as on the command line, for the record as the rewards are.

    Raises:
        UserError: `start` is no model or has no chat template, no prompt leaves room, the length is
            given in tokens, or `lora` has dropout.
    """
    lora.refuse_dropout("grpo")
    config.refuse_tokens("grpo")
    model, tokenizer, start_hash = load_start(start)
    check_context(model, config)
    train, heldout = prompts
    if not train:
        raise UserError("grpo: no prompt to learn from; give --data some, or hold fewer out")
    inputs = {
        "start": start_hash,
        "prompts": digest_of(train),
        "heldout_prompts": digest_of(heldout),
        "rewards": list(rewards),
        "environment": environment_name,
        "tools": sorted(getattr(getattr(environment, "toolbox", None), "schemas", {})),
        "sources": sources(rewards, environment_name),
        "method": asdict(method),
    }

    def stage() -> GrpoStage:
        hardware = find_hardware(config)
        roller = Roller(tokenizer, RolloutConfig())
        room = min(config.max_seq_len + 1, model.config.max_position)
        reference = None
        if method.kl_coef:
            reference = load_start(start)[0].requires_grad_(False).to(hardware.device)
            reference.compute_dtype = hardware.dtype
        return GrpoStage(
            tokenizer,
            with_room(train, roller, room, "grpo", environment),
            with_room(
                fair_draw(heldout, method.heldout_prompts),
                roller,
                room,
                "grpo, held out",
                environment,
            ),
            judge,
            method,
            config.max_seq_len,
            config.seed,
            reference,
            environment,
        )

    return train_and_save(
        "grpo", model, tokenizer, stage, config, run, inputs, renew, lora=lora, start=start
    )


def sources(rewards: Sequence[str], environment: str | None) -> dict[str, str]:
    """Return the SHA-256 of each file that is named by a reward, an environment or a tool.

    Args:
        rewards: as on the command line.
        environment: likewise.

    Raises:
        UserError: there is no such file.
    """
    found = {}
    named = [("reward", reward_name(text)) for text in rewards]
    named += [("environment", text.strip()) for text in (environment or "").split(",")]
    for what, text in named:
        if is_file_reference(text):
            file = absolute(text, what).rpartition(":")[0]
            found[text.rpartition(":")[0]] = sha256_file(Path(file))
    return found
