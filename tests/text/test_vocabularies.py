"""Vocabularies of other makers, measured; other sizes of ours."""

import base64
import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.errors import UserError
from cygnet.files import JsonlWriter
from cygnet.text.learn import PLOT, make_tokenizer, report_vocabularies
from cygnet.text.measure import ALL, HeldOutText, measure_tokenizer
from cygnet.text.sample import SampleConfig
from cygnet.text.sweep import first_entries, sweep
from cygnet.text.tokenizer import train_tokenizer
from cygnet.text.vocabularies import load_vocabulary, vocabulary_files
from tests.conversations import TEXTS

TOKENS = [bytes([byte]) for byte in range(256)] + [b"ab", b"cd", b"abcd", b" ab", b"\xe6\x9c\x88"]
RANKS = b"".join(b"%s %d\n" % (base64.b64encode(t), rank) for rank, t in enumerate(TOKENS))


def merged(word: str) -> list[int]:
    """Return the ids of one word as tiktoken finds them: itself, or the lowest rank first."""
    ranks = {token: rank for rank, token in enumerate(TOKENS)}
    if word.encode() in ranks:
        return [ranks[word.encode()]]
    parts = [bytes([byte]) for byte in word.encode()]
    while True:
        pairs = [ranks.get(a + b, 10**9) for a, b in pairwise(parts)]
        if not pairs or min(pairs) == 10**9:
            return [ranks[part] for part in parts]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "cl100k_tiny.tiktoken"
    path.write_bytes(RANKS)
    return load_vocabulary(path)


@settings(max_examples=100)
@given(st.text("abcd月", min_size=1, max_size=12))
def test_a_rank_file_cuts_a_word_as_tiktoken_does(ranked, word):
    assert ranked.encode([word]) == [merged(word)]
    assert ranked.num_entries == len(TOKENS) and ranked.name == "cl100k_tiny"


def test_rank_files_are_cut_as_their_makers_do_and_unknown_ones_are_said(tmp_path, capsys):
    ids = {}
    for name in ("cl100k_x", "o200k_x", "r50k_x", "qwen", "mine"):
        (tmp_path / f"{name}.tiktoken").write_bytes(RANKS + b"%s 261" % base64.b64encode(b"123"))
        ids[name] = len(load_vocabulary(tmp_path / f"{name}.tiktoken").encode(["123"])[0])
    assert ids == {"cl100k_x": 1, "o200k_x": 1, "r50k_x": 1, "qwen": 3, "mine": 1}
    assert capsys.readouterr().err.count("not known") == 1


def test_json_files_of_three_makers_are_read(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "ours")
    ours = load_vocabulary(tmp_path / "ours" / "tokenizer.json")
    assert ours.encode(TEXTS) == tokenizer.encode_batch(TEXTS)
    assert (ours.name, ours.num_entries) == ("ours", tokenizer.vocab_size)
    encoded = [base64.b64encode(token).decode() for token in TOKENS]
    tekken = {
        "config": {
            "pattern": r"\p{L}+",
            "default_vocab_size": 265,
            "default_num_special_tokens": 4,
        },
        "vocab": [{"rank": rank, "token_bytes": t} for rank, t in enumerate([*encoded, "ZWU="])],
    }
    (tmp_path / "tekken_1.json").write_text(json.dumps(tekken))
    claude = {"pat_str": r"\p{L}+", "bpe_ranks": f"! 5 {' '.join(encoded)}"}
    (tmp_path / "claude.json").write_text(json.dumps(claude))
    for name in ("tekken_1", "claude"):
        found = load_vocabulary(tmp_path / f"{name}.json")
        assert found.encode(["abcd 月", "ee"]) == [[258, 32, 260], [101, 101]]
        assert (found.name, found.num_entries) == (name, 261)
    files = vocabulary_files([tmp_path, tmp_path / "claude.json"])
    assert {file.name for file in files} == {"tokenizer.json", "tekken_1.json", "claude.json"}
    assert len(files) == 3


def protobuf(*fields: tuple[int, bytes | int]) -> bytes:
    def number(value: int) -> bytes:
        more = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
        return bytes([part | 0x80 for part in more[:-1]] + more[-1:])

    return b"".join(
        number(key << 3) + number(value)
        if isinstance(value, int)
        else number(key << 3 | 2) + number(len(value)) + value
        for key, value in fields
    )


def test_a_sentencepiece_bpe_is_read_and_its_unknown_characters_are_bytes(tmp_path):
    pieces = [protobuf((1, b"<unk>"), (3, 2))]
    pieces += [protobuf((1, b"<0x%02X>" % byte), (3, 6)) for byte in range(256)]
    pieces += [protobuf((1, text.encode())) for text in ("ab", "▁ab", "▁", "a", "b")]
    content = protobuf(*((1, piece) for piece in pieces), (2, protobuf((3, 2))))
    path = tmp_path / "tiny.model"
    path.write_bytes(content)
    found = load_vocabulary(path)
    assert found.encode(["ab aba", "é"]) == [[258, 258, 260], [259, 1 + 0xC3, 1 + 0xA9]]
    path.write_bytes(protobuf(*((1, piece) for piece in pieces), (2, protobuf((3, 1)))))
    with pytest.raises(UserError, match="no BPE"):
        load_vocabulary(path)


def test_what_is_no_vocabulary_is_named(tmp_path):
    with pytest.raises(UserError, match="not there"):
        vocabulary_files([tmp_path / "none"])
    with pytest.raises(UserError, match="no vocabulary there"):
        vocabulary_files([tmp_path])
    for name in ("a.json", "a.tiktoken", "a.model"):
        (tmp_path / name).write_text("[1, 2")
        with pytest.raises(UserError, match=rf"{name}: no vocabulary that can be read"):
            load_vocabulary(tmp_path / name)


ROWS = [{"text": text, "domain": f"d{n % 2}"} for n, text in enumerate(TEXTS)]


def test_a_measure_counts_bytes_words_and_entries(tokenizer):
    rows = [{"text": "明月 cook", "domain": "a"}, {"text": "soup", "domain": "b"}]
    found = measure_tokenizer(tokenizer, HeldOutText.of([*rows, {"text": "", "domain": "c"}]))
    ids = [tokenizer.encode(row["text"]) for row in rows]
    assert found.by_domain == {
        "a": 11 / len(ids[0]), "b": 4 / len(ids[1]), ALL: 15 / (len(ids[0]) + len(ids[1])),
    }  # fmt: skip
    assert found.by_language == {"latin": found.by_domain[ALL]}
    assert found.tokens_per_word == (len(ids[0]) + len(ids[1])) / 4
    assert found.used == len({*ids[0], *ids[1]}) / tokenizer.vocab_size


@pytest.mark.parametrize("size", [265, 266, 300, 419, 420])
def test_a_smaller_vocabulary_is_the_beginning_of_a_larger_one(tokenizer, size):
    assert first_entries(tokenizer, size).hash == train_tokenizer(TEXTS, size).hash


def test_a_sweep_measures_each_size_and_leaves_out_what_the_text_is_too_short_for(tokenizer):
    text = HeldOutText.of(ROWS)
    found = sweep(TEXTS, [400, 300, 10**6], text)
    assert [row.num_entries for row in found] == [300, 400]
    for row in found:
        alone = measure_tokenizer(train_tokenizer(TEXTS, row.num_entries), text)
        assert row.by_domain == alone.by_domain and row.used == alone.used
    with pytest.raises(UserError, match="--sweep 100"):
        sweep(TEXTS, [100, 300], text)


def test_the_report_holds_others_and_other_sizes_beside_it(tmp_path, ranked):
    path = tmp_path / "d.jsonl"
    with JsonlWriter(path) as file:
        for row in ROWS:
            file.write(row)
    out = tmp_path / "tokenizer"
    made = make_tokenizer(path, out, 400)
    report_vocabularies(out, path, path, [ranked], [300, 400], 64, SampleConfig())
    report = json.loads((out / "report.json").read_text())
    assert report["hash"] == made.hash
    own = {name: value for name, value in report["measured"]["by_domain"].items() if name != ALL}
    assert report["bytes_per_token"] == own
    assert [row["name"] for row in report["compared"]] == ["cl100k_tiny"]
    assert [row["num_entries"] for row in report["sweep"]] == [300, 400]
    assert report["sweep"][1]["by_domain"] == report["measured"]["by_domain"]
    told = (out / "report.md").read_text(encoding="utf-8")
    assert "| this one | 400 |" in told and "| cl100k_tiny | 261 |" in told and "| 0.03 M |" in told
    assert (out / PLOT).read_bytes().startswith(b"\x89PNG")


def test_a_sample_is_learnt_from_and_said(tmp_path, capsys):
    path = tmp_path / "d.jsonl"
    with JsonlWriter(path) as file:
        for number in range(500):
            file.write({"text": f"{number} {TEXTS[number % len(TEXTS)]}", "domain": "demo"})
    make_tokenizer(path, tmp_path / "t", 300, sampling=SampleConfig(sample_mb=0.005))
    report = json.loads((tmp_path / "t" / "report.json").read_text())
    assert report["sample"] and all(0 < share < 1 for share in report["sample"].values())
    assert "learnt from" in capsys.readouterr().err
