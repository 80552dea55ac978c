"""A checkpoint is whole or it is not there; the newest whole one is taken."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cygnet.config import ModelConfig, TrainConfig
from cygnet.errors import UserError
from cygnet.model.transformer import Transformer
from cygnet.train import checkpoint
from cygnet.train.checkpoint import Checkpoint, CheckpointWriter, Piece, newest_checkpoint
from cygnet.train.hardware import find_hardware
from cygnet.train.parallel.single import Single

TINY = ModelConfig(
    vocab_size=300, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48
)


CONFIG = TrainConfig(device="cpu", dtype="fp32")


def trained(steps: int, seed: int = 0, sizes: ModelConfig = TINY) -> Single:
    model = Transformer(sizes)
    model.initialize(torch.Generator().manual_seed(seed))
    single = Single(model, CONFIG, find_hardware(CONFIG))
    take_steps(single, steps)
    return single


def take_steps(single: Single, steps: int) -> None:
    tokens = torch.arange(12).view(2, 6)
    for _ in range(steps):
        single.model.logits(single.model(tokens)).logsumexp(-1).sum().backward()
        single.update(1.0, 1e9)


def save(folder: Path, step: int, single: Single, keep: int = 2, **state: Any) -> Path:
    writer = CheckpointWriter(folder, keep)
    writer.save(step, single.pieces(), {"optimizer": single.counters(), **state})
    writer.wait()
    return folder / f"step_{step:08d}"


def load(path: Path, single: Single) -> dict[str, Any]:
    with Checkpoint(path) as opened:
        single.load(opened.keys, opened.read, opened.state["optimizer"])
        return opened.state


def test_a_loaded_checkpoint_goes_on_bit_for_bit(tmp_path: Path) -> None:
    one = trained(2)
    saved = save(tmp_path, 2, one, tokens=5)
    take_steps(one, 3)
    other = trained(1, seed=9)
    state = load(saved, other)
    assert (state["tokens"], state["step"]) == (5, 2)
    take_steps(other, 3)
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


def test_what_is_written_is_what_was_there_when_it_was_asked_for(tmp_path: Path) -> None:
    single = trained(1)
    before = {name: p.detach().clone() for name, p in single.model.named_parameters()}
    writer = CheckpointWriter(tmp_path, 2)
    writer.save(1, single.pieces(), {"optimizer": single.counters()})
    take_steps(single, 3)
    writer.wait()
    with Checkpoint(tmp_path / "step_00000001") as opened:
        for name, value in opened.whole("model").items():
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("keep", [1, 2, 4, 5, 7, 20])
def test_only_the_newest_are_kept(keep: int, tmp_path: Path) -> None:
    single = trained(1)
    for step in range(1, 7):
        save(tmp_path, step, single, keep)
    kept = [f"step_{step:08d}" for step in range(1, 7)][-keep:]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def write_as_several(folder: Path, parts: list[list[Piece]]) -> list[CheckpointWriter]:
    """Write a checkpoint as so many processes do; rank 0 gives it its name."""
    writers = [CheckpointWriter(folder, 2, rank, len(parts)) for rank in range(len(parts))]
    for writer, pieces in zip(writers, parts, strict=True):
        writer.save(1, pieces, {})
    return writers


def test_any_part_is_read_whatever_parts_were_written(tmp_path: Path) -> None:
    whole = torch.arange(70.0).view(7, 10)
    cuts = [(0, 3), (3, 5), (5, 7), (7, 7)]  # the last of many processes may hold nothing
    parts = [
        [
            Piece("model", "by_rows", whole[start:stop], 0, start, 7),
            Piece("model", "by_columns", whole.T[:, start:stop], 1, start, 7),
        ]
        for start, stop in cuts
    ]
    for writer in write_as_several(tmp_path, parts):
        writer.wait()
    with Checkpoint(tmp_path / "step_00000001") as opened:
        for name, tensor in (("by_rows", whole), ("by_columns", whole.T)):
            for dim, size in enumerate(tensor.shape):
                for start in range(size):
                    for length in range(size - start + 1):
                        found = opened.read(f"model/{name}", dim, start, length)
                        assert torch.equal(found, tensor.narrow(dim, start, length))
                with pytest.raises(UserError, match="made by a model of other sizes"):
                    opened.read(f"model/{name}", dim, 1, size)


def test_what_one_process_cannot_write_is_given_up_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 does not wait for a file that never comes."""

    def full(tensors: Any, path: Path) -> None:
        if path.name.startswith("rank_00001"):
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    pieces = [Piece("model", "a", torch.ones(2))]
    for writer in write_as_several(tmp_path, [pieces, pieces]):
        with pytest.raises(UserError, match=r"No space left.*there is no earlier one"):
            writer.wait()


@pytest.mark.parametrize(
    "name", ["rank_00000.safetensors", "rank_00000.json", "state.json", "manifest.json"]
)
def test_a_flipped_byte_is_named_and_the_earlier_checkpoint_taken(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    single = trained(1)
    earlier = save(tmp_path, 1, single, keep=2)
    damaged = save(tmp_path, 2, single, keep=2)
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 0x80
    (damaged / name).write_bytes(content)
    assert newest_checkpoint(tmp_path) == earlier
    error = capsys.readouterr().err
    assert str(damaged) in error and name in error and "skipped" in error


def test_a_new_checkpoint_stays_beside_a_damaged_one_of_a_later_step(tmp_path: Path) -> None:
    single = trained(1)
    later = save(tmp_path, 9, single, keep=1)
    (later / "state.json").write_text("{}")
    saved = save(tmp_path, 5, single, keep=1)
    assert newest_checkpoint(tmp_path) == saved


def test_what_a_killed_save_left_is_swept_up(tmp_path: Path) -> None:
    single = trained(1)
    half = tmp_path / ".step_00000001.123"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) is None
    save(tmp_path, 2, single, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]


def test_a_model_of_other_sizes_is_refused(tmp_path: Path) -> None:
    single = trained(1)
    saved = save(tmp_path, 1, single, keep=2)
    other = trained(1, sizes=ModelConfig(**{**vars(TINY), "num_layers": 3}))
    with pytest.raises(UserError, match="other sizes"):
        load(saved, other)


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
    single = trained(1)
    first = save(small_disk, 1, single, keep=5)
    with pytest.raises(UserError, match=r"step_00000001 still stands"):
        for step in range(2, 6):
            save(small_disk, step, single, keep=5)
    assert newest_checkpoint(small_disk) is not None
    assert not list(small_disk.glob(".step*"))
    load(first, single)
