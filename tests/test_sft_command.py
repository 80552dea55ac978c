"""`cygnet sft` as it is typed: a mixture with weights, the loss on the last answer."""

import json
from pathlib import Path

import pytest

from cygnet import cli
from cygnet.corpus.document import TRAIN
from cygnet.export.huggingface import save_folder
from cygnet.files import read_jsonl, sha256_file
from cygnet.text.shards import ShardReader
from cygnet.text.tokenizer import train_tokenizer
from tests.models import random_model

TOOLS = [{"type": "function", "function": {"name": "count", "description": "Count letters."}}]


def conversation(number: int, name: str) -> dict:
    word = "abcdefgh"[number % 8] * (number + 1)
    call = {"function": {"name": "count", "arguments": {"text": word}}}
    return {
        "tools": json.dumps(TOOLS),
        "messages": [
            {"role": "user", "content": f"{name}: how long is {word}, the word of row {number}?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": str(number + 1)},
            {"role": "assistant", "content": f"It has {number + 1} letters."},
        ],
    }


def test_a_refused_command_leaves_what_another_run_learnt_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [conversation(i, "a") for i in range(24)]
    for name, own in (("a", rows), ("b", rows[:20])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)))
    text = json.dumps([rows, TOOLS])
    save_folder(random_model(), train_tokenizer([text] * 2, 320), tmp_path / "start")
    out = tmp_path / "tuned"

    def tune(data: str, *more: str) -> None:
        typed = (
            f"sft --from {tmp_path}/start --data {tmp_path}/{data}.jsonl --out {out} --steps 1 "
            "--instructions.small_talk_repeats 0 --batch_tokens 512 --max_seq_len 512 "
            "--compile off --device cpu"
        ).split()
        cli.main([*typed, *more])

    def contents() -> dict[str, str]:
        """All but what can be made anew at any time: shards, and parts of the data."""
        files = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
        made_anew = ("shards", ".data.parts")
        return {
            str(path): sha256_file(out / path) for path in files if path.parts[0] not in made_anew
        }

    tune("a")
    before = contents()
    for more in (("b",), ("a", "--max_seq_len", "448"), ("a", "--loss_on", "last")):
        with pytest.raises(SystemExit):
            tune(*more)
        assert "give another --out" in capsys.readouterr().err
        assert contents() == before
    tune("a")  # is up to date again
    assert contents() == before
    tune("b", "--resume", "never")
    assert (out / "model").exists() and (tmp_path / "tuned.old-1" / "model").exists()


def test_a_mixture_and_its_loss_are_as_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {name: [conversation(i, name) for i in range(24)] for name in ("a", "b")}
    for name, own in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)))
    text = json.dumps([rows, TOOLS])
    save_folder(random_model(), train_tokenizer([text] * 2, 320), tmp_path / "start")
    out = tmp_path / "tuned"
    typed = (
        f"sft --from {tmp_path}/start --data {tmp_path}/a.jsonl=2 {tmp_path}/b.jsonl=0.5 "
        f"--loss_on last --instructions.small_talk_repeats 0 --out {out} --steps 2 --batch_tokens "
        "1024 --max_seq_len 512 --log_every 1 --compile off --device cpu"
    ).split()
    cli.main(typed)
    reader = ShardReader(out / "shards/train")
    kinds = [reader.kinds[number] for shard in reader.shards for number in shard.kinds]
    summary = reader.manifest["source"]["summary"]
    groups = [row["group"] for row in read_jsonl(out / "instructions" / TRAIN)]
    assert kinds.count("a") == 2 * groups.count("a")
    assert kinds.count("b") == groups.count("b") - summary["num_left_out"]
    assert 0 < kinds.count("b") < groups.count("b")
    assert "tokens to learn: a " in capsys.readouterr().err
    # Of each conversation the last answer alone, not the call before it.
    assert summary["labels_of"].keys() == {"a", "b"}
    for number in range(reader.num_documents):
        _, labels = reader.document(number)
        assert labels is not None and (labels[1:] > labels[:-1]).sum() == 1
    with pytest.raises(SystemExit):
        cli.main([word.replace("a.jsonl=2", "a.jsonl=3") for word in typed])
    said = capsys.readouterr().err
    assert "made again, for weights was a.jsonl=2 b.jsonl=0.5, now a.jsonl=3 b.jsonl=0.5" in said
    assert "learnt from it as it is; give another --out, or --resume never" in said
