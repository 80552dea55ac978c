"""Random conversations, and what the assistant says in one."""

import json

from hypothesis import strategies as st

from cygnet.text.tokenizer import SPECIAL_TOKENS

TEXTS = [
    "The cook stirs the soup, 12 times; then she adds 350 g of flour and serves it warm.\n\n"
    "# Soup\n\n## Ingredients\n- 2 cups flour\n- 1 onion\n\n## Steps\n1. Chop the onion.\n",
    "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。",
    "Naïve café, Ünïcödé and русский текст, 日本語も。 I'm here, it's there.",
] * 4
SPACE = st.sampled_from(["", " ", "\n", "\n\n", " \n", "\t", "\u3000", "\x1c"])
WORDS = st.one_of(st.text(max_size=12), st.sampled_from(TEXTS), st.sampled_from(["<", ">", "<|"]))
PLAIN = st.tuples(SPACE, WORDS, WORDS, SPACE).map("".join)
CONTROL = st.sampled_from([*SPECIAL_TOKENS, "<|im_start|>assistant\n", "<|im_end|>\n"])
HOSTILE = st.lists(st.one_of(PLAIN, CONTROL), max_size=5).map("".join)


def without_control(text):
    return not any(token in text for token in SPECIAL_TOKENS)


@st.composite
def conversations(draw, text):
    messages = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(text)})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(text)})
        kind = draw(st.sampled_from(["answer", "reasoned", "tools", "none"]))
        if kind == "none":
            continue
        if kind == "tools":
            calls = st.fixed_dictionaries({"name": text, "arguments": arguments(text)})
            wrapped = calls.map(lambda call: {"type": "function", "function": call})
            call_lists = st.lists(st.one_of(calls, wrapped), min_size=1, max_size=2)
            content = draw(st.one_of(st.none(), text))
            calling = {"role": "assistant", "content": content, "tool_calls": draw(call_lists)}
            messages.append(calling | draw(reasoning(text)))
            for _ in range(draw(st.integers(1, 2))):
                messages.append({"role": "tool", "content": draw(text)})
        answer = {"role": "assistant", "content": draw(text)}
        messages.append(answer | (draw(reasoning(text)) if kind != "answer" else {}))
    return messages


def arguments(text):
    return st.one_of(st.dictionaries(text, st.one_of(text, st.integers()), max_size=2), text)


def reasoning(text):
    return st.fixed_dictionaries({}, optional={"reasoning_content": text})


def tool_lists(text):
    function = st.fixed_dictionaries({"name": text, "description": text})
    tool = function.map(lambda f: {"type": "function", "function": f})
    return st.one_of(st.none(), st.lists(tool, min_size=1, max_size=2))


def spoken(message, with_reasoning):
    """Qwen3's form of an assistant's turn, written out a second time."""
    content = (message["content"] or "").strip()
    text = ""
    reasoning = message.get("reasoning_content", "").strip()
    if with_reasoning and reasoning:
        text += f"<think>\n{reasoning}\n</think>\n\n"
    calls = []
    for call in message.get("tool_calls", []):
        function = call.get("function", call)
        given = function["arguments"]
        written = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        name = json.dumps(function["name"], ensure_ascii=False)
        calls.append(f'<tool_call>\n{{"name": {name}, "arguments": {written}}}\n</tool_call>')
    return text + "\n".join([content] * bool(content) + calls) + "<|im_end|>"


def said(messages):
    """Return the text of each of the assistant's turns, as the template spells it."""
    last_user = max(i for i, message in enumerate(messages) if message["role"] == "user")
    return [
        spoken(message, i > last_user)
        for i, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
