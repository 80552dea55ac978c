"""What the planner knows of many processes, and what `--parallel auto` makes of it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cygnet.cli import main
from cygnet.config import ModelConfig, TrainConfig
from cygnet.errors import UserError
from cygnet.train.comparison import AUTO, best, choose, compare
from cygnet.train.held import Held, held
from cygnet.train.layout import ALONE, CUTTING_MODELS, Layout, weights_of
from cygnet.train.parallel.choose import choose_parallel
from cygnet.train.planner import SHARE, Plan, plan, smallest_plan
from tests.train.test_planner import machine

SMALL = ModelConfig(num_layers=4, num_kv_heads=4)
TRAIN = TrainConfig(batch_tokens=64 * 256, max_seq_len=256, compile="off")
MODELS = [SMALL, dataclasses.replace(SMALL, tie_embeddings=False, num_layers=7)]


def whole(model: ModelConfig, optimizer: str = "adamw") -> Held:
    return held(model, ALONE, optimizer, torch.float32, False)


def of_way(way: str, processes: int, each: int = 1, stage: int = 0) -> Layout:
    zero = {"stage": stage} if way == "deepspeed" else {}
    return Layout(way=way, processes=processes, model_processes=each, zero=zero)


@pytest.mark.parametrize("model", MODELS, ids=["tied", "untied"])
def test_the_shapes_are_all_of_the_model(model: ModelConfig) -> None:
    assert sum(weight.size for weight in weights_of(model)) == model.num_parameters


@pytest.mark.parametrize("model", MODELS, ids=["tied", "untied"])
@pytest.mark.parametrize("each", [2, 3, 4])
def test_the_processes_of_a_pipeline_hold_the_model_between_them(
    model: ModelConfig, each: int
) -> None:
    layout = of_way("pipeline", each, each)
    parts = [held(model, layout, "adamw", torch.float32, True, place=i) for i in range(each)]
    # Tied embeddings are at both ends.
    copy = 4 * model.vocab_size * model.hidden_size if model.tie_embeddings else 0
    assert sum(part.weights for part in parts) == whole(model).weights + copy
    assert sum(part.optimizer for part in parts) == whole(model).optimizer + 2 * copy


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_tensor_cuts_the_matrices_of_blocks_and_nothing_else(optimizer: str) -> None:
    matrices = 4 * sum(w.size for w in weights_of(SMALL) if w.kind == "matrix")
    cut = held(SMALL, of_way("tensor", 4, 4), optimizer, torch.float32, True)
    assert whole(SMALL).weights - cut.weights == matrices * 3 // 4


@given(
    processes=st.integers(2, 1024),
    stage=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_zero_cuts_more_with_each_stage(processes: int, stage: int, dtype: torch.dtype) -> None:
    """The optimizer state from 1 on, gradients from 2 on, weights from 3 on, and not before."""
    found = held(SMALL, of_way("deepspeed", processes, stage=stage), "adamw", dtype, True)
    alone = whole(SMALL)
    lowered = dtype is torch.float16 or (dtype is torch.bfloat16 and stage > 0)
    c = dtype.itemsize if lowered else 4
    n = SMALL.num_parameters
    padding = 8 * len(weights_of(SMALL)) + 8
    if stage:
        share = alone.optimizer / processes
        assert share <= found.optimizer <= share + padding
    else:
        assert found.optimizer == alone.optimizer
    if stage < 2:
        assert found.gradients == c * n
    else:
        # At most two parameters of each group are cut by the ends of a partition.
        largest = max(weight.size for weight in weights_of(SMALL))
        most = n / processes + (6 * largest if stage == 2 else padding)
        assert c * n / processes <= found.gradients <= c * most
    if stage < 3:
        assert found.weights >= c * n
    else:
        # DeepSpeed leaves tensors below 100,000 elements whole.
        kept = sum(weight.size for weight in weights_of(SMALL) if weight.size <= 100_000)
        assert found.weights <= (c + 4) * n / processes + c * kept + padding


@given(processes=st.integers(1, 64), accumulates=st.booleans())
def test_fsdp_cuts_everything_but_gradients_that_accumulate(
    processes: int, accumulates: bool
) -> None:
    found = held(SMALL, of_way("fsdp", processes), "muon", torch.float32, accumulates)
    alone = whole(SMALL, "muon")
    padding = 4 * sum(processes * weight.size // weight.shape[0] for weight in weights_of(SMALL))
    for name in ("weights", "optimizer"):
        all_of_them = processes * getattr(found, name)
        assert getattr(alone, name) <= all_of_them <= getattr(alone, name) + 2 * padding
    assert (found.gradients == alone.gradients) == (accumulates or processes == 1)


@given(free_mib=st.integers(50, 20_000), processes=st.sampled_from([2, 3, 4, 8, 64]))
def test_auto_takes_the_first_way_that_fits(free_mib: int, processes: int) -> None:
    hardware = machine(free_mib << 20)
    config, why = choose(TRAIN, SMALL, hardware, processes)
    plans = [best(TRAIN, SMALL, hardware, way, processes) for way in AUTO]
    fitting = [p.layout for p in plans if isinstance(p, Plan) and p.fits]
    if fitting:
        assert config.parallel == fitting[0].way
        if config.parallel in CUTTING_MODELS:
            assert config.model_processes == fitting[0].model_processes
    else:
        needs = {p.layout.way: p.need_bytes for p in plans if isinstance(p, Plan)}
        assert config.parallel == min(needs, key=lambda way: needs[way])
        assert "none fits" in why


def test_auto_says_why_with_figures() -> None:
    config, why = choose(TRAIN, SMALL, machine(8 << 30), 2)
    assert (config.parallel, config.model_processes) == ("ddp", None)
    assert "8.00 GiB" in why
    # A model whose weights, gradients and optimizer state alone are 1.5 GiB of the 2.
    large = dataclasses.replace(SMALL, hidden_size=1024, intermediate_size=4096, num_layers=8)
    config, why = choose(TRAIN, large, machine(int(2.4 * 2**30)), 8)
    assert config.parallel != "ddp"
    need = smallest_plan(large, TRAIN, machine(int(2.4 * 2**30)), of_way("ddp", 8)).need_bytes
    assert f"ddp {need / 2**30:.2f} GiB" in why


@pytest.mark.parametrize("way", ["ddp", "fsdp", "tensor", "pipeline"])
def test_a_process_takes_only_its_own_rows(way: str) -> None:
    each = 2 if way in CUTTING_MODELS else 1
    found = plan(SMALL, TRAIN, machine(64 << 30), of_way(way, 4, each))
    assert found.rows_per_batch == 64 * each // 4
    # Each stretch of a pipeline has a micro-batch to work on.
    assert found.micro_batch == found.rows_per_batch // (each if way == "pipeline" else 1)
    assert found.need_bytes <= SHARE * found.hardware.memory.free_bytes


def test_many_more_processes_than_this_machine_has_are_compared() -> None:
    found = compare(TRAIN, SMALL, machine(8 << 30), 1024)
    names = [name.partition(",")[0] for name in found]
    assert names == [*AUTO, "ZeRO 0", "ZeRO 1", "ZeRO 2", "ZeRO 3"]
    assert all(not isinstance(plans, str) for plans in found.values())
    with_muon = dataclasses.replace(TRAIN, optimizer="muon")
    assert "muon" in str(compare(with_muon, SMALL, machine(8 << 30), 2)["ZeRO 1"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"parallel": "tensor"}, "num_heads 8 does not divide by 3"),
        ({"parallel": "pipeline", "model_processes": 2}, "does not divide the 3 processes"),
        ({"parallel": "fsdp", "model_processes": 3}, "--model_processes 3 goes with"),
        ({"parallel": "ddp", "deepspeed": Path("a.json")}, "give one"),
        ({"parallel": "deepspeed", "optimizer": "muon"}, "Muon"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        choose_parallel(dataclasses.replace(TRAIN, **settings), SMALL, machine(8 << 30), 3)


def test_the_command_shows_the_way_asked_for_beside_all_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["plan", "--preset", "26m", "--processes", "64", "--parallel", "fsdp"])
    text = capsys.readouterr().out
    taken = [line.split()[0] for line in text.splitlines() if line.rstrip().endswith("taken")]
    assert taken == ["fsdp"]
    for name in ("ddp", "tensor", "pipeline", "ZeRO 0", "ZeRO 1", "ZeRO 2", "ZeRO 3"):
        assert f"\n {name}" in text
    assert "64 processes" in text
    main(["plan", "--processes", "2", "--deepspeed", "configs/deepspeed/zero1.json"])
    text = capsys.readouterr().out
    taken = [line[:7].strip() for line in text.splitlines() if line.rstrip().endswith("taken")]
    assert taken == ["ZeRO 1"]


def test_the_command_without_processes_plans_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "--preset", "26m"])
    text = capsys.readouterr().out
    assert "peak" in text
    assert "processes" not in text
    with pytest.raises(SystemExit):
        main(["plan", "--parallel", "fsdp"])
    assert "--processes" in capsys.readouterr().err
