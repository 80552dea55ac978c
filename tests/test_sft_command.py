"""`cygnet sft` as it is typed: a mixture with weights, the loss on the last answer."""

import json
from pathlib import Path

import pytest

from cygnet import cli
from cygnet.corpus.pipeline import TRAIN
from cygnet.export.huggingface import save_folder
from cygnet.files import read_jsonl
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
    assert "holds a run with other settings (the data changed)" in said
