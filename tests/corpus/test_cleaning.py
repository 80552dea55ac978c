from typing import Any

import pytest

from cygnet.corpus.cleaning import Cleaner
from cygnet.corpus.document import Document, document_id
from cygnet.corpus.settings import DataConfig

MAIL = "jane.roe@mail.net"


def conversation(place: str) -> Document:
    """A conversation with a private address in one place."""
    said = {name: f"see {MAIL}" if name == place else "see there" for name in PLACES}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": said["content"]},
        {"role": "user", "content": [{"type": "text", "text": said["list"]}]},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": said["reasoning"],
            "tool_calls": [
                {"id": "1", "function": {"name": "mail", "arguments": {"to": said["arguments"]}}}
            ],
        },
    ]
    fields = {"title": said["title"], "tools": [{"name": "mail", "description": said["tools"]}]}
    return Document(document_id("x"), "x", "d", "s", fields, messages)


PLACES = ("content", "list", "reasoning", "arguments", "title", "tools")


@pytest.mark.parametrize("place", PLACES)
def test_private_data_is_masked_and_counted_wherever_it_may_be_learnt(place: str) -> None:
    cleaner = Cleaner(DataConfig())
    found = str(cleaner.document(conversation(place)).to_json())
    assert MAIL not in found and "[EMAIL]" in found and cleaner.private == {"email": 1}
    counting = Cleaner(DataConfig(privacy="drop"))
    assert MAIL in str(counting.document(conversation(place)).to_json())
    assert counting.private == {"email": 1}


def test_names_stay_and_a_title_is_written_in_one_way() -> None:
    decomposed = Document(document_id("x"), "x", "d", "s", {"title": "Cre\u0300me", "n": "e\u0301"})
    assert Cleaner(DataConfig()).document(decomposed).fields == {"title": "Crème", "n": "e\u0301"}
    message = {"role": "tool", "tool_call_id": "a@b.de", "content": "ok"}
    document = Document(document_id("x"), "x", "d", "s", {}, [message])
    assert Cleaner(DataConfig()).document(document).messages == [message]
