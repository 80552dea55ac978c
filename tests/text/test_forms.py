import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.han import POEM_FORMS
from cygnet.text.forms import (
    is_poem_of_form,
    poem_lines,
    recipe_checks,
    repetition_rate,
)

QUATRAIN = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"
RECIPE = """# Onion soup

Servings: 4

## Ingredients
- 2 cups (240 g) flour, sifted
- 3 large onions, sliced
- 1 pinch salt
- Fresh parsley for garnish

## Steps
1. Fry the onion.
2. Stir in the flour and the salt.
3. Serve hot.
"""


@pytest.mark.parametrize(
    "text", [QUATRAIN, f"《静夜思》 李白 五言绝句\n{QUATRAIN}", f" {QUATRAIN}\n"]
)
def test_a_poem_is_its_clauses(text):
    assert poem_lines(text) == ["床前明月光", "疑是地上霜", "举头望明月", "低头思故乡"]
    assert [form for form in POEM_FORMS if is_poem_of_form(text, form)] == ["五言绝句"]


@given(
    st.integers(1, 9),
    st.integers(3, 9),
    st.sampled_from(list(POEM_FORMS)),
    st.sampled_from("，。！？；\n"),
)
def test_a_form_is_lines_times_characters(num_lines, num_characters, form, mark):
    rng = random.Random(num_lines)
    lines = ["".join(chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(num_characters))] * num_lines
    assert is_poem_of_form(mark.join(lines), form) is (
        POEM_FORMS[form] == (num_lines, num_characters)
    )


@pytest.mark.parametrize(
    "text", ["", QUATRAIN[:-1] + "乡", QUATRAIN + "ok", QUATRAIN.replace("霜", "霜1"), QUATRAIN[6:]]
)
def test_what_breaks_the_form_is_no_poem(text):
    assert not is_poem_of_form(text, "五言绝句")


def test_nearly_all_poems_of_the_corpus_have_their_form():
    from cygnet.corpus.builtin import builtin_documents

    poems = [d for d in builtin_documents() if d.domain == "tang_poems_zh"][::20]
    kept = sum(is_poem_of_form(poem.text, poem.fields["form"]) for poem in poems)
    assert kept >= 0.999 * len(poems)


def test_a_whole_recipe_is_complete():
    checks = recipe_checks(RECIPE)
    assert checks.has_ingredients and checks.has_steps and checks.complete
    assert checks.steps_use_ingredients == 3 / 4


def test_steps_may_name_the_ingredients_as_a_whole():
    steps = "1. Combine all ingredients.\n2. Serve.\n"
    text = RECIPE[: RECIPE.index("1. Fry")] + steps
    assert recipe_checks(text).complete
    assert recipe_checks(text).steps_use_ingredients == 0


@pytest.mark.parametrize(
    "broken",
    [
        "",
        RECIPE.replace("## Ingredients", "## Things"),
        RECIPE.replace("## Steps", "## And then"),
        RECIPE[: RECIPE.index("## Steps") + 9],
        RECIPE[:-8],
        RECIPE.replace("flour and the salt", "rest").replace("onion", "bread"),
        RECIPE.replace("- 1 pinch salt", "- 3 large onions, sliced"),
    ],
)
def test_a_recipe_that_lacks_something_is_not_complete(broken):
    assert not recipe_checks(broken).complete


def test_most_recipes_of_the_corpus_are_complete():
    from cygnet.corpus.builtin import builtin_documents

    recipes = [d for d in builtin_documents() if d.domain == "recipes_en"]
    assert sum(recipe_checks(r.text).complete for r in recipes) > 0.95 * len(recipes)


def test_repetition_is_counted_in_words_and_in_han_characters():
    assert repetition_rate("a b c d e f g") == 0
    assert repetition_rate("床前明月光疑是地上霜") == 0
    assert repetition_rate("x " * 13) == pytest.approx(0.9)
    assert repetition_rate("月" * 13) == pytest.approx(0.9)
    assert repetition_rate("a b c d A b c d") == pytest.approx(1 / 5)
    assert repetition_rate("one two") == 0


@given(st.text())
def test_no_text_breaks_a_rule(text):
    recipe_checks(text)
    assert 0 <= repetition_rate(text) < 1
    assert not any(is_poem_of_form(text, form) for form in POEM_FORMS if len(poem_lines(text)) < 4)
