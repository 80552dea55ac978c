import json

from hypothesis import given
from hypothesis import strategies as st

from cygnet.corpus.document import Document, document_id


@given(st.text(), st.dictionaries(st.text(), st.integers() | st.text()))
def test_json_and_back_is_the_same_document(text: str, fields: dict[str, int | str]) -> None:
    document = Document(document_id(text), text, "d", "s:1", fields, [{"role": "user"}])
    assert Document.from_json(json.loads(json.dumps(document.to_json()))) == document


def test_id_depends_on_the_text_alone() -> None:
    assert document_id("a") == document_id("a") != document_id("b")
    assert len(document_id("a")) == 16
