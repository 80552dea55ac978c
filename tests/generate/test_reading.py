"""Reasoning and calls are told apart from content, however the text is cut."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.generate.reading import Piece, Reader
from cygnet.generate.text import CONTROL_MARK, TextStream
from tests.generate.conftest import swan_tokenizer

TOKENIZER = swan_tokenizer()

CALL = '<tool_call>\n{"name": "feed", "arguments": {"bird": "天鹅"}}\n</tool_call>'


def encoded(text: str) -> list[int]:
    """Encode a text in which control tokens are meant."""
    ids: list[int] = []
    for index, part in enumerate(TOKENIZER.control_pattern.split(text)):
        ids += [TOKENIZER.special_ids[part]] if index % 2 else TOKENIZER.encode(part)
    return ids


def read(ids: list[int], sizes: list[int] = [10_000], **settings: Any) -> dict[str, Any]:  # noqa: B006
    """Read an answer in pushes of so many tokens."""
    stream, reader = TextStream(TOKENIZER, mark_special=True), Reader(**settings)
    pieces: list[Piece] = []
    at = 0
    while at < len(ids):
        size = sizes[at % len(sizes)]
        pieces += reader.push("".join(map(stream.push, ids[at : at + size])))
        at += size
    pieces += [*reader.push(stream.finish()), *reader.finish()]
    return {
        "reasoning": "".join(piece.reasoning for piece in pieces),
        "content": "".join(piece.content for piece in pieces),
        "calls": [(p.call.name, json.loads(p.call.arguments)) for p in pieces if p.call],
    }


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("plain  \n", {}, ("", "plain  \n", [])),
        ("<think>\nhm 湖\n</think>\n\nyes ", {}, ("hm 湖", "yes ", [])),
        ("hm\n</think>\n\nyes", {"thinks": True}, ("hm", "yes", [])),
        ("<think>\nnever ends", {}, ("never ends", "", [])),
        (f"so:\n{CALL}\n{CALL}", {"reads_calls": True}, ("", "so:", ["feed", "feed"])),
        (f"<think>a</think>{CALL}", {"reads_calls": True}, ("a", "", ["feed"])),
        (CALL, {}, ("", CALL.replace("<tool_call>", "").replace("</tool_call>", ""), [])),
        ("<tool_call>{broken</tool_call>b", {"reads_calls": True},
         ("", "<tool_call>{broken</tool_call>b", [])),
        ("<tool_call>[1]</tool_call>", {"reads_calls": True},
         ("", "<tool_call>[1]</tool_call>", [])),
        ('<tool_call>{"name": "f', {"reads_calls": True}, ("", '<tool_call>{"name": "f', [])),
        ("a<|im_start|>b</think>c", {}, ("", "abc", [])),
    ],
)  # fmt: skip
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_parts(text: str, settings: dict[str, Any], expected: Any, sizes: list[int]) -> None:
    found = read(encoded(text), sizes, **settings)
    assert (found["reasoning"], found["content"]) == expected[:2]
    assert [name for name, _ in found["calls"]] == expected[2]
    assert all(arguments == {"bird": "天鹅"} for _, arguments in found["calls"])


@given(st.text(max_size=30), st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_what_a_model_spells_in_letters_calls_and_hides_nothing(
    text: str, sizes: list[int]
) -> None:
    spelt = f"{text}<think>{CALL}{CONTROL_MARK}<tool_call>{CONTROL_MARK}</think>"
    found = read(TOKENIZER.encode(spelt), sizes, reads_calls=True)
    shown = TOKENIZER.decode(TOKENIZER.encode(spelt)).replace(CONTROL_MARK, "\ufffd")
    assert found == {"reasoning": "", "content": shown, "calls": []}
