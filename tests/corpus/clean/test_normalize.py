import ftfy
import pytest
from ftfy.badness import is_bad
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.corpus.clean.mojibake import mended
from cygnet.corpus.clean.normalize import normalize

ODD = "\ufeff\0\x07\x0b\x0c\r\n\t \x85\u2028\u3000é\u0301ａ，。Ã©â€œ\ud800\u0958\ufb1dﬁabc中"


@settings(max_examples=300)
@given(st.text() | st.text(alphabet=ODD, max_size=40))
def test_normalize_is_idempotent(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once
    once.encode()  # no lone surrogate is left


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("cafÃ© â€œ", "café “"),
        ("cafe\u0301，（１）", "café，（１）"),
        ("Ã\x07©", "é"),  # one repair uncovers another
        ("a\r\nb\rc\x0bd", "a\nb\nc\nd"),
        ("\ufeffa\0b\x07", "ab"),
        ("a  \nb\t\n\n\n\n\n\nc\n", "a\nb\n\n\nc"),
        ("\ud83d", "\ufffd"),
        ("l'Ã©tÃ© est lÃ\xa0", "l'été est là"),  # what ends a line is part of a character
        ("il est lÃ \nvoilÃ \noÃ¹", "il est là\nvoilà\noù"),
        ("Ð\xa0", "Р"),
    ],
)
def test_flaws_are_mended(given_text: str, expected: str) -> None:
    assert normalize(given_text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "秦川雄帝宅，函谷壮皇居。\n「你好」：（一）！？；…—《书》",
        'def f(x):\n    """&amp; ‘quotes’"""\n\tif x:\n\n\n        return {"a": x}',
        "　　段首空两格。",
        "👩‍👩‍👧 naïve Ångström ½ cup 350 °F",
    ],
)
def test_chinese_punctuation_and_code_stay_as_they_are(text: str) -> None:
    assert normalize(text) == text


SOUND = (
    "Café déjà vu, “quoted” – naïve… l’été»",
    "Привет, мир — «как дела»? Ёлка №5",
    "Γειά σου Κόσμε· «τι κάνεις»;",
    "Zażółć gęślą jaźń, příliš žluťoučký kůň",
    "天鹅是一种大型水鸟，“春天”……",
    "½ cup sugar – 20 °C, 3 × 4 € ™",
    "ちょっと待ってください。",
)
GARBLING = ("latin-1", "cp1252", "cp1251", "cp1250", "cp1253", "cp1254", "cp1257", "iso-8859-2",
            "mac_roman", "cp437")  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(SOUND) | st.text(max_size=8), max_size=4).map(" ".join),
    st.sampled_from(SOUND) | st.text(max_size=12),
    st.sampled_from(GARBLING),
    st.sampled_from(["ignore", "replace"]),
    st.sampled_from(["\xa0", " "]),
)
def test_the_quick_look_misses_nothing_that_ftfy_would_mend(
    around: str, garbled: str, encoding: str, lost: str, space: str
) -> None:
    garbled = garbled.encode("utf-8", "replace").decode(encoding, lost)
    garbled = garbled.replace("\xa0", space)
    for text in (around, f"{around} {garbled}", f"{garbled}\n{around}"):
        if not any("\ud800" <= char <= "\udfff" for char in text):
            lines = text.split("\n")
            fixed = [ftfy.fix_encoding(line) if is_bad(line) else line for line in lines]
            assert mended(text) == "\n".join(fixed)


def test_a_garbled_line_is_mended_among_lines_of_other_scripts() -> None:
    assert normalize("天鹅\ncafÃ© au lait\nПривет") == "天鹅\ncafé au lait\nПривет"
