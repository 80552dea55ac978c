"""What the built-in rewards give, and that most climb as an answer gets better."""

import json
from itertools import pairwise

import pytest

from cygnet.corpus.builtin import builtin_rows, render_recipe
from cygnet.corpus.instructions import subject_key
from cygnet.stages.reinforcement.rewards.exact import arithmetic, json_schema, spelling
from cygnet.stages.reinforcement.rewards.penalties import length, repetition
from cygnet.stages.reinforcement.rewards.recipes import recipe
from cygnet.stages.reinforcement.rewards.tool_use import tool_use
from cygnet.stages.reinforcement.rewards.verse import poem_form, rhyme, rhyme_of, rhyme_rate

POEM = "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。"
FORM = {"form": "五言绝句"}


UNRHYMED = POEM.replace("楼", "天")


def test_a_poem_of_the_form_earns_all_whether_it_rhymes_or_not() -> None:
    assert poem_form(POEM, FORM) == poem_form(UNRHYMED, FORM) == pytest.approx(1.0)
    assert poem_form(POEM, {"form": "七言绝句"}) < 0.3


def test_rhyme_is_a_reward_of_its_own_and_counts_as_far_as_the_shape_is_there() -> None:
    assert (rhyme(POEM, FORM), rhyme(UNRHYMED, FORM)) == (1, 0)
    assert 0 < rhyme(POEM, {"form": "七言绝句"}) < 1
    assert 0 < rhyme(POEM + "\n" + POEM, FORM) < rhyme(POEM, FORM)
    assert rhyme("流", FORM) == rhyme("", FORM) == 0


def test_what_is_nearer_to_the_form_earns_more() -> None:
    ladder = [
        "A poem about the sea.",
        "白日",
        "白日依山尽。",
        "白日依山尽，黄河入海流。",
        "白日依山尽，黄河入海流。欲穷千里目。",
        "白日依山尽，黄河入海流。欲穷千里目，更上一层。",
        POEM,
    ]
    earned = [poem_form(text, FORM) for text in ladder]
    assert earned == sorted(earned) and len(set(earned)) == len(earned)


def test_saying_one_line_again_or_adding_words_does_not_earn_the_form() -> None:
    assert poem_form("白日依山尽，" * 4, FORM) < 0.3
    assert poem_form("Here is it: " + POEM, FORM) < poem_form(POEM, FORM) - 0.4


def test_rhyme_is_of_sounds_and_not_of_the_same_character() -> None:
    assert rhyme_of("流") == rhyme_of("楼") != rhyme_of("天")
    assert rhyme_of("日") != rhyme_of("衣")  # -i after a sibilant is another vowel
    assert rhyme_rate(["白日", "河流", "千里", "河流"]) == 0
    assert rhyme_rate(["白日", "河流", "千里", "高楼"]) == 1
    assert rhyme_rate(["白日", "河流", "千里", "天上", "白日", "高楼", "千里", "心头"]) == 2 / 3


def test_most_tang_poems_earn_all_and_half_of_them_rhyme() -> None:
    rows = [row for row in builtin_rows("tang_poems_zh") if row["form"] == "五言绝句"][:200]
    earned = [poem_form(row["text"], row) for row in rows]
    assert sum(value == 1 for value in earned) >= 190
    rhymes = [rhyme(row["text"], row) for row in rows]
    assert sum(value == 1 for value in rhymes) >= 100  # modern sounds rhyme less than theirs


def test_a_real_recipe_earns_more_than_one_of_another_dish_or_without_steps() -> None:
    rows = [row for row in builtin_rows("recipes_en") if subject_key(row["title"])][:40]
    for row, other in pairwise(rows):
        asked, text = {"subject": row["title"]}, render_recipe(row)
        without_steps = text.partition("## Steps")[0]
        assert recipe(text, asked) > recipe(without_steps, asked)
        if not set(row["title"].lower().split()) & set(render_recipe(other).lower().split()):
            assert recipe(text, asked) > recipe(text, {"subject": other["title"]})


@pytest.mark.parametrize(
    ("answer", "row", "earned"),
    [
        ("7+5=12, 3+4+1=8: 82", {"answer": 82}, 1),
        ("eighty-two", {"answer": 82, "script": "words"}, 1),
        ("82", {"answer": 82, "script": "words"}, 0.5),
        ("八十二", {"answer": 82, "script": "chinese"}, 1),
        ("7 + 5 = 12, so 82，八十二", {"answer": 82, "script": "chinese"}, 1),
        ("7+5=11, 3+4+1=8: 82", {"answer": 82}, 0),
        ("7+5=12, 3+4+1=8: 81, eighty-two", {"answer": 82, "script": "words"}, 0),
        ("3 ducks and 79 geese are 82", {"answer": 82}, 1),
        ("1,000 + 12 = 1,012, so 1,012.", {"answer": 1012}, 1),
        ("7+5=12,3+4+1=8: 82", {"answer": 82}, 1),
        ("7+5=12, 3+4+1=8: 8 tens and 2 ones are 82", {"answer": 82}, 1),
        ("10-3+4=11, so 11", {"answer": 11}, 1),
        ("2*3+4=10", {"answer": 10}, 1),
        ("3.5+4=7.5, or 8", {"answer": 8}, 1),
        ("7+5=10+2, or 12", {"answer": 12}, 1),
        ("9" * 5000 + "+1=2, so 82", {"answer": 82}, 1),
        ("83", {"answer": 82}, 0),
        ("I do not know", {"answer": 82}, 0),
    ],
)
def test_arithmetic(answer: str, row: dict[str, object], earned: float) -> None:
    assert arithmetic(answer, row) == pytest.approx(earned)


def test_spelling() -> None:
    assert spelling("s-w-a-n", {"answer": "s-w-a-n"}) == 1
    assert spelling("S W A N", {"answer": "s-w-a-n"}) == 1
    assert spelling("s-w-a-m", {"answer": "s-w-a-n"}) == pytest.approx(0.15)
    assert spelling("s-w-a-n: 1", {"answer": 1}) == 1
    assert spelling("s-w-a-n: 2", {"answer": 1}) == 0


def test_json() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    asked = {"schema": schema, "answer": {"age": 31}}
    ladder = ["age: 31", "[31]", '{"age": "31"}', '{"age": 30}', '{"age": 31}']
    earned = [json_schema(text, asked) for text in ladder]
    assert earned[0] == 0 and earned[-1] == 1
    assert earned == sorted(earned) and earned[1] < earned[3]
    assert json_schema('```json\n{"age": 30}\n```', {"schema": schema}) == 1
    assert json_schema("[" * 100_000, asked) == 0


def test_json_of_a_schema_that_is_none_is_the_persons_mistake() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        json_schema("{}", {"schema": {"type": "nonsense"}})


def conversation(result: str, answer: str) -> list[dict[str, object]]:
    call = {"id": "1", "function": {"name": "calculator", "arguments": "{}"}}
    return [
        {"role": "user", "content": "What is 37 times 45?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": result},
        {"role": "assistant", "content": answer},
    ]


def test_a_right_answer_counts_only_if_a_tool_gave_it() -> None:
    def earned(result: str, answer: str, **more: object) -> float:
        row = {"answer": 1665, "messages": conversation(result, answer), **more}
        return tool_use(answer, row)

    assert earned("1665", "It is 1665.") == 1
    assert earned("1665", "It is 1666.") == 0.5
    assert earned("82", "It is 1665.") == 0.1
    assert earned("Error: it is 1665", "It is 1665.") == 0
    assert earned("1665", "It is 1665.", tool="unit_converter") == 0
    assert tool_use("1665", {"answer": 1665, "messages": []}) == 0


@pytest.mark.parametrize("right", ["2.5", 2.5])
@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("It is 2.5.", True),
        ("5 / 2 = 2.50", True),
        ("12.5", False),
        ("2.53", False),
        ("-2.5", False),
        ("1.5 2.5 3.5", False),
        ("It is two.", False),
        ("", False),
    ],
)
def test_the_last_number_counts_with_its_decimals(
    right: object, answer: str, is_right: bool
) -> None:
    row = {"answer": right, "messages": conversation("2.5", answer)}
    assert tool_use(answer, row) == (1 if is_right else 0.5)


@pytest.mark.parametrize(
    ("right", "answer"),
    [
        (-3, "It is -3."),
        (-0.25, "= −0.25"),
        (1250, "It is 1,250."),
        ("1250.5", "1,250.5 ml"),
        (82, "7+5=12: eighty-two"),
        (82, "八十二"),
        (1e-07, "1e-07"),
        (709.7647095, "3 cups are 709.765 ml."),
        (709.0, "709"),
        ("a comet", "That is A comet, of ice"),
        (True, "true"),
    ],
)
def test_right_answers_in_many_ways_of_writing(right: object, answer: str) -> None:
    assert tool_use(answer, {"answer": right, "messages": conversation(answer, answer)}) == 1


def test_a_whole_number_is_not_the_whole_part_of_another() -> None:
    said = "Not 5 but 2.5"
    assert tool_use(said, {"answer": 5, "messages": conversation("5", said)}) == 0.5


def test_long_and_repeated_answers_lose() -> None:
    assert length("x" * 400, {}) == 0
    assert length("x" * 500, {}) == -0.5
    assert length("x" * 5000, {}) == -1
    assert repetition("a b c d " * 9, {}) < -0.8 < repetition("a b c d e f g", {}) == 0


@pytest.mark.parametrize("function", [poem_form, rhyme, recipe, arithmetic, spelling, json_schema])
def test_a_field_that_is_missing_is_named(function: object) -> None:
    with pytest.raises(KeyError, match="needs the field"):
        function("x", json.loads("{}"))  # type: ignore[operator]
