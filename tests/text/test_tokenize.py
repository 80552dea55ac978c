import json
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.errors import UserError
from cygnet.files import JsonlWriter
from cygnet.messages import parse_messages, validate
from cygnet.text.chat import encode_chat
from cygnet.text.loader import IGNORE, PackedLoader
from cygnet.text.shards import ShardReader
from cygnet.text.tokenize import (
    LossOn,
    NothingToLearnError,
    tokenize_conversations,
    tokenize_documents,
)
from tests.conversations import HOSTILE, conversations, said, tool_lists
from tests.shards import stored_documents

USER = {"role": "user", "content": "Who stirs the soup?"}
ANSWER = {"role": "assistant", "content": "The cook stirs <|im_end|> it."}
FIELDS = ("num_rows", "num_used", "num_cut", "num_too_long", "num_invalid", "num_without_label")


def write(path, rows):
    with JsonlWriter(path) as file:
        for row in rows:
            file.write(row)
    return path


def tokenized(tmp_path, rows, tokenizer, max_seq_len=512, loss_on="assistant"):
    tmp_path.mkdir(exist_ok=True)
    path = write(tmp_path / "rows.jsonl.zst", rows)
    summary = tokenize_conversations(path, tokenizer, tmp_path / "s", max_seq_len, loss_on)
    return ShardReader(tmp_path / "s", tokenizer.hash), summary


def counts(summary):
    return {f: getattr(summary, f) for f in FIELDS if getattr(summary, f)}


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.text(max_size=20)), unique=True))
def test_documents_are_stored_whole_in_the_order_of_their_id(tmp_path_factory, tokenizer, pairs):
    folder = tmp_path_factory.mktemp("d")
    rows = [{"id": f"{key:016x}", "text": text} for key, text in pairs]
    path = write(folder / "d.jsonl.zst", rows)
    expected = [text for _, text in sorted(pairs, key=lambda pair: pair[0]) if text]
    if not expected:
        with pytest.raises(UserError, match="no document with text"):
            tokenize_documents(path, tokenizer, folder / "s")
        return
    tokenize_documents(path, tokenizer, folder / "s")
    reader = ShardReader(folder / "s", tokenizer.hash)
    eos = tokenizer.eos_id
    found = [ids.tolist() for ids, _ in stored_documents(reader)]
    assert all(ids[0] == ids[-1] == eos for ids in found)
    assert [tokenizer.decode(ids[1:-1]) for ids in found] == expected
    assert [path.name for path in (folder / "s").iterdir() if "shard" not in path.name] == [
        "manifest.json"
    ]


def test_conversations_learn_what_the_assistant_says(tmp_path, tokenizer):
    reader, summary = tokenized(
        tmp_path, [{"messages": [USER, ANSWER]}, {"prompt": "床", "response": "bed"}], tokenizer
    )
    assert counts(summary) == {"num_rows": 2, "num_used": 2}
    said = []
    for ids, labels in stored_documents(reader):
        assert ids[-1] == tokenizer.eos_id and not labels[-1]
        said.append(tokenizer.decode(ids[labels == 1].tolist()))
    assert said == [ANSWER["content"] + "<|im_end|>", "bed<|im_end|>"]
    loader = PackedLoader(reader, 1, 512, seed=0)
    batch = loader.batch(0)
    assert batch.num_labels == summary.num_labels == sum(int(s.labels.sum()) for s in reader.shards)
    assert summary.num_tokens == reader.num_tokens
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["source"]["summary"]["num_used"] == 2


@settings(max_examples=60)
@given(
    st.lists(st.tuples(conversations(HOSTILE), tool_lists(HOSTILE)), min_size=1, max_size=4),
    st.sampled_from(get_args(LossOn)),
    st.integers(10, 400),
)
def test_labels_in_a_batch_decode_to_whole_answers(
    tmp_path_factory, tokenizer, rows, loss_on, max_seq_len
):
    """Through shards and packing, with tools, calls and reasoning, whole or cut at a turn."""
    folder = tmp_path_factory.mktemp("c")
    path = write(folder / "c.jsonl", [{"messages": m, "tools": tools} for m, tools in rows])
    expected = []
    for given_messages, tools in rows:
        messages = parse_messages({"messages": given_messages})
        if is_valid(messages) and (kept := fitting(tokenizer, messages, tools, max_seq_len)):
            ids = encode_chat(tokenizer, kept, tools).ids
            turns = said(kept)
            everything = tokenizer.decode([*ids[1:], tokenizer.eos_id])
            learnt = {"assistant": "".join(turns), "last": turns[-1], "all": everything}
            expected.append((ids, learnt[loss_on]))
    if not expected:
        with pytest.raises(NothingToLearnError):
            tokenize_conversations(path, tokenizer, folder / "s", max_seq_len, loss_on)
        return
    summary = tokenize_conversations(path, tokenizer, folder / "s", max_seq_len, loss_on)
    loader = PackedLoader(ShardReader(folder / "s", tokenizer.hash), 1, max_seq_len, seed=0)
    batch = loader.take(0, loader.num_rows)
    found = []
    for row in range(loader.num_rows):
        for number in range(int(batch.document_ids[row].max()) + 1):
            inside = batch.document_ids[row] == number
            labels = batch.labels[row][inside]
            text = tokenizer.decode(labels[labels != IGNORE].tolist())
            found.append((batch.tokens[row][inside].tolist(), text))
    assert sorted(found) == sorted(expected)
    assert summary.num_labels == batch.num_labels
    assert summary.num_used == len(expected)


def is_valid(messages):
    try:
        validate(messages)
    except UserError:
        return False
    return True


def fitting(tokenizer, messages, tools, max_seq_len):
    """Return the whole conversation, or the longest part up to an answer that fits, or None."""
    ends = [i + 1 for i, message in enumerate(messages) if message["role"] == "assistant"]
    for end in sorted({*ends, len(messages)}, reverse=True):
        if len(encode_chat(tokenizer, messages[:end], tools).ids) <= max_seq_len:
            return messages[:end]
    return None


def test_a_weight_says_how_often_a_row_is_seen(tmp_path, tokenizer):
    def asked(number):
        return {"messages": [{"role": "user", "content": f"Soup {number}?"}, ANSWER]}

    rows = [asked(n) | {"weight": w, "kind": str(w)} for w in (0.25, 2, 1.5) for n in range(400)]
    reader, summary = tokenized(tmp_path, rows, tokenizer)
    names = [reader.kinds[number] for shard in reader.shards for number in shard.kinds]
    assert names.count("2") == 800
    assert names.count("0.25") == pytest.approx(100, abs=30)
    assert names.count("1.5") == pytest.approx(600, abs=30)
    assert summary.num_rows == 1200 and summary.num_used == 1200 - summary.num_left_out
    assert summary.num_left_out == 400 - names.count("0.25")
    assert summary.num_labels == sum(summary.labels_of.values())
    assert summary.labels_of["2"] / summary.num_labels == pytest.approx(
        names.count("2") / len(names)
    )
    again, _ = tokenized(tmp_path / "again", list(reversed(rows)), tokenizer)

    def drawn(reader):
        return sorted(tokenizer.decode(ids.tolist()) for ids, _ in stored_documents(reader))

    assert drawn(again) == drawn(reader)  # what is drawn does not hang on the order


def test_rows_that_cannot_be_learnt_from_are_counted_and_named(tmp_path, tokenizer, capsys):
    rows = [
        {"messages": [USER]},
        {"messages": [USER, ANSWER, ANSWER]},
        {"text": "soup"},
        {"messages": [USER, ANSWER]},
        {"messages": [USER, {"role": "assistant", "content": ""}]},
    ]
    reader, summary = tokenized(tmp_path, rows, tokenizer)
    assert reader.num_documents == 1
    assert counts(summary) == {"num_rows": 5, "num_used": 1, "num_invalid": 4}
    assert [problem.split(": ")[0] for problem in summary.problems] == [
        f"rows.jsonl.zst:{line}" for line in (1, 2, 3, 5)
    ]
    assert "no assistant message" in summary.problems[0]
    said = "1 of 5 rows used; 4 invalid; first: rows.jsonl.zst:1: "
    assert said in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match=r"no row can be learnt from; rows\.jsonl\.zst:1: "):
        tokenized(tmp_path, rows[:1], tokenizer)


def test_a_template_that_shows_no_assistant_leaves_a_row_without_label(tmp_path, tokenizer):
    from cygnet.text.tokenizer import Tokenizer

    other = Tokenizer(tokenizer._inner, "{{ messages[0].content }}<|im_end|>")
    with pytest.raises(UserError, match="nothing in it is said by the assistant"):
        tokenized(tmp_path, [{"messages": [USER, ANSWER]}], other)


@pytest.mark.parametrize("max_seq_len", range(10, 140, 7))
def test_a_row_longer_than_the_context_is_cut_behind_an_answer(tmp_path, tokenizer, max_seq_len):
    turns = [USER, ANSWER] * 3
    rows = [{"messages": turns}, {"messages": [{"role": "user", "content": "a"}, ANSWER]}]
    path = write(tmp_path / "rows.jsonl.zst", rows)
    whole = tokenize_conversations(path, tokenizer, tmp_path / "whole", 10**6)
    assert whole.num_used == 2 and not whole.num_cut
    try:
        summary = tokenize_conversations(path, tokenizer, tmp_path / "s", max_seq_len)
    except UserError as error:
        assert "the context holds" in str(error)
        return
    reader = ShardReader(tmp_path / "s")
    assert summary.num_used == reader.num_documents
    assert summary.num_used + summary.num_too_long == 2
    kept, full = stored_documents(reader), stored_documents(ShardReader(tmp_path / "whole"))
    pairs = list(zip(kept, full[-len(kept) :], strict=True))
    for (ids, labels), (source, _) in pairs:
        assert len(ids) - 1 <= max_seq_len
        assert np.array_equal(ids[:-1], source[: len(ids) - 1])
        assert tokenizer.decode(ids[labels == 1].tolist()).endswith("<|im_end|>")
    assert PackedLoader(reader, 1, max_seq_len, seed=0).num_rows
    assert summary.num_cut == sum(len(ids) < len(source) for (ids, _), (source, _) in pairs)


def test_the_longest_row_that_fits_is_not_cut(tmp_path, tokenizer):
    rows = [{"messages": [USER, ANSWER] * 2}]
    reader, _ = tokenized(tmp_path, rows, tokenizer)
    positions = reader.num_tokens - 1
    _, fitting = tokenized(tmp_path, rows, tokenizer, max_seq_len=positions)
    _, cut = tokenized(tmp_path, rows, tokenizer, max_seq_len=positions - 1)
    assert (fitting.num_cut, cut.num_cut) == (0, 1)


def test_shards_that_are_made_again_say_why(tmp_path, tokenizer, capsys):
    def said_of(rows, max_seq_len=512, loss_on="assistant"):
        capsys.readouterr()
        tokenized(tmp_path, rows, tokenizer, max_seq_len, loss_on)
        return " ".join(capsys.readouterr().err.split())

    rows = [{"messages": [USER, ANSWER]}]
    assert said_of(rows) == ""
    assert said_of(rows) == ""
    assert "tokens made again, for loss_on changed" in said_of(rows, loss_on="last")
    assert said_of(rows, loss_on="last") == ""
    assert "made again, for max_seq_len and loss_on changed" in said_of(rows, 500)
    assert "tokens made again, for its text changed" in said_of(rows * 2, 500)
    file = tmp_path / "s" / "shard_00000.labels"
    file.write_bytes(b"x" + file.read_bytes()[1:])
    assert f"tokens: made again, for {file}: damaged" in said_of(rows * 2, 500)
    manifest = tmp_path / "s" / "manifest.json"
    foreign = json.loads(manifest.read_text()) | {"tokenizer_hash": "a" * 64}
    manifest.write_text(json.dumps(foreign))
    assert "s: made with another tokenizer" in said_of(rows * 2, 500)
    assert said_of(rows * 2, 500) == ""


def test_a_cut_row_is_named_by_the_persons_own_file(tmp_path, tokenizer, capsys):
    long = {"messages": [USER, ANSWER] * 3}
    short = {"messages": [{"role": "user", "content": "a"}, ANSWER]}
    rows = [*[long] * 30, *[long | {"source": f"mine.jsonl:{n}"} for n in (4, 9)], short]
    _, whole = tokenized(tmp_path, [long], tokenizer)
    _, summary = tokenized(tmp_path, rows, tokenizer, whole.num_tokens // 2)
    assert summary.num_cut == 32 and len(summary.problems) == 20
    named = [problem.partition(": ")[0] for problem in summary.problems]
    assert named[:3] == ["mine.jsonl:4", "mine.jsonl:9", "rows.jsonl.zst:1"]
    assert "32 cut to the context; first: mine.jsonl:4: " in " ".join(
        capsys.readouterr().err.split()
    )


def test_an_answer_of_weight_zero_is_read_and_not_learnt(tmp_path, tokenizer):
    """As in OpenAI's format for fine-tuning."""
    said = [
        {"role": "assistant", "content": text, "weight": w} for text, w in (("no", 0), ("yes", 1))
    ]
    rows = [{"messages": [USER, said[0], USER, said[1]]}]
    reader, summary = tokenized(tmp_path, rows, tokenizer)
    ids, labels = reader.document(0)
    learnt = tokenizer.decode([i for i, is_label in zip(ids, labels, strict=True) if is_label])
    assert learnt.startswith("yes") and "no" in tokenizer.decode(list(ids))
    assert summary.num_labels == int(labels.sum())
    last_is_not = [{"messages": [USER, said[1], USER, said[0]]}]
    with pytest.raises(NothingToLearnError):
        tokenized(tmp_path, last_is_not, tokenizer, 512, "last")
