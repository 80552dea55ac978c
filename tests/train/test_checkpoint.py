"""A checkpoint is whole or it is not there; the newest whole one is taken."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cygnet.config import ModelConfig, TrainConfig
from cygnet.errors import UserError
from cygnet.model.transformer import Transformer
from cygnet.train.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from cygnet.train.optim import MuonAdamW, build_optimizer

TINY = ModelConfig(
    vocab_size=300, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48
)


def trained(steps: int, seed: int = 0) -> tuple[Transformer, MuonAdamW]:
    model = Transformer(TINY)
    model.initialize(torch.Generator().manual_seed(seed))
    optimizer = build_optimizer(model, TrainConfig(), torch.float32)
    take_steps(model, optimizer, steps)
    return model, optimizer


def take_steps(model: Transformer, optimizer: MuonAdamW, steps: int) -> None:
    tokens = torch.arange(12).view(2, 6)
    for _ in range(steps):
        model.logits(model(tokens)).logsumexp(-1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_loaded_checkpoint_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained(2)
    saved = save_checkpoint(tmp_path, 2, model, optimizer, {"tokens": 5}, keep=2)
    take_steps(model, optimizer, 3)
    other, other_optimizer = trained(1, seed=9)
    assert load_checkpoint(saved, other, other_optimizer) == {"tokens": 5, "step": 2}
    take_steps(other, other_optimizer, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    for step in range(1, 5):
        save_checkpoint(tmp_path, step, model, optimizer, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_a_flipped_byte_is_named_and_the_earlier_checkpoint_taken(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, optimizer = trained(1)
    earlier = save_checkpoint(tmp_path, 1, model, optimizer, {}, keep=2)
    damaged = save_checkpoint(tmp_path, 2, model, optimizer, {}, keep=2)
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 0x80
    (damaged / name).write_bytes(content)
    assert newest_checkpoint(tmp_path) == earlier
    error = capsys.readouterr().err
    assert str(damaged) in error and name in error and "skipped" in error


def test_a_new_checkpoint_stays_beside_a_damaged_one_of_a_later_step(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    later = save_checkpoint(tmp_path, 9, model, optimizer, {}, keep=1)
    (later / "state.json").write_text("{}")
    saved = save_checkpoint(tmp_path, 5, model, optimizer, {}, keep=1)
    assert newest_checkpoint(tmp_path) == saved


def test_what_a_killed_save_left_is_swept_up(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    half = tmp_path / ".step_00000001.123.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 2, model, optimizer, {}, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]


def test_a_model_of_other_sizes_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    saved = save_checkpoint(tmp_path, 1, model, optimizer, {}, keep=2)
    other = Transformer(ModelConfig(**{**vars(TINY), "num_layers": 3}))
    with pytest.raises(UserError, match="other sizes"):
        load_checkpoint(saved, other, build_optimizer(other, TrainConfig()))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB: room for one checkpoint of the tiny model, not for two."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_earlier_checkpoint(small_disk: Path) -> None:
    model, optimizer = trained(1)
    first = save_checkpoint(small_disk, 1, model, optimizer, {}, keep=5)
    with pytest.raises(UserError, match=r"step_00000001 still stands"):
        for step in range(2, 6):
            save_checkpoint(small_disk, step, model, optimizer, {}, keep=5)
    assert newest_checkpoint(small_disk) is not None
    assert not list(small_disk.glob(".step*"))
    load_checkpoint(first, model, optimizer)
