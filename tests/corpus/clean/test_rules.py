import numpy as np
import pytest

from cygnet.corpus.builtin import builtin_documents
from cygnet.corpus.clean.measure import STATISTICS, measure
from cygnet.corpus.clean.normalize import normalize
from cygnet.corpus.clean.rules import (
    ADDED,
    BY_NAME,
    RULES,
    broken,
    first_broken,
    rule_table,
    rules_with,
)
from cygnet.corpus.clean.words import TextBatch
from cygnet.errors import UserError

PROSE = "The swan is a large water bird. It nests in spring, near lakes and slow rivers. "
CHINESE = "天鹅是一种大型水鸟，春天在湖泊和缓流的河边筑巢，秋天成群飞往南方过冬，来年再回到旧巢。"
NUMBERS = "one two three four five six seven eight nine ten eleven twelve thirteen".split()
PAGE = """The heron of the lake has been with us since an old mill was built near the town.
In winter it stands on thin ice, and waits for hours until a fish comes up to breathe.
Children from the school bring it bread, although nobody has ever seen it eat any of that.
Otters are rarer: their tracks run along the muddy bank below the second bridge.
Last year a family of five was counted there by two students with a borrowed camera.
Whoever wants to see them should go before sunrise, be quiet, and take a warm coat."""


def reasons(texts: list[str], rule_set: str = "basic", *changes: str) -> list[str]:
    languages = ["zh" if "的" in text or "二" in text else "en" for text in texts]
    numbers = measure(TextBatch([normalize(text) for text in texts]), languages)
    sets = np.array([rule_set] * len(texts), object)
    return first_broken(broken(rules_with(changes), numbers, sets), len(texts)).tolist()


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
        (PROSE, ""),
        (CHINESE, ""),
        ("白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。", ""),
        ("for (int i = 0; i < n; i++) { a[i] += b[i] * c; }\n}\n}\n", ""),
        ("नमस्ते दुनिया, यह एक छोटा वाक्य है जो रहना चाहिए।", ""),
    ],
)
def test_each_basic_rule_by_example(text: str, expected: str) -> None:
    assert reasons([text]) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PAGE, ""),
        (PROSE, "gopher_min_words"),
        (PAGE.replace("the", "# # #"), "gopher_hashes"),
        ("\n".join(f"- {line}" for line in PAGE.split("\n")), "gopher_bullets"),
        ("\n".join(PAGE.split("\n") * 2), "repeated_lines"),
        (PAGE.replace(".", "..."), "gopher_ellipsis_lines"),
        (" ".join(map(str, range(7, 90))), "gopher_short_words"),
        (PAGE + "\n{", "c4_curly_bracket"),
        (PAGE + "\nLorem ipsum dolor sit amet", "c4_lorem_ipsum"),
        (PAGE.replace(".\n", " and ").strip("."), "c4_sentences"),
        (PAGE.replace(".", ","), "fineweb_punctuated_lines"),
        (
            PAGE + "\nHome" + "".join(f"\nItem number {w}." for w in NUMBERS),
            "fineweb_short_lines",
        ),
    ],
)
def test_each_web_rule_by_example(text: str, expected: str) -> None:
    assert reasons([text], "web") == [expected]
    assert reasons([text], "none") == [""]


def test_chinese_pages_are_held_to_chinese_thresholds() -> None:
    page = (
        "东山脚下的湖边住着许多天鹅，它们每年春天从南方飞回来。\n"
        "村里的老人说，五十年前这里只是一片长满芦苇的沼泽。\n"
        "后来人们修了水坝，鱼和青蛙多了起来，白鹭也就来了。\n"
        "孩子们放学以后喜欢坐在码头上，数一数今天有几只野鸭。\n"
        "如果你想看日出，最好带上外套，因为早晨的风很冷。"
    )
    short = "很短的一页，没有多少字，也没有什么好看的东西。"
    noise = "一二三四五六七八九十" * 12
    assert reasons([page, short], "web") == ["", "gopher_min_han"]
    assert reasons([noise], "web") == ["repeated_phrases"]


def test_code_rules_know_data_from_code() -> None:
    code = "def area(radius):\n    return 3.14159 * radius ** 2\n\n\nprint(area(2))\n"
    data = "DATA = '" + "0f3a" * 400 + "'\n"
    assert reasons([code, data], "code") == ["", "code_mean_line"]


def test_built_in_text_is_kept() -> None:
    sample = [d for i, d in enumerate(builtin_documents()) if i % 97 == 0]
    assert len(sample) > 500
    assert set(reasons([d.text for d in sample])) == {""}


def test_thresholds_change_and_rules_go_by_name() -> None:
    assert reasons([PROSE], "web", "gopher_min_words=3") == ["gopher_top_4"]
    changes = ("gopher_min_words=off", "gopher_top_4=0.5", "c4_sentences=1")
    assert reasons([PROSE], "web", *changes) == [""]
    for change, message in (
        ("gopher_min_word=3", "no rule 'gopher_min_word'.*gopher_min_words"),
        ("gopher_min_words=few", "'few' is no threshold; give a number from 0 on, such as"),
        ("gopher_min_words", "'' is no threshold"),
        ("gopher_min_words=-3", "'-3' is no threshold; give a number from 0 on"),
        ("gopher_min_words=nan", "'nan' is no threshold"),
        ("gopher_max_words=inf", "'inf' is no threshold"),
    ):
        with pytest.raises(UserError, match=message):
            rules_with([change])


def test_a_value_at_the_threshold_stays_and_a_missing_one_too() -> None:
    rule = BY_NAME["gopher_min_words"]
    values = np.array([rule.threshold, rule.threshold - 1, np.nan])
    assert rule.breaks(values).tolist() == [False, True, False]


def test_every_rule_has_a_number_and_a_line_in_the_table() -> None:
    assert {rule.number for rule in RULES} <= STATISTICS.keys() | ADDED.keys()
    assert len(BY_NAME) == len(RULES) == len(rule_table())
