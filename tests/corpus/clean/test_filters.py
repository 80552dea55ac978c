import pytest

from cygnet.corpus.builtin import builtin_documents
from cygnet.corpus.clean.filters import RULES, drop_reason
from cygnet.corpus.clean.normalize import words

PROSE = "The swan is a large water bird. It nests in spring, near lakes and slow rivers. " * 1
CHINESE = "天鹅是一种大型水鸟，春天在湖泊和缓流的河边筑巢，秋天成群飞往南方过冬，来年再回到旧巢。"


def reason(text: str) -> str | None:
    return drop_reason(text, words(text), min_chars=20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("短", "too_short"),
        (" " * 50, "too_short"),
        (PROSE + "\ufffd" * 3, "unreadable"),
        ("*** --- !!! ... ??? ,,, ;;; ab", "symbols"),
        ("。，！？" * 20 + "天", "symbols"),
        (PROSE + "a" * 60, "character_runs"),
        ("ha" + "哈" * 60, "character_runs"),
        ("One and the same line stands here.\n" * 8, "repeated_lines"),
        ("同一行诗写了很多很多次。\n" * 20, "repeated_lines"),
        ("buy now and save money today " * 20, "repeated_phrases"),
        ("今天天气真好我们去公园玩" * 20, "repeated_phrases"),
        (PROSE, None),
        (CHINESE, None),
        ("白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。", None),
        ("for (int i = 0; i < n; i++) { a[i] += b[i] * c; }\n}\n}\n", None),
        ("नमस्ते दुनिया, यह एक छोटा वाक्य है जो रहना चाहिए।", None),
    ],
)
def test_each_rule_by_example(text: str, expected: str | None) -> None:
    assert reason(text) == expected
    assert expected is None or expected in RULES


def test_a_long_title_does_not_make_a_text_symbols() -> None:
    text = "《菩提寺禁裴迪来相看说逆贼等凝碧池上作音乐》 王维\n万户伤心生野烟，百僚何日更朝天。"
    assert drop_reason(text, words(text.split("\n")[1]), min_chars=20) is None


def test_built_in_text_is_kept() -> None:
    sample = [d for i, d in enumerate(builtin_documents()) if i % 97 == 0]
    assert len(sample) > 500
    assert [d.source for d in sample if reason(d.text)] == []
