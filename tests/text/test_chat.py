import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cygnet.errors import UserError
from cygnet.text.chat import encode_chat, encode_chats, render_chat
from cygnet.text.tokenizer import Tokenizer
from tests.conversations import (
    HOSTILE,
    PLAIN,
    conversations,
    said,
    tool_lists,
    without_control,
)

quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@quick
@given(
    conversations(PLAIN.filter(without_control)),
    tool_lists(PLAIN.filter(without_control)),
    st.booleans(),
)
def test_ids_are_those_of_transformers(tokenizer, theirs, messages, tools, prompt):
    chat = encode_chat(tokenizer, messages, tools, add_generation_prompt=prompt)
    expected = theirs.apply_chat_template(
        messages, tools=tools, add_generation_prompt=prompt, tokenize=True, return_dict=False
    )
    assert chat.ids == expected
    assert tokenizer.decode(chat.ids) == render_chat(tokenizer, messages, tools, prompt)


@quick
@given(conversations(HOSTILE), tool_lists(HOSTILE))
def test_control_tokens_come_from_the_template_alone(tokenizer, messages, tools):
    """As many of each as when every text is harmless, in the same order."""
    hostile = encode_chat(tokenizer, messages, tools).ids
    harmless = encode_chat(tokenizer, *harmless_copy(messages, tools)).ids
    control = set(tokenizer.special_ids.values())
    assert [i for i in hostile if i in control] == [i for i in harmless if i in control]


def harmless_copy(messages, tools):
    def copy(value):
        if isinstance(value, str):
            return "x" if value.strip() else ""
        if isinstance(value, dict):
            return {key: copy(item) for key, item in value.items() if key in KEYS}
        return [copy(item) for item in value] if isinstance(value, list) else value

    copied = copy(messages)
    for message, original in zip(copied, messages, strict=True):
        message["role"] = original["role"]
    return copied, copy(tools)


KEYS = {
    *("role", "content", "reasoning_content", "tool_calls", "type", "function"),
    *("name", "description", "arguments"),
}


@quick
@given(conversations(HOSTILE))
def test_a_spelt_control_token_is_kept_as_text(tokenizer, messages):
    decoded = tokenizer.decode(encode_chat(tokenizer, messages).ids)
    for message in messages:
        content = message["content"] or ""
        assert (content.strip() if message["role"] == "assistant" else content) in decoded


@quick
@given(conversations(HOSTILE), tool_lists(HOSTILE))
def test_labels_decode_to_what_the_assistant_says(tokenizer, messages, tools):
    chat = encode_chat(tokenizer, messages, tools)
    assert len(chat.ids) == len(chat.is_label)
    spans, open_span = [], False
    for token, is_label in zip(chat.ids, chat.is_label, strict=True):
        if is_label:
            spans = spans if open_span else [*spans, []]
            spans[-1].append(token)
        open_span = is_label
    assert [tokenizer.decode(span) for span in spans] == said(messages)
    assert all(span[-1] == tokenizer.im_end_id for span in spans)


@quick
@given(conversations(HOSTILE), HOSTILE)
def test_a_prompt_is_the_beginning_of_prompt_and_answer(tokenizer, messages, answer):
    messages = [*messages, {"role": "user", "content": "?"}]
    prompt = encode_chat(tokenizer, messages, add_generation_prompt=True).ids
    whole = encode_chat(tokenizer, [*messages, {"role": "assistant", "content": answer}])
    assert whole.ids[: len(prompt)] == prompt
    assert whole.is_label[len(prompt) - 1 : len(prompt) + 1] == [False, True]


@quick
@given(st.lists(conversations(PLAIN), max_size=3))
def test_many_at_once_are_each_alone(tokenizer, many):
    assert encode_chats(tokenizer, many) == [encode_chat(tokenizer, one) for one in many]


def test_a_simple_conversation_is_spelt_as_qwen3_does(tokenizer):
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    assert render_chat(tokenizer, messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "messages", [[], [{"role": "assistant\n", "content": ""}], [{"role": "bard", "content": ""}]]
)
def test_messages_that_cannot_be_rendered_are_refused(tokenizer, messages):
    with pytest.raises(UserError, match="messages"):
        encode_chat(tokenizer, messages)


def test_a_template_of_another_tokenizer_folder_is_used(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}<|im_end|>")
    chat = encode_chat(Tokenizer.load(tmp_path), [{"role": "user", "content": "Hi"}])
    assert tokenizer.decode(chat.ids) == "Hi<|im_end|>"
    assert not any(chat.is_label)
