"""What the planner promises: bytes that are really used, and a micro-batch that really fits."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cygnet.config import ModelConfig, TrainConfig
from cygnet.cores import usable_cores
from cygnet.errors import UserError
from cygnet.model.transformer import Transformer
from cygnet.train.hardware import (
    DTYPES,
    Hardware,
    Memory,
    choose_device,
    compile_problem,
    find_hardware,
    resolve_dtype,
    usable_memory,
)
from cygnet.train.planner import SHARE, describe_plan, plan, saved_bytes_per_token

CPU = torch.device("cpu")
SMALL = ModelConfig(
    vocab_size=500,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=160,
)


def machine(free_bytes: int, dtype: torch.dtype = torch.float32) -> Hardware:
    memory = Memory(free_bytes, "a limit")
    return Hardware(
        device=CPU, name="cpu", dtype=dtype, dtype_reason="", memory=memory, num_cores=2
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seq_len", [40, 128, 300, 512])
@pytest.mark.parametrize(
    "model",
    [
        SMALL,
        dataclasses.replace(SMALL, num_kv_heads=4, num_layers=1),
        dataclasses.replace(SMALL, head_dim=32, intermediate_size=64, num_heads=6, num_kv_heads=3),
    ],
    ids=["grouped", "ungrouped", "wide heads"],
)
def test_saved_bytes_are_those_that_autograd_keeps(model, seq_len, dtype):
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    network = Transformer(model, dtype)
    rows = 7  # so that no activation has the shape of a weight
    tokens = torch.randint(0, model.vocab_size, (rows, seq_len))
    document_ids = (torch.arange(seq_len) // 50)[None].repeat(rows, 1)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(tokens, document_ids * 0, document_ids)
    weights = {shape for p in network.parameters() for shape in (p.shape, p.shape[::-1])}
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    found = sum(
        tensor.untyped_storage().nbytes()
        for pointer, tensor in kept.items()
        if pointer not in parameters and tensor.shape not in weights
    )
    planned = rows * seq_len * saved_bytes_per_token(model, seq_len, dtype.itemsize)
    assert planned == pytest.approx(found, rel=0.03)


@given(
    free_mib=st.integers(300, 64_000),
    rows=st.integers(1, 96),
    seq_len=st.sampled_from([64, 256, 1024]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_choice_divides_the_batch_fits_and_grows_with_memory(free_mib, rows, seq_len, dtype):
    train = TrainConfig(batch_tokens=rows * seq_len, max_seq_len=seq_len, compile="off")
    try:
        small = plan(ModelConfig(), train, machine(free_mib << 20, dtype))
    except UserError:
        return
    large = plan(ModelConfig(), train, machine(free_mib << 21, dtype))
    assert train.rows_per_batch % small.micro_batch == 0
    assert small.need_bytes <= SHARE * (free_mib << 20)
    assert small.fits
    assert large.micro_batch >= small.micro_batch


def test_the_choice_is_the_largest_that_fits_below_the_useful_size():
    train = TrainConfig(batch_tokens=96 * 512, compile="off")
    chosen = plan(ModelConfig(), train, machine(4 << 30)).micro_batch
    assert 1 < chosen < 32
    larger = min(n for n in range(chosen + 1, 97) if 96 % n == 0)
    asked = dataclasses.replace(train, micro_batch=larger)
    assert not plan(ModelConfig(), asked, machine(4 << 30)).fits
    assert plan(ModelConfig(), train, machine(1 << 40)).micro_batch == 32


def test_too_little_memory_says_what_would_fit():
    train = TrainConfig(max_seq_len=2048, batch_tokens=16_384, compile="off")
    little = machine(1500 << 20)
    with pytest.raises(UserError, match="--max_seq_len") as error:
        plan(ModelConfig(), train, little)
    shorter = int(str(error.value).split("--max_seq_len ")[1].split()[0])
    assert plan(ModelConfig(), dataclasses.replace(train, max_seq_len=shorter), little).fits
    with pytest.raises(UserError, match="smaller --preset"):
        plan(ModelConfig(), train, machine(100 << 20))


def test_weights_in_memory_are_not_counted_twice():
    train = TrainConfig(compile="off")
    whole = plan(ModelConfig(), train, machine(8 << 30))
    rest = plan(ModelConfig(), train, machine(8 << 30), weights_loaded=True)
    assert whole.need_bytes - rest.need_bytes == 4 * ModelConfig().num_parameters


def test_the_table_names_every_part_and_the_sum():
    train = TrainConfig(minutes=1.0)
    hardware = machine(8 << 30)
    chosen = plan(ModelConfig(), train, hardware)
    text = describe_plan(chosen)
    for part in chosen.parts:
        assert part.name in text
    assert f"4 micro-batches of {chosen.micro_batch}" in " ".join(text.split())
    assert "tokens/s" in text
    assert "a limit" in text


STEPS = """
import json, resource, sys
from pathlib import Path
import torch
from cygnet.config import ModelConfig, TrainConfig
from cygnet.model.loss import linear_cross_entropy
from cygnet.model.transformer import Transformer
from cygnet.text.loader import Batch
from cygnet.train.engine import Engine

class RandomText:
    name, batches_per_epoch = "pretrain", 10.0

    def compile(self):
        pass

    def batch(self, number):
        tokens = torch.randint(0, model.vocab_size, (train.rows_per_batch, train.max_seq_len))
        positions = torch.arange(train.max_seq_len).expand_as(tokens).contiguous()
        return Batch(tokens, tokens, torch.zeros_like(tokens, dtype=torch.int32), positions)

    def weight(self, batch):
        return batch.num_labels

    def loss(self, network, rows):
        hidden = network(rows.tokens, rows.positions, rows.document_ids)
        weight, labels = network.output_weight, rows.labels.flatten()
        return linear_cross_entropy(hidden.flatten(0, 1), weight, labels), {}

    def describe(self, number, row):
        return "random"

    def heldout(self, network):
        return {}

    def samples(self, call):
        return []

request = json.loads(sys.argv[1])
model = ModelConfig(**request["model"])
train = TrainConfig(**request["train"])
(torch.randn(512, 512) @ torch.randn(512, 512)).sum()
if request["extra_bytes"]:
    mapped = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
    limit = mapped + request["extra_bytes"]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
network = Transformer(model)
network.initialize(torch.Generator().manual_seed(0))
engine = Engine(network, RandomText(), train, Path(request["run"]), {})
engine.train()
print(json.dumps({"micro_batch": engine.config.micro_batch, "step": engine.step,
                  "limited_by": engine.hardware.memory.limited_by}))
"""


def really_train(run: Path, train: TrainConfig, extra_mib: int, before=None):
    request = {
        "model": dataclasses.asdict(LIMITED_MODEL),
        "train": dataclasses.asdict(train),
        "extra_bytes": extra_mib << 20,
        "run": str(run),
    }
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STEPS), json.dumps(request)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        preexec_fn=before,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


LIMITED_MODEL = ModelConfig(
    vocab_size=500,
    hidden_size=64,
    num_layers=12,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=128,
)
LIMITED_TRAIN = TrainConfig(batch_tokens=64 * 128, max_seq_len=128, steps=2, compile="off")
LIMIT_MIB = 600


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA holds for mappings on Linux only")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_training_fits_into_the_memory_that_the_plan_was_given(tmp_path, dtype):
    train = dataclasses.replace(LIMITED_TRAIN, dtype=dtype)
    planned = really_train(tmp_path / "planned", train, LIMIT_MIB)
    assert planned.returncode == 0, planned.stderr
    result = json.loads(planned.stdout.splitlines()[-1])
    assert result["step"] == 2
    assert 1 <= result["micro_batch"] < train.rows_per_batch
    assert "RLIMIT_DATA" in result["limited_by"]

    unplanned = dataclasses.replace(train, micro_batch=train.rows_per_batch)
    too_much = really_train(tmp_path / "unplanned", unplanned, LIMIT_MIB)
    assert too_much.returncode != 0, "the limit is too wide to show anything"
    assert "can't allocate memory" in too_much.stderr


def memory_group() -> Path | None:
    """Return a new memory control group with a limit, where this process may make one."""
    for root, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = root / f"cygnet-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(900 << 20))
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        return group
    return None


def test_training_survives_in_a_container_with_little_memory(tmp_path):
    group = memory_group()
    if group is None:
        pytest.skip("no control group can be made here; the test above needs none")

    def join() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    try:
        planned = really_train(tmp_path, LIMITED_TRAIN, 0, before=join)
        assert planned.returncode == 0, planned.stderr
        result = json.loads(planned.stdout.splitlines()[-1])
        assert result["step"] == 2
        assert result["limited_by"] == "memory limit of the container"
    finally:
        group.rmdir()


def fake_root(root: Path, files: dict[str, str]) -> Path:
    base = {"proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n"}
    for name, text in (base | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


UNIFIED = {
    "proc/self/cgroup": "0::/a/b",
    "sys/fs/cgroup/a/memory.max": "3000000000",
    "sys/fs/cgroup/a/memory.current": "1000000000",
    "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 400000000",
    "sys/fs/cgroup/a/b/memory.max": "max",
    "sys/fs/cgroup/a/b/memory.current": "1000",
    "sys/fs/cgroup/a/cpu.max": "150000 100000",
    "sys/fs/cgroup/a/b/cpu.max": "max 100000",
}
SEPARATE = {
    "proc/self/cgroup": "5:cpu,cpuacct:/job\n4:memory:/job\n0::/",
    "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "2000000000",
    "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "500000000",
    "sys/fs/cgroup/memory/job/memory.stat": "total_inactive_file 100000000",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "500000000",
    "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "100000",
    "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
}
INSIDE = {
    "proc/self/cgroup": "4:memory:/docker/0123\n5:cpu:/docker/0123",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000000",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "500000000",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
}


@pytest.mark.parametrize(
    ("files", "free_bytes"),
    [
        ({}, 8_000_000 * 1024),
        (UNIFIED, 2_400_000_000),
        (SEPARATE, 1_600_000_000),
        (INSIDE, 1_500_000_000),
    ],
    ids=["none", "version 2, an outer group", "version 1", "version 1 inside a container"],
)
def test_memory_is_the_smallest_limit_less_what_is_in_use(tmp_path, files, free_bytes):
    assert usable_memory(CPU, fake_root(tmp_path, files)).free_bytes == free_bytes


def test_cores_are_those_of_affinity_and_quota(tmp_path):
    cores = len(os.sched_getaffinity(0))
    assert usable_cores(fake_root(tmp_path / "none", {})) == cores
    assert usable_cores(fake_root(tmp_path / "2", UNIFIED)) == 1
    assert usable_cores(fake_root(tmp_path / "1", SEPARATE)) == 1
    assert usable_cores(fake_root(tmp_path / "inside", INSIDE)) == cores


def test_bf16_is_chosen_where_the_processor_says_so():
    dtype, reason = resolve_dtype("auto", CPU)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "flags" in flags:
        has_bf16 = "avx512_bf16" in flags or "amx_bf16" in flags
        assert (dtype is torch.bfloat16) == has_bf16, reason
    for name, expected in DTYPES.items():
        assert resolve_dtype(name, CPU)[0] is expected


@pytest.mark.parametrize("name", ["cuda:99", "mps", "gpu", "tpu:0"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(UserError, match="auto"):
        choose_device(name)


def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    problem = compile_problem(CPU)
    assert problem is not None
    assert "apt install g++" in problem or sys.platform == "darwin"
    assert "\n" not in problem
    for name in ("g++", "clang++"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert "no C++ compiler" not in (compile_problem(CPU) or "")


def test_the_matrix_rate_is_measured_once():
    hardware = find_hardware(TrainConfig(device="cpu", dtype="fp32"))
    assert hardware.matrix_rate > 1e8
    assert hardware.matrix_rate == hardware.matrix_rate
