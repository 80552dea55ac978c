"""White-box distillation from end to end, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.cli import main
from cygnet.config import ModelConfig, TrainConfig
from cygnet.errors import UserError
from cygnet.export.adapter import with_adapter
from cygnet.export.huggingface import load_folder, save_folder
from cygnet.files import JsonlWriter, write_json
from cygnet.generate.runner import laid_out
from cygnet.model.lora import LoraConfig
from cygnet.stages.distillation.distill import DistillConfig, DistillStage
from cygnet.stages.distillation.distill_run import distill
from cygnet.stages.distillation.on_policy import OnPolicyStage
from cygnet.text.shards import ShardReader, write_shards
from cygnet.text.tokenizer import Tokenizer, train_tokenizer
from tests.models import SMALL, random_model

STUDENT = ModelConfig(
    vocab_size=9, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1,
    intermediate_size=48, max_position=64,
)  # fmt: skip
TRAIN = TrainConfig(
    steps=12, batch_tokens=4 * 64, max_seq_len=64, micro_batch=4, learning_rate=0.01,
    dtype="fp32", device="cpu", compile="off", log_every=1, eval_every=6,
)  # fmt: skip
OTHER_TEXT = [
    f"{letter}{other}{number} quite other words"
    for letter in "zxqwvk" for other in "abcdefghij" for number in range(5)
]  # fmt: skip


def logged(run: Path, name: str) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


@pytest.fixture
def teacher(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    return save_folder(random_model(SMALL, seed=3), tokenizer, tmp_path / "teacher")


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    texts = [f"How do I make soup {n}? Boil the water. 白日依山尽 {n * 7}" for n in range(60)]
    for name, part in (("train", texts[:50]), ("heldout", texts[50:])):
        with JsonlWriter(folder / f"{name}.jsonl.zst") as writer:
            for number, text in enumerate(part):
                writer.write({"text": text, "id": f"{number:016x}"})
    write_json(folder / "manifest.json", {"made": "by hand"})
    return folder


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    folder = tmp_path / "conversations"
    folder.mkdir()
    for name, count in (("train", 30), ("heldout", 6)):
        with JsonlWriter(folder / f"{name}.jsonl.zst") as writer:
            for number in range(count):
                asked = {"role": "user", "content": f"soup {number}?"}
                said = {"role": "assistant", "content": f"Boil {number}."}
                writer.write({"messages": [asked, said]})
    write_json(folder / "manifest.json", {"made": "by hand"})
    return folder


def test_a_new_student_comes_nearer_to_its_teacher(
    teacher: Path, documents: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    folder = distill(
        teacher, None, STUDENT, documents, run / "shards", run, TRAIN, DistillConfig(alpha=0.1)
    )
    student, own = load_folder(folder)
    assert own.hash == tokenizer.hash and student.config.hidden_size == 32
    divergence = logged(run, "divergence")
    assert divergence[-1] < 0.8 * divergence[0]
    # What the teacher itself reaches there stands beside the student's.
    assert len(set(logged(run, "heldout_teacher_loss"))) == 1


def test_a_student_learns_by_adapters_and_a_new_one_cannot(
    teacher: Path, documents: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    run, lora = tmp_path / "run", LoraConfig(lora=True)
    start = save_folder(random_model(SMALL, seed=4), tokenizer, tmp_path / "start")
    given = (documents, run / "shards", run, TRAIN, DistillConfig(alpha=0.1))
    with pytest.raises(UserError, match="--lora needs --from"):
        distill(teacher, None, STUDENT, *given, lora=lora)
    found, _ = load_folder(distill(teacher, start, STUDENT, *given, lora=lora))
    merged = with_adapter(load_folder(start)[0], run / "adapter").state_dict()
    assert all(torch.equal(merged[name], value) for name, value in found.state_dict().items())
    divergence = logged(run, "divergence")
    assert divergence[-1] < 0.8 * divergence[0]


def test_the_loss_is_that_of_both_models_outputs(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding, unlabelled tokens and outputs beyond the vocabulary do not count."""
    ids = [[5, 9, 2, 7, 30, 11], [4, 8, 6]]
    rows = [(one, [at > 1 for at in range(len(one))]) for one in ids]
    write_shards(tmp_path / "s", rows, tokenizer.hash, tokenizer.vocab_size, {}, has_labels=True)
    reader = ShardReader(tmp_path / "s", tokenizer.hash)
    wide = dataclasses.replace(SMALL, vocab_size=tokenizer.vocab_size + 8)
    student, tutor = random_model(wide, seed=1), random_model(SMALL, seed=2)
    method = DistillConfig(alpha=0.25, divergence="reverse_kl")
    config = dataclasses.replace(TRAIN, batch_tokens=16, max_seq_len=16)
    stage = DistillStage(laid_out(tutor), reader, None, config, tokenizer, method)
    batch = stage.batch(0)
    loss, metrics = stage.loss(student, batch)
    expected = torch.zeros(2)
    for one, is_label in rows:
        tokens, wanted = torch.tensor([one[:-1]]), torch.tensor(is_label[1:])
        logits = student.logits(student(tokens))[0, :, : tokenizer.vocab_size]
        theirs = tutor.logits(tutor(tokens))[0, :, : tokenizer.vocab_size]
        log_q, log_p = logits.log_softmax(-1), theirs.log_softmax(-1)
        apart = (log_q.exp() * (log_q - log_p)).sum(-1)
        cross_entropy = -log_q.gather(1, torch.tensor(one[1:])[:, None])[:, 0]
        expected += torch.stack([apart[wanted].sum(), cross_entropy[wanted].sum()]).detach()
    assert float(metrics["divergence"]) == pytest.approx(float(expected[0]), rel=1e-5)
    assert float(metrics["cross_entropy"]) == pytest.approx(float(expected[1]), rel=1e-5)
    assert loss.item() == pytest.approx(float(0.75 * expected[0] + 0.25 * expected[1]), rel=1e-5)


def test_compiled_equals_eager(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [([*range(4, 20)], [True] * 16)]
    write_shards(tmp_path / "s", rows, tokenizer.hash, tokenizer.vocab_size, {}, has_labels=True)
    reader = ShardReader(tmp_path / "s", tokenizer.hash)
    found = []
    for compiled in (False, True):
        student = random_model(SMALL, seed=1)
        method = DistillConfig(alpha=0.25, divergence="jsd", top_k=9)
        tutor = laid_out(random_model(SMALL, seed=2))
        config = dataclasses.replace(TRAIN, batch_tokens=16, max_seq_len=16)
        stage = DistillStage(tutor, reader, None, config, tokenizer, method)
        if compiled:
            stage.compile()
        loss, _ = stage.loss(student, stage.batch(0))
        loss.backward()
        found.append((loss.detach(), student.output_weight.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_a_teacher_of_other_tokens_is_refused_with_the_way_out(
    teacher: Path, documents: Path, tmp_path: Path
) -> None:
    for size, how in ((300, "320 entries against 300"), (320, "not the same ones")):
        other = train_tokenizer(OTHER_TEXT, size)
        sizes = dataclasses.replace(SMALL, vocab_size=other.vocab_size)
        student = save_folder(random_model(sizes), other, tmp_path / f"student {size}")
        run = tmp_path / "run"
        assert other.vocab_size == size
        with pytest.raises(UserError) as refused:
            distill(
                teacher, student, STUDENT, documents, run / "shards", run, TRAIN, DistillConfig()
            )
        assert how in str(refused.value) and "--teacher_url" in str(refused.value)
        assert not run.exists()


def test_on_policy_learns_from_the_students_own_answers(
    teacher: Path, conversations: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    start = save_folder(random_model(SMALL, seed=8), tokenizer, tmp_path / "student")
    method = DistillConfig(
        learn_from="conversations", on_policy=1.0, divergence="reverse_kl", max_new_tokens=12
    )
    config = dataclasses.replace(TRAIN, steps=16, learning_rate=0.003)
    distill(teacher, start, STUDENT, conversations, run / "shards", run, config, method)
    own = logged(run, "heldout_own_divergence")
    assert own[-1] < 0.9 * own[0]
    assert 0 < min(logged(run, "answer_tokens")) <= 13


def test_of_the_students_answers_no_cross_entropy_is_taken(
    conversations: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    ids = [[4, 5, 6, 7, 8], [9, 10, 11, 12]]
    rows = [(one, [True] * len(one)) for one in ids]
    write_shards(tmp_path / "s", rows, tokenizer.hash, tokenizer.vocab_size, {}, has_labels=True)
    reader = ShardReader(tmp_path / "s", tokenizer.hash)
    method = DistillConfig(alpha=1.0, learn_from="conversations", on_policy=0.5, max_new_tokens=6)
    config = dataclasses.replace(TRAIN, batch_tokens=64, max_seq_len=32)
    student, tutor = random_model(SMALL, seed=1), laid_out(random_model(SMALL, seed=2))
    asked: list[dict[str, Any]] = [{"prompt": "a"}, {"prompt": "b"}]
    stage = OnPolicyStage(tutor, reader, None, config, tokenizer, method, asked, [])
    with torch.no_grad():
        stage.collect(0, lambda: student)
    batch = stage.batch(0)
    assert batch.own[:, 0].tolist() == [0.0] + [1.0] * (len(batch.tokens) - 1)
    assert len(batch.tokens) > 1
    whole, text = stage.loss(student, batch)[0], stage.loss(student, batch.rows(0, 1))[1]
    own = stage.loss(student, batch.rows(1, len(batch.tokens)))[1]
    # All of alpha: the text's cross-entropy alone, and of the answers the divergence alone.
    assert whole.item() == pytest.approx(float(text["cross_entropy"] + own["divergence"]), rel=1e-5)


def test_adapters_of_a_student_learn_alone(
    teacher: Path, documents: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    run, base = tmp_path / "run", random_model(SMALL, seed=8)
    start = save_folder(base, tokenizer, tmp_path / "student")
    lora = LoraConfig(lora=True, lora_rank=4)
    given = (documents, run / "shards", run, TRAIN, DistillConfig())
    folder = distill(teacher, start, STUDENT, *given, lora=lora)
    model, _ = load_folder(folder)
    assert torch.equal(model.output_weight, base.output_weight)
    divergence = logged(run, "divergence")
    assert divergence[-1] < 0.95 * divergence[0]
    with pytest.raises(UserError, match="--from"):
        distill(teacher, None, STUDENT, *given, lora=lora)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "needs one teacher"),
        (["--teacher", "a", "--teacher_url", "b"], "needs one teacher"),
        (["--teacher", "nowhere"], "nowhere: no such folder"),
        (["--teacher_url", "http://127.0.0.1:9"], "needs a model to start from"),
        (["--teacher", "a", "--on_policy", "0.5"], "add --learn_from conversations"),
        (["--teacher", "a", "--divergence", "kl"], "forward_kl"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["distill", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and told in error and error.count("\n") == 1


def test_the_command_makes_a_smaller_model(teacher: Path, documents: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sizes = ["hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size"]
    main(
        ["distill", "--teacher", str(teacher), "--data", str(documents), "--out", str(run),
         "--steps", "2", "--batch_tokens", "128", "--max_seq_len", "64", "--compile", "off",
         "--top_k", "8", "--temperature", "2", "--device", "cpu",
         *(f"--model.{name}={getattr(STUDENT, name)}" for name in sizes)]
    )  # fmt: skip
    model, _ = load_folder(run)
    assert model.config.num_layers == 1 and model.config.hidden_size == 32
