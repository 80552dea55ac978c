"""What is decided before processes are connected: what cannot be spread is refused in one line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.config import ModelConfig, TrainConfig, load_settings
from cygnet.errors import UserError
from cygnet.model.lora import LoraConfig, add_lora
from cygnet.model.transformer import Transformer
from cygnet.stages.next_token import NextTokenStage
from cygnet.text.shards import ShardReader
from cygnet.train import engine, hardware
from cygnet.train.layout import Layout, zero_settings
from cygnet.train.parallel.choose import spread
from cygnet.train.parallel.deepspeed import deepspeed_settings
from cygnet.train.parallel.group import is_restart, world
from tests.train.parallel.conftest import CONFIG, SIZES

REFUSED = [
    (3, {"parallel": "tensor"}, ("--parallel tensor over 3", "num_heads 4", "divide by 3")),
    (4, {"parallel": "tensor"}, ("--parallel tensor over 4", "num_kv_heads 2")),
    (3, {"parallel": "pipeline"}, ("--parallel pipeline over 3", "has 2 layers")),
    (4, {"parallel": "tensor", "model_processes": 3}, ("--model_processes 3", "the 4 processes")),
    (2, {"parallel": "pipeline", "model_processes": 4}, ("--model_processes 4", "the 2 processes")),
    (2, {"parallel": "ddp", "model_processes": 2}, ("--model_processes 2", "ddp")),
    (2, {"parallel": "fsdp", "model_processes": 2}, ("--model_processes 2", "fsdp")),
    (2, {"model_processes": -2}, ("model_processes is -2",)),
    (2, {"timeout_s": 0.0}, ("timeout_s is 0",)),
    (2, {"parallel": "deepspeed", "optimizer": "muon"}, ("--parallel deepspeed", "--optimizer")),
    (2, {"deepspeed": "a.json", "parallel": "fsdp"}, ("--deepspeed a.json", "--parallel fsdp")),
    (2, {"deepspeed": "a.json", "parallel": "ddp"}, ("--deepspeed a.json", "--parallel ddp")),
    (2, {"parallel": "tensor", "dtype": "fp16"}, ("--parallel tensor", "fp16")),
    (2, {"parallel": "pipeline", "dtype": "fp16"}, ("--parallel pipeline", "fp16")),
]  # fmt: skip


def test_matrices_in_4_bits_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    model = Transformer(ModelConfig(**SIZES))
    add_lora(model, LoraConfig(lora=True, quantize="nf4"), torch.Generator())
    config = load_settings(TrainConfig, {**CONFIG, "parallel": "tensor"}, "test")
    with pytest.raises(UserError, match=r"--quantize nf4 and --parallel tensor: .* --parallel ddp"):
        spread("tensor", model, config, hardware.find_hardware(config))


@pytest.mark.parametrize(
    ("size", "settings", "words"), REFUSED, ids=lambda value: str(value).replace("/", "-")
)
def test_is_refused_and_says_why(
    size: int,
    settings: dict[str, Any],
    words: tuple[str, ...],
    labelled: ShardReader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"WORLD_SIZE": size, "RANK": 0, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(engine, "connect", lambda _: world())
    monkeypatch.setattr(engine, "on_rank_zero", lambda function: function())
    model = Transformer(ModelConfig(**SIZES))
    with pytest.raises(UserError) as refused:
        config = load_settings(TrainConfig, {**CONFIG, **settings}, "test")
        stage = NextTokenStage("pretrain", labelled, None, config)
        engine.Engine(model, stage, config, tmp_path, {})
    said = str(refused.value)
    assert all(word in said for word in words), said
    assert "\n" not in said


# With two processes CONFIG's five rows are two micro-batches of two rows in each.
CONTRADICTIONS = {
    "train_micro_batch_size_per_gpu": (3, "--micro_batch"),
    "gradient_accumulation_steps": (5, "--batch_tokens and --micro_batch"),
    "train_batch_size": (64, "--batch_tokens"),
    "gradient_clipping": (0.5, "--grad_clip"),
    "optimizer": ({"type": "Adam"}, "--optimizer"),
    "scheduler": ({"type": "WarmupLR"}, "--schedule"),
    "bf16": ({"enabled": True}, "--dtype"),
    "fp16": ({"enabled": True}, "--dtype"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_deepspeed_file_that_contradicts_a_flag_is_refused_by_both_names(
    name: str, tmp_path: Path
) -> None:
    value, flag = CONTRADICTIONS[name]
    path = tmp_path / "mine.json"
    agreeing = {
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2,
        "train_batch_size": 8, "gradient_clipping": 1.0, "bf16": {"enabled": False},
        "fp16": {"enabled": "auto"}, "zero_optimization": {"stage": 1, "reduce_scatter": False},
    }  # fmt: skip
    config = load_settings(TrainConfig, {**CONFIG, "deepspeed": path}, "test")
    path.write_text(json.dumps(agreeing))
    taken = deepspeed_settings(config, torch.float32, 2)
    assert taken["zero_optimization"] == {"stage": 1, "reduce_scatter": False}
    path.write_text(json.dumps({**agreeing, name: value}))
    with pytest.raises(UserError) as refused:
        deepspeed_settings(config, torch.float32, 2)
    said = str(refused.value)
    assert str(path) in said and name in said and flag in said, said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"zero_optimization": {"stage": 7}}', "zero_optimization.stage is 7"),
        ('{"zero_optimization": "auto"}', "zero_optimization is 'auto'"),
    ],
)
def test_a_deepspeed_file_that_is_none_is_named(
    text: str | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_text(text)
    config = load_settings(TrainConfig, {**CONFIG, "deepspeed": path}, "test")
    with pytest.raises(UserError, match=f"mine.json: {words}"):
        deepspeed_settings(config, torch.float32, 2)


def test_what_a_file_leaves_to_deepspeed_is_as_if_it_were_not_there() -> None:
    given = {"stage": 3, "reduce_bucket_size": "auto", "offload_optimizer": {"device": "none"}}
    left = zero_settings({"zero_optimization": given})
    assert "reduce_bucket_size" not in left
    assert not Layout(way="deepspeed", processes=2, zero=left).offloads


def test_stage_zero_in_fp16_is_refused(tmp_path: Path) -> None:
    config = load_settings(TrainConfig, {**CONFIG, "deepspeed": "configs/deepspeed/zero0.json"}, "")
    with pytest.raises(UserError, match="stage 0 and --dtype fp16"):
        deepspeed_settings(config, torch.float16, 2)


def test_a_process_without_a_number_among_several_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE is 2 but RANK is not set"):
        world()


def test_one_process_says_that_it_is_alone(
    labelled: ShardReader, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for way in ("fsdp", "tensor", "pipeline"):
        config = load_settings(TrainConfig, {**CONFIG, "parallel": way}, "test")
        stage = NextTokenStage("pretrain", labelled, None, config)
        engine.Engine(Transformer(ModelConfig(**SIZES)), stage, config, tmp_path, {})
        assert f"--parallel {way}: one process alone holds everything" in capsys.readouterr().err


def test_a_job_that_is_started_again_goes_on_with_resume_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`--resume never` is said once, to a job that torchrun or Slurm may start many times."""
    for name, count, expected in (
        ("NOBODY", "1", False), ("TORCHELASTIC_RESTART_COUNT", "0", False),
        ("TORCHELASTIC_RESTART_COUNT", "2", True), ("SLURM_RESTART_COUNT", "1", True),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setenv(name, count)
            assert is_restart() is expected


def test_every_process_computes_in_the_type_that_rank_zero_chose(
    labelled: ShardReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines may differ in what they multiply fast."""
    config = load_settings(TrainConfig, {**CONFIG, "dtype": "auto"}, "test")
    chosen_by_zero = dataclasses.replace(config, dtype="fp32", parallel="ddp", threads=1)
    monkeypatch.setattr(hardware, "resolve_dtype", lambda *_: (torch.bfloat16, "here"))
    monkeypatch.setattr(engine, "on_rank_zero", lambda function: chosen_by_zero)
    stage = NextTokenStage("pretrain", labelled, None, config)
    found = engine.Engine(Transformer(ModelConfig(**SIZES)), stage, config, tmp_path, {})
    assert found.hardware.dtype is found.model.compute_dtype is torch.float32
