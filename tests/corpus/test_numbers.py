import pytest

from cygnet.corpus.numbers import LARGEST, in_chinese, in_words, last_number


def test_every_number_is_read_back_from_how_it_is_written() -> None:
    for number in range(LARGEST + 1):
        assert last_number(f"it is {in_words(number)}.") == (number, "words")
        assert last_number(f"等于{in_chinese(number)}。") == (number, "chinese")
        assert last_number(f"it is {number:,}.") == (number, "digits")


def test_numbers_are_written_as_people_write_them() -> None:
    written = {20: "twenty", 82: "eighty-two", 105: "one hundred and five", 110: "一百一十"}
    assert in_words(20) == written[20] and in_words(82) == written[82]
    assert in_words(105) == written[105] and in_chinese(110) == written[110]
    assert [in_chinese(n) for n in (10, 13, 20, 105, 1005)] == [
        "十", "十三", "二十", "一百零五", "一千零五",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("7+5=12, 3+4+1=8: 82", 82),
        ("first 5, then thirty-seven", 37),
        ("x is -5", -5),
        ("3 - 1", 1),
        ("1,665", 1665),
        ("等于82。", 82),
        ("2.5", None),
        ("a1b2", None),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_whole_number_counts(text: str, found: int | None) -> None:
    number = last_number(text)
    assert (number and number[0]) == found
