"""The lines that people of this field type, as they type them, with the sizes of a test behind."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from cygnet.export.adapter import with_adapter
from cygnet.export.huggingface import load_folder
from cygnet.files import sha256_file
from tests.train.parallel.conftest import environment, free_port
from tests.train.parallel.test_equal import losses, weights

WORDS = "the old swan sleeps near a cold lake while grey rain falls on reeds and stones".split()
TRAINING = (
    "--steps 4 --batch_tokens 1024 --max_seq_len 256 --log_every 1 --compile off --device cpu"
)
MODEL = (
    "--model.hidden-size 32 --model.num-layers 2 --model.num-heads 2 --model.num-kv-heads 2 "
    "--model.intermediate-size 48 --model.vocab-size 400 --model.max-position 256"
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, conversations and pairs; runs are made beside them."""
    folder = tmp_path_factory.mktemp("typed")
    chooser = random.Random(4)
    (folder / "notes").mkdir()
    for number in range(40):
        sentences = [" ".join(chooser.choices(WORDS, k=12)).capitalize() for _ in range(12)]
        (folder / "notes" / f"{number}.txt").write_text(". ".join(sentences) + ".")
    turns = [
        {
            "messages": [
                {"role": "user", "content": f"What of {' '.join(chooser.choices(WORDS, k=4))}?"},
                {"role": "assistant", "content": " ".join(chooser.choices(WORDS, k=8))},
            ]
        }
        for _ in range(60)
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, turns)))
    pairs = [
        {
            "prompt": turn["messages"][:1],
            "chosen": turn["messages"][1]["content"],
            "rejected": " ".join(chooser.choices(WORDS, k=chooser.randint(2, 12))),
        }
        for turn in turns
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return folder


def typed(line: str) -> str:
    """Run a line in a shell that has the environment's commands; return what it printed."""
    env = environment()
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = subprocess.run(
        line, shell=True, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def check_run(run: Path, processes: int, is_tracked: bool) -> None:
    (checkpoint,) = (run / "checkpoints").glob("step_*4")
    assert json.loads((checkpoint / "manifest.json").read_text())["processes"] == processes
    assert (run / "model/model.safetensors").exists()
    assert len(losses(run)) == 4
    # Rank 0 alone tracks: one run of wandb, whatever the number of processes.
    assert len(list(run.glob("wandb/offline-run-*"))) == int(is_tracked)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    out = folder / "one"
    typed(
        "python train_pretrain.py --use_wandb "
        f"--data {folder}/notes --out {out} {MODEL} {TRAINING}",
    )
    check_run(out, 1, is_tracked=True)
    return out


def test_torchrun_train_pretrain(folder: Path, alone: Path) -> None:
    out = folder / "two"
    said = typed(
        "torchrun --nproc_per_node 2 train_pretrain.py --use_wandb "
        f"--data {folder}/notes --out {out} {MODEL} {TRAINING}",
    )
    check_run(out, 2, is_tracked=True)
    assert losses(out) == pytest.approx(losses(alone), rel=1e-3)
    assert said.count("Done. The model is in") == 1
    again = typed(
        "torchrun --nproc_per_node 2 train_pretrain.py --use_wandb "
        f"--data {folder}/notes --out {out} {MODEL} {TRAINING}",
    )
    assert "pretrain: up to date, nothing to do" in again


def test_torchrun_train_full_sft(folder: Path, alone: Path) -> None:
    out = folder / "tuned"
    typed(
        "torchrun --nproc_per_node 2 train_full_sft.py --use_wandb --wandb_project my-project "
        f"--wandb_run_name try-1 --from {alone} --data {folder}/chats.jsonl --out {out} {TRAINING}",
    )
    check_run(out, 2, is_tracked=True)
    settings = yaml.safe_load((out / "config.yaml").read_text())["train"]
    assert (settings["wandb_project"], settings["wandb_run_name"]) == ("my-project", "try-1")


def test_torchrun_train_lora(folder: Path, alone: Path) -> None:
    """Two processes that each hold a part of the base write one adapter, and the whole model."""
    out = folder / "adapted"
    line = f"train_lora.py --from {alone} --data {folder}/chats.jsonl {TRAINING} --out {out}"
    typed(f"torchrun --nproc_per_node 2 {line} --parallel pipeline --use_dora --learning_rate 0.02")
    check_run(out, 2, is_tracked=False)
    base, _ = load_folder(alone)
    merged, _ = load_folder(out)
    expected = with_adapter(base, out / "adapter").state_dict()
    for name, tensor in merged.state_dict().items():
        assert torch.equal(tensor, expected[name])
        adapted = name.startswith("model.layers.") and "norm" not in name
        assert torch.equal(tensor, base.state_dict()[name]) != adapted, name


def test_torchrun_train_dpo(folder: Path, alone: Path) -> None:
    """Two processes, each with slices of the weights, go the way of one."""
    line = f"train_dpo.py --from {alone} --data {folder}/pairs.jsonl {TRAINING} --dtype fp32"
    typed(f"python {line} --out {folder}/preferred-1")
    typed(f"torchrun --nproc_per_node 2 {line} --out {folder}/preferred-2 --parallel fsdp")
    check_run(folder / "preferred-2", 2, is_tracked=False)
    one, two = folder / "preferred-1", folder / "preferred-2"
    assert losses(two) == pytest.approx(losses(one), rel=2e-5)
    assert losses(two, "grad_norm") == pytest.approx(losses(one, "grad_norm"), rel=2e-4)
    found = weights(two)
    for name, value in weights(one).items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-4, msg=name)


def test_torchrun_train_reward(folder: Path, alone: Path) -> None:
    """Two processes, each with slices of the weights, give the scores of one."""
    line = f"train_reward.py --from {alone} --data {folder}/pairs.jsonl {TRAINING} --dtype fp32"
    typed(f"python {line} --out {folder}/judge-1")
    said = typed(f"torchrun --nproc_per_node 2 {line} --out {folder}/judge-2 --parallel fsdp")
    check_run(folder / "judge-2", 2, is_tracked=False)
    one, two = folder / "judge-1", folder / "judge-2"
    assert losses(two) == pytest.approx(losses(one), rel=2e-5)
    found = weights(two)
    assert "score.weight" in found
    for name, value in weights(one).items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-4, msg=name)
    assert said.count("held-out pairs:") == 1
    assert (two / "reward.json").exists()


def test_deepspeed_train_pretrain(folder: Path, alone: Path) -> None:
    out = folder / "zero"
    typed(
        f"deepspeed --master_port {free_port()} --num_gpus=2 train_pretrain.py "
        f"--data {folder}/notes --out {out} {MODEL} {TRAINING}",
    )
    check_run(out, 2, is_tracked=False)
    assert losses(out) == pytest.approx(losses(alone), rel=1e-3)
    assert sha256_file(out / "tokenizer/tokenizer.json") == sha256_file(
        alone / "tokenizer/tokenizer.json"
    )
