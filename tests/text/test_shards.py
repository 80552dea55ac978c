import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.errors import UserError
from cygnet.files import sha256_file
from cygnet.text.shards import ShardReader, write_shards
from tests.shards import stored_documents

DOCUMENTS = [([1, 2, 3], [False, True, True]), ([4], [False]), ([5, 6], [True, False])]
SOURCE = {"file": "demo"}


def write(folder, documents=DOCUMENTS, vocab_size=600, **options):
    return write_shards(folder, documents, "a" * 64, vocab_size, SOURCE, **options)


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 69_999), st.booleans()), max_size=9), max_size=9),
    st.sampled_from([70_000, 600]),
    st.booleans(),
    st.integers(1, 20),
)
def test_what_is_written_is_read(tmp_path_factory, documents, vocab_size, has_labels, shard_tokens):
    folder = tmp_path_factory.mktemp("shards")
    wanted = [
        ([i % vocab_size for i, _ in document], [label for _, label in document])
        for document in documents
    ]
    options = {"has_labels": has_labels, "shard_tokens": shard_tokens}
    manifest = write(folder / "s", wanted, vocab_size, **options)
    reader = ShardReader(folder / "s", "a" * 64)
    assert reader.num_documents == manifest["num_documents"] == len(wanted)
    assert reader.num_tokens == sum(len(ids) for ids, _ in wanted)
    for shard in reader.shards:
        num_filled = int((np.diff(shard.offsets.astype(np.int64)) > 0).sum())
        assert len(shard.tokens) <= shard_tokens or num_filled == 1
    for (found, labels), (ids, is_label) in zip(stored_documents(reader), wanted, strict=True):
        assert found.tolist() == ids
        assert (labels is None) is not has_labels
        assert labels is None or labels.astype(bool).tolist() == is_label


def test_kinds_beyond_the_first_255_are_one(tmp_path):
    documents = [([1, 2], [True, True], f"kind {i % 300}") for i in range(600)]
    write(tmp_path / "s", documents, has_labels=True, has_kinds=True, shard_tokens=100)
    reader = ShardReader(tmp_path / "s")
    found = [reader.kinds[number] for shard in reader.shards for number in shard.kinds]
    assert found == [f"kind {i % 300}" if i % 300 < 255 else "other" for i in range(600)]


def test_the_bytes_are_as_documented(tmp_path):
    documents = [(*document, kind) for document, kind in zip(DOCUMENTS, "aba", strict=True)]
    write(tmp_path / "s", documents, has_labels=True, has_kinds=True)
    assert (tmp_path / "s" / "shard_00000.kinds").read_bytes() == b"\0\1\0"
    tokens = (tmp_path / "s" / "shard_00000.tokens").read_bytes()
    assert tokens == b"\1\0\2\0\3\0\4\0\5\0\6\0"
    offsets = np.fromfile(tmp_path / "s" / "shard_00000.offsets", "<u8")
    assert offsets.tolist() == [0, 3, 4, 6]
    assert (tmp_path / "s" / "shard_00000.labels").read_bytes() == b"\0\1\1\0\1\0"


def test_the_same_documents_give_the_same_files(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_another_tokenizer_is_refused_by_name(tmp_path):
    write(tmp_path / "s")
    with pytest.raises(
        UserError, match=r"s: made with another tokenizer \(aaaaaaaaaaaa\) .*\(bbbbbbbbbbbb\)"
    ):
        ShardReader(tmp_path / "s", "b" * 64)


@pytest.mark.parametrize("suffix", ["tokens", "offsets", "labels"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "extend"])
def test_a_damaged_file_is_refused_by_name(tmp_path, suffix, harm):
    write(tmp_path / "s", has_labels=True)
    file = tmp_path / "s" / f"shard_00000.{suffix}"
    content = bytearray(file.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 4
    elif harm == "truncate":
        content.pop()
    elif harm == "extend":
        content.append(0)
    file.write_bytes(content)
    if harm == "remove":
        file.unlink()
    with pytest.raises(UserError, match=rf"shard_00000\.{suffix}: (damaged|missing)"):
        ShardReader(tmp_path / "s")


@pytest.mark.parametrize("suffix", ["tokens", "offsets", "labels", "kinds"])
def test_sizes_alone_find_what_is_cut_or_missing_and_pass_a_changed_byte(tmp_path, suffix):
    documents = [(*document, kind) for document, kind in zip(DOCUMENTS, "aba", strict=True)]
    write(tmp_path / "s", documents, has_labels=True, has_kinds=True)
    file = tmp_path / "s" / f"shard_00000.{suffix}"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert ShardReader(tmp_path / "s", check="size").num_documents == 3
    with pytest.raises(UserError, match="checksum"):
        ShardReader(tmp_path / "s")
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"{suffix}: damaged \(it has {len(content) - 1} bytes"):
        ShardReader(tmp_path / "s", check="size")


def test_no_shards_a_damaged_manifest_and_another_format_are_named(tmp_path):
    with pytest.raises(UserError, match="no token shards"):
        ShardReader(tmp_path)
    write(tmp_path / "s")
    manifest = tmp_path / "s" / "manifest.json"
    whole = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(whole | {"format": 9}))
    with pytest.raises(UserError, match="format 9"):
        ShardReader(tmp_path / "s")
    manifest.write_text('{"format": 1, ')
    with pytest.raises(UserError, match=r"manifest\.json: damaged"):
        ShardReader(tmp_path / "s")


def test_a_failure_half_way_leaves_the_earlier_shards(tmp_path):
    write(tmp_path / "s")
    before = sha256_file(tmp_path / "s" / "manifest.json")

    def breaking():
        yield DOCUMENTS[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "s", breaking())
    assert sha256_file(tmp_path / "s" / "manifest.json") == before
    ShardReader(tmp_path / "s")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
