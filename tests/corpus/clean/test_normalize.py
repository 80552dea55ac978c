import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.corpus.clean.normalize import normalize, words

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


def test_words_are_han_characters_words_and_symbols() -> None:
    assert words("白日 Sun's 2+2, GPU。") == ["白", "日", "sun", "s", "2", "+", "2", "gpu"]
