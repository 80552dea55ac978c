import json

import pytest

from cygnet.errors import UserError
from cygnet.messages import parse_messages, parse_tools, validate, why_no_conversation

ASKED = {"role": "user", "content": "What is soup?"}
TOLD = {"role": "assistant", "content": "A dish."}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, TOLD]},
        {"text": "ignored", "messages": [ASKED, TOLD]},
        {"conversations": [ASKED, TOLD]},
        {
            "conversations": [
                {"from": "human", "value": "What is soup?"},
                {"from": "gpt", "value": "A dish."},
            ]
        },
        {
            "messages": [
                {"role": "User", "content": [{"type": "text", "text": "What is soup?"}]},
                TOLD,
            ]
        },
        {"instruction": "What is soup?", "input": "", "output": "A dish."},
        {"prompt": "What is soup?", "response": "A dish."},
        {"instruction": "What is soup?", "context": "", "response": "A dish."},
        {"question": "What is soup?", "answer": "A dish."},
    ],
)
def test_every_known_shape_gives_the_same_conversation(row):
    assert parse_messages(row) == [ASKED, TOLD]


def test_a_call_is_read_as_openai_had_it_before():
    call = {"name": "weather", "arguments": '{"city": "Bern"}'}
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            ASKED,
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "weather", "content": "Rain."},
            TOLD,
        ]
    }
    messages = parse_messages(row)
    validate(messages)
    assert messages[0] == {"role": "system", "content": "Be brief."}
    assert messages[2]["tool_calls"] == [{"type": "function", "function": call}]
    assert messages[3]["role"] == "tool"


def test_tools_are_a_list_or_its_json():
    tools = [CALL["function"]]
    assert parse_tools({"tools": tools}) == parse_tools({"tools": json.dumps(tools)}) == tools
    assert parse_tools({}) is parse_tools({"tools": ""}) is parse_tools({"tools": "[]"}) is None
    for wrong in ("weather", '{"name": "weather"}', {"name": "weather"}, [1]):
        with pytest.raises(UserError, match="tools: "):
            parse_tools({"tools": wrong})


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"text": "A dish."},
        {"messages": "hello"},
        {"messages": [1]},
        {"prompt": "What is soup?", "chosen": "A dish.", "rejected": "No."},
        {"question": "2 + 2?", "answer": 4},
        {"instruction": "Say it."},
    ],
)
def test_other_rows_are_no_conversation(row):
    assert parse_messages(row) is None


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": "hello"}, "messages: str given, a list such as"),
        ({"conversations": {"from": "human"}}, "conversations: dict given, a list such as"),
        ({"messages": [ASKED, "hello"]}, "messages[1]: no role; a list such as"),
        ({"prompt": "Soup?", "chosen": "A dish.", "rejected": "No."}, "a preference pair, which"),
        ({"question": "2 + 2?", "answer": 4}, "answer: int given, a text is wanted"),
        ({"prompt": [ASKED], "response": "A dish."}, "prompt: list given, a text is wanted"),
        ({"text": "A dish."}, None),
        ({"messages": None}, None),
        ({"messages": [ASKED, TOLD]}, None),
    ],
)
def test_why_a_row_with_a_conversations_field_is_none(row, said):
    found = why_no_conversation(row)
    assert found is None if said is None else found.startswith(said)


def test_alpaca_joins_its_input_and_keeps_system_and_history():
    row = {
        "system": "Be short.",
        "history": [["Hi", "Hello"]],
        "instruction": "Translate.",
        "input": "床",
        "output": "bed",
    }
    assert parse_messages(row) == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Translate.\n\n床"},
        {"role": "assistant", "content": "bed"},
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"},
                           ASKED, TOLD]},
        {"prompt": "What is soup?", "response": "A dish.", "history": [["Hi", "Hello"]]},
    ],
)  # fmt: skip
def test_system_and_history_are_kept_beside_any_shape(row):
    expected = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        ASKED,
        TOLD,
    ]
    assert parse_messages({**row, "system": "Be short."}) == expected
    own = {"messages": expected, "system": "Be long."}
    assert parse_messages(own) == expected


def test_tool_calls_results_and_reasoning_are_carried():
    result = {"role": "tool", "tool_call_id": "1", "content": "sunny"}
    reasoned = {"role": "assistant", "reasoning_content": "Look.", "content": "It is sunny."}
    messages = [ASKED, CALLING, result, reasoned]
    assert parse_messages({"messages": messages}) == messages
    validate(messages)
    shared = [
        {"from": "human", "value": "What is soup?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Bern"}}'},
        {"from": "observation", "value": "sunny"},
    ]
    parsed = parse_messages({"conversations": shared})
    assert parsed == [ASKED, CALLING, {"role": "tool", "content": "sunny"}]
    validate(parsed)


def test_an_answer_that_opens_with_think_is_parted():
    spelt = {"role": "assistant", "content": "<think>\nA dish?\n</think>\n\nA dish."}
    assert parse_messages({"messages": [ASKED, spelt]}) == [
        ASKED,
        {"role": "assistant", "content": "A dish.", "reasoning_content": "A dish?"},
    ]
    quoted = {"role": "user", "content": "<think>\nA dish?\n</think>"}
    assert parse_messages({"messages": [quoted, TOLD]}) == [quoted, TOLD]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages: empty"),
        (
            [{"role": "assistnt", "content": "x"}],
            r"messages\[0\]\.role: .*did you mean 'assistant'",
        ),
        ([{"content": "x"}], r"messages\[0\]\.role: unknown role None"),
        ([ASKED, TOLD, TOLD], r"messages\[2\]\.role: two assistant messages in a row"),
        ([ASKED, {"role": "system", "content": "x"}, TOLD], r"messages\[1\]\.role: a system"),
        ([ASKED, {"role": "tool", "content": "x"}, TOLD], r"messages\[1\]\.role: a tool"),
        ([ASKED, {"role": "assistant", "content": " \n"}], r"messages\[1\]\.content: empty answer"),
        ([ASKED, {"role": "assistant"}], r"messages\[1\]\.content: empty answer"),
        ([ASKED, {"role": "assistant", "content": 5}], r"messages\[1\]\.content: int given"),
        ([{"role": "user"}, TOLD], r"messages\[0\]\.content: missing"),
        ([ASKED], "no assistant message"),
        ([ASKED, {"role": "assistant", "tool_calls": [{}]}], r"tool_calls\[0\]: no function name"),
        (
            [ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "weather"}}]}],
            r"tool_calls\[0\]: no arguments",
        ),
    ],
)
def test_what_no_chat_can_have_is_named(messages, said):
    with pytest.raises(UserError, match=said):
        validate(messages)


def test_a_prompt_needs_no_answer():
    validate([ASKED], needs_answer=False)
    validate([ASKED, CALLING, {"role": "tool", "content": "sunny"}, TOLD])


def test_content_that_is_no_text_is_named():
    image = {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}
    with pytest.raises(UserError, match=r"messages\[1\]\.content: holds list"):
        parse_messages({"messages": [TOLD, image]})
