from collections import Counter

import pytest

from cygnet.corpus import builtin
from cygnet.corpus.document import Document


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(builtin.builtin_documents())


def test_every_row_is_there(documents: list[Document]) -> None:
    assert len(documents) == builtin.NUM_DOCUMENTS
    assert Counter(d.domain for d in documents) == {
        "recipes_en": 3_129,
        "encyclopedia_en": 10_033,
        "tang_poems_zh": 37_046,
    }
    assert len({d.source for d in documents}) == len(documents)


def test_nothing_of_a_row_is_lost_in_its_text(documents: list[Document]) -> None:
    for document in documents[::50]:
        row = document.fields
        for name in ("title", "text", "author", "form", "description"):
            assert (row.get(name) or "") in document.text
        for name in ("ingredients", "steps"):
            assert all(item in document.text for item in row.get(name, ()))


def test_rendering_by_example(documents: list[Document]) -> None:
    recipe = next(d for d in documents if d.title == "'Out of Salad Dressing' Salad Dressing")
    assert recipe.text.startswith(
        "# 'Out of Salad Dressing' Salad Dressing\n\n"
        "Category: Salad dressing recipes · Servings: 12 · Time: 8 h, 10 minutes\n\n"
        "## Ingredients\n- 1 ½ lemons, juiced\n"
    )
    assert "\n\n## Steps\n1. Mix together lemon juice" in recipe.text
    poem = next(d for d in documents if d.domain == "tang_poems_zh")
    assert poem.text.startswith("《帝京篇十首 一》 太宗皇帝 五言律诗\n秦川雄帝宅，函谷壮皇居。\n")


def test_about_names_every_file_and_its_licence() -> None:
    about = builtin.about()
    for path in builtin.builtin_files():
        assert path.is_file() and f"`{path.name}`" in about
    assert about.count("CC BY-SA 4.0") >= 2 and "public domain" in about and "MIT" in about
