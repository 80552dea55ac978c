import json
import sys
import unicodedata

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cygnet.errors import UserError
from cygnet.files import JsonlWriter
from cygnet.text.learn import make_tokenizer
from cygnet.text.tokenizer import (
    SPECIAL_TOKENS,
    Tokenizer,
    train_tokenizer,
)
from tests.conversations import TEXTS

any_text = st.lists(st.one_of(st.text(), st.sampled_from([*SPECIAL_TOKENS, *TEXTS]))).map("".join)
quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(any_text)
def test_decoding_gives_back_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decoding_gives_back_every_character_of_unicode(tokenizer):
    characters = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) != "Cs"]
    texts = ["".join(characters[i : i + 500]) for i in range(0, len(characters), 500)]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


@quick
@given(st.text(st.one_of(st.characters(categories=["Cs"]), st.sampled_from("a月 "))))
def test_a_lone_surrogate_is_read_as_the_replacement_character(tokenizer, text):
    expected = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected


@quick
@given(any_text)
def test_text_never_becomes_a_control_token(tokenizer, text):
    special = set(tokenizer.special_ids.values())
    assert not special & set(tokenizer.encode(text))
    assert not special & set(tokenizer.encode_batch([text])[0])


@quick
@given(st.lists(any_text, max_size=4))
def test_a_batch_is_each_text_alone(tokenizer, texts):
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@quick
@given(st.lists(st.integers(0, 500), max_size=30))
def test_token_bytes_joined_are_the_decoded_text(tokenizer, numbers):
    ids = [number % tokenizer.vocab_size for number in numbers]
    joined = b"".join(map(tokenizer.token_bytes, ids))
    assert tokenizer.decode(ids) == joined.decode("utf-8", "replace")
    assert tokenizer.decode(ids) == tokenizer._inner.decode(ids, skip_special_tokens=False)


def test_control_tokens_have_the_first_ids_and_can_be_left_out(tokenizer):
    assert [tokenizer.special_ids[token] for token in SPECIAL_TOKENS] == list(range(9))
    ids = [tokenizer.im_start_id, *tokenizer.encode("cook"), tokenizer.im_end_id, tokenizer.eos_id]
    assert tokenizer.decode(ids) == "<|im_start|>cook<|im_end|><|endoftext|>"
    assert tokenizer.decode(ids, skip_special=True) == "cook"


def test_digits_are_tokens_of_their_own_and_no_token_holds_two_han_characters():
    tokenizer = train_tokenizer(["明月明月 2026 2026 "] * 50, vocab_size=400)
    tokens = [tokenizer.decode([i]) for i in range(9, tokenizer.vocab_size)]
    assert "明" in tokens and "月" in tokens
    assert not [t for t in tokens if "明月" in t or ("20" in t)]


def test_training_twice_gives_the_same_tokenizer(tokenizer):
    assert train_tokenizer(iter(TEXTS), vocab_size=420).hash == tokenizer.hash
    assert train_tokenizer(TEXTS, vocab_size=400).hash != tokenizer.hash


def test_a_saved_tokenizer_loads_as_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.hash == tokenizer.hash
    assert loaded.chat_template == tokenizer.chat_template
    loaded.save(tmp_path / "again")
    for file in tmp_path.glob("*.*"):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parametrize("model_type", [None, "qwen3"])
def test_transformers_loads_the_folder_with_the_same_ids(tokenizer, tmp_path, model_type):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    if model_type:
        config = {"model_type": model_type, "architectures": ["Qwen3ForCausalLM"]}
        (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)

    @settings(max_examples=50)
    @given(st.one_of(st.text(), st.sampled_from(TEXTS)))
    def same(text):
        # A control token spelt in a text is one to transformers, and ordinary text to us.
        assume(not any(token in text for token in SPECIAL_TOKENS))
        ids = tokenizer.encode(text)
        assert theirs.encode(text, add_special_tokens=True) == ids
        assert theirs.decode(ids) == text

    same()
    assert theirs.eos_token_id == tokenizer.im_end_id
    assert theirs.pad_token_id == tokenizer.eos_id
    assert theirs.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(9))


def test_a_small_corpus_gives_a_smaller_vocabulary_that_works(capsys):
    tokenizer = train_tokenizer(["ab ab"], vocab_size=6400)
    assert tokenizer.vocab_size < 300
    assert f"{tokenizer.vocab_size} entries, not 6400" in capsys.readouterr().err
    assert tokenizer.decode(tokenizer.encode("完全 different 🦢")) == "完全 different 🦢"


def test_what_cannot_be_learnt_from_is_refused():
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([""])
    with pytest.raises(UserError, match="vocab_size: 100"):
        train_tokenizer(["text"], vocab_size=100)


def test_a_folder_without_a_tokenizer_or_with_a_damaged_one_is_named(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(UserError, match=r"tokenizer\.json: damaged"):
        Tokenizer.load(tmp_path)


def test_make_tokenizer_writes_a_folder_with_a_report(tmp_path):
    with JsonlWriter(tmp_path / "train.jsonl.zst") as file:
        for text in TEXTS:
            file.write({"text": text, "domain": "demo"})
    made = make_tokenizer(tmp_path / "train.jsonl.zst", tmp_path / "tokenizer", vocab_size=500)
    assert Tokenizer.load(tmp_path / "tokenizer").hash == made.hash
    report = json.loads((tmp_path / "tokenizer" / "report.json").read_text())
    assert report["bytes_per_token"]["demo"] > 1
    assert report["vocab_size"] == made.vocab_size
