"""`cygnet tokenizer`: sampling, comparison and sweep behind flags; run twice, it does nothing."""

import base64
import json

import pytest

from cygnet.commands.tokenizer import TokenizerCommand, tokenizer_command
from cygnet.errors import UserError
from cygnet.files import JsonlWriter, write_json
from cygnet.text.sample import SampleConfig
from tests.conversations import TEXTS


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "heldout"):
        with JsonlWriter(folder / f"{split}.jsonl.zst") as file:
            for number, text in enumerate(TEXTS):
                file.write({"text": f"{split} {number} {text}", "domain": "demo"})
    write_json(folder / "manifest.json", {"made": "here"})
    return folder


def command(data, tmp_path, **options):
    return TokenizerCommand(data=(str(data),), out=tmp_path / "t", vocab_size=300, **options)


def test_comparing_does_not_train_again_and_a_second_time_does_nothing(data, tmp_path, capsys):
    tokenizer_command(command(data, tmp_path))
    made = (tmp_path / "t" / "tokenizer.json").read_bytes()
    known = tmp_path / "known"
    known.mkdir()
    ranks = [b"%s %d" % (base64.b64encode(bytes([byte])), byte) for byte in range(256)]
    (known / "r50k_bytes.tiktoken").write_bytes(b"\n".join(ranks))
    more = {"compare": (str(known),), "sweep": (280, 300), "width": 128}
    capsys.readouterr()
    tokenizer_command(command(data, tmp_path, **more))
    told, said = capsys.readouterr()
    assert "tokenizer: up to date" in said and "comparison" not in said
    assert "| r50k_bytes | 256 | 1.00 | 1.00 |" in told and "parameters at width 128" in told
    assert (tmp_path / "t" / "plots" / "vocabulary.png").exists()
    assert (tmp_path / "t" / "tokenizer.json").read_bytes() == made
    tokenizer_command(command(data, tmp_path, **more))
    assert "comparison: up to date" in capsys.readouterr().err
    (known / "r50k_bytes.tiktoken").write_bytes(b"\n".join([*ranks, b"ICA= 256"]))
    tokenizer_command(command(data, tmp_path, **more))
    assert "comparison: made again" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "t" / "report.json").read_text())["compared"]) == 1


def test_another_sample_trains_again(data, tmp_path, capsys):
    tokenizer_command(command(data, tmp_path))
    capsys.readouterr()
    tokenizer_command(command(data, tmp_path, sampling=SampleConfig(sample_mb=1e-3)))
    said = capsys.readouterr().err
    assert "tokenizer: made again, for sample" in said and "learnt from" in said


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"sweep": (100,)}, "--sweep 100: give sizes from 265 up"),
        ({"width": 0}, "--width 0"),
        ({"compare": ("nowhere",)}, "nowhere: not there"),
    ],
)
def test_wrong_flags_are_named(data, tmp_path, wrong, why):
    with pytest.raises(UserError, match=why):
        tokenizer_command(command(data, tmp_path, **wrong))
