"""Rules by which a text can be checked: forms of Tang verse, parts of a recipe, repetition."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cygnet.han import HAN, POEM_FORMS

_HAN_CHARACTER = re.compile(f"[{HAN}]")
_CLAUSE_END = re.compile(r"[，。！？；：、,.!?;:\n]")
_OTHER_WORD = re.compile(f"[^\\W{HAN}]")
_UNIT = re.compile(f"[{HAN}]|[^\\W{HAN}]+|[^\\w\\s]")

_HEADING = re.compile(r"^#{1,6}\s*(.+?)\s*$", re.MULTILINE)
_BULLET = re.compile(r"^\s*[-*•]\s+(.+)$", re.MULTILINE)
_STEP = re.compile(r"^\s*\d+[.)]\s+(.+)$", re.MULTILINE)
_ASIDE = re.compile(r"\([^)]*\)")
_WORD = re.compile(r"[a-z]{3,}")
_ENDING = (".", "!", "?", ")", "”", '"', "。", "！", "？")
_NOT_FOOD = frozenset(
    """about added additional and any approximately bag bags beaten boiled boiling bottle bowl
    bunch can cans chopped clove cloves cold cooked cooking crushed cubed cubes cup cups cut dash
    diced dried drops each extra fine finely for fresh freshly from frozen garnish gram grams
    grated ground half handful head heaped inch inches into jar juice kilogram kilograms large
    leaf leaves level liter liters litre litres lukewarm medium melted milliliter minced more
    needed optional ounce ounces package packages packet peeled piece pieces pinch pint pints
    pound pounds quart quarts removed ripe room roughly serve serving sifted size sized slice
    sliced slices small softened some stalk stalks stick sticks such tablespoon tablespoons taste
    tbsp teaspoon teaspoons temperature that the thick thin thinly tin tins tsp warm washed well
    whole with your""".split()  # noqa: SIM905 (a list would take a line a word)
)
_ALL_TOGETHER = re.compile(r"\bingredients\b|\beverything\b|\ball (?:except|but)\b")
MIN_INGREDIENTS_USED = 0.5
"""Share of its ingredients that the steps of a complete recipe name."""
NGRAM = 4


def poem_lines(text: str) -> list[str]:
    """Return the clauses of a poem, Han characters alone; a title in 《》 is left out.

    Clauses end at punctuation and line ends.
    """
    clauses = ("".join(_HAN_CHARACTER.findall(part)) for part in _CLAUSE_END.split(_verse(text)))
    return [clause for clause in clauses if clause]


def is_poem_of_form(text: str, form: str) -> bool:
    """Return whether a text has the lines of a form, each of the right length, and no other word.

    Raises:
        KeyError: the form is not in `POEM_FORMS`.
    """
    num_lines, num_characters = POEM_FORMS[form]
    lines = poem_lines(text)
    return (
        len(lines) == num_lines
        and all(len(line) == num_characters for line in lines)
        and not _OTHER_WORD.search(_verse(text))
    )


@dataclass(frozen=True, slots=True)
class RecipeChecks:
    """What a text has of a recipe."""

    has_ingredients: bool
    """A heading `Ingredients` with at least one bullet under it."""
    has_steps: bool
    """A heading `Steps` with at least one numbered line under it."""
    steps_use_ingredients: float
    """Share of the ingredients of which the steps name a word; 0 without ingredients or steps."""
    complete: bool
    """Both parts are there, no ingredient is listed twice, the last step ends as a sentence does,
    and the steps name at least half of the ingredients, or "the ingredients" as a whole."""


def recipe_checks(text: str) -> RecipeChecks:
    """Check a recipe written as the built-in ones are: `## Ingredients`, `## Steps`."""
    parts = _sections(text)
    ingredients = _BULLET.findall(parts.get("ingredients", ""))
    steps = _STEP.findall(parts.get("steps", ""))
    told = " ".join(steps).lower()
    used = [_is_named(item, told) for item in ingredients]
    share = sum(used) / len(used) if used and steps else 0.0
    distinct = len({item.strip().lower() for item in ingredients}) == len(ingredients)
    return RecipeChecks(
        has_ingredients=bool(ingredients),
        has_steps=bool(steps),
        steps_use_ingredients=share,
        complete=bool(ingredients and steps)
        and distinct
        and (share >= MIN_INGREDIENTS_USED or bool(_ALL_TOGETHER.search(told)))
        and text.rstrip().endswith(_ENDING),
    )


def repetition_rate(text: str) -> float:
    """Return the share of 4-grams that occurred before in the text.

    The units are Han characters, other words, and marks; 0 for a text of under four.
    """
    grams = _ngrams(text, NGRAM)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def text_units(text: str) -> list[str]:
    """Return the Han characters, other words (in lower case) and marks of a text, in order."""
    return _UNIT.findall(text.lower())


def _verse(text: str) -> str:
    first, _, rest = text.strip().partition("\n")
    return rest if first.lstrip().startswith("《") and rest else text


def _sections(text: str) -> dict[str, str]:
    """Return what stands under each heading; of two of the same name, the first."""
    pieces = _HEADING.split(text)
    sections: dict[str, str] = {}
    for heading, body in zip(pieces[1::2], pieces[2::2], strict=True):
        sections.setdefault(heading.lower().rstrip(":"), body)
    return sections


def _is_named(ingredient: str, told: str) -> bool:
    """Return whether the steps name a food word of an ingredient, in singular or plural."""
    words = _WORD.findall(_ASIDE.sub(" ", ingredient.lower()))
    foods = [word for word in words if word not in _NOT_FOOD] or words
    return not foods or any(_stem(word) in told for word in foods)


def _stem(word: str) -> str:
    for ending in ("ies", "es", "s", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    units = text_units(text)
    return list(zip(*(units[i:] for i in range(n)), strict=False))
