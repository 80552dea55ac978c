import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.corpus.document import Document, document_id
from cygnet.corpus.split import heldout_limit, split_position
from cygnet.errors import UserError


def document(text: str, domain: str = "d", **fields: str) -> Document:
    return Document(document_id(text), text, domain, "s", fields)


@given(st.text(min_size=1), st.text(), st.text())
def test_documents_of_one_title_share_their_side(title: str, one: str, other: str) -> None:
    a = document(one, "recipes", title=title)
    b = document(other, "articles", title=f" {title} ")
    if title.strip():
        assert split_position(a) == split_position(b)
    assert 0 <= split_position(a) < 1


def test_about_the_share_is_held_out_and_another_seed_holds_out_others() -> None:
    documents = [document(f"text {i}") for i in range(5000)]
    held = {d.text for d in documents if split_position(d) < 0.1}
    others = {d.text for d in documents if split_position(d, seed=1) < 0.1}
    assert 400 < len(held) < 600 and 400 < len(others) < 600
    assert len(held & others) < 100


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1), st.floats(0.001, 0.5))
def test_something_is_held_out_and_something_else_is_not(
    positions: list[float], share: float
) -> None:
    if len(set(positions)) < 2 and positions[0] >= share:
        with pytest.raises(UserError, match=r"all the text is (one document|of one title)"):
            heldout_limit(positions, share)
        return
    limit = heldout_limit(positions, share)
    assert any(position < limit for position in positions)
    assert limit == share or sorted(set(positions))[1] == limit
