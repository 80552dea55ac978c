import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.corpus.read import mixed
from cygnet.corpus.read.decode import TextStream
from cygnet.corpus.read.html import html_pieces
from cygnet.corpus.read.mixed import MixedDecoder, decode_mixed, western_text
from cygnet.corpus.read.problems import Problems

ENGLISH = "The swan’s nest – “near the river” – is a café’s neighbour…"
FRENCH = "Voilà où l'été mène : près de la rivière, à côté d'un pré."
GERMAN = "Für zwölf Gäste: süße Klöße in großen Töpfen."
CHINESE = "天鹅春天在河边筑巢，秋天飞往南方。"
CZECH = "Všichni lidé rodí se svobodní a sobě rovní, a labutě hnízdí u pomalých řek."
RUSSIAN = """\
да нет он она оно они мы вы ты я мой твой свой наш это что как так где там тут когда почему но или
и а не на у в с из к от по за про при над под для без через день ночь год час дом мир земля небо
вода люди человек ребёнок мать отец брат жизнь смерть любовь сердце рука глаз слово язык песня дело
страна город улица дверь хлеб еда идти быть знать сказать новый старый белый чёрный сам раз шаг сад
ход рад чем чей чай цел ад её ещё моё Да Нет Ещё О Я Э""".split()
UKRAINIAN = """\
ні так дії її ви ти ми він вона воно вони мені тобі мій твій свій мої твоєї надії мрії є це що як де
коли чому бо але або і й та не на у в з із до від по за про під для без через день ніч рік час дім
світ земля небо вода люди мати батько брат життя смерть любов серце рука око слово мова пісня дія
країна місто вулиця хліб їжа їхати йти бути знати сказати новий старий історії тієї цієї всієї неї
ґрунт їжак Ні Її Є Дії НІ ДІЇ""".split()
TEXTS = {
    "Russian": "Все люди рождаются свободными и равными в своём достоинстве и правах. "
    "Они наделены разумом и совестью и должны поступать в отношении друг друга в духе братства.",
    "Ukrainian": "Всі люди народжуються вільними і рівними у своїй гідності та правах. "
    "Вони наділені розумом і совістю і повинні діяти один до одного в дусі братерства.",
}
LINES = st.lists(st.tuples(st.sampled_from([ENGLISH, FRENCH, GERMAN]), st.booleans()))


def read(data: bytes) -> tuple[str, Problems]:
    problems = Problems()
    return "".join(TextStream(io.BytesIO(data), "f.txt", problems).chunks()), problems


@given(LINES, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_lines_of_both_encodings_come_back_wherever_most_are(
    lines: list[tuple[str, bool]], end: str, has_chinese: bool
) -> None:
    # Line ends of the Mac are none of UTF-8's blocks, so both kinds of blocks are met.
    parts = [(text + end).encode("cp1252" if older else "utf-8") for text, older in lines]
    if has_chinese:
        parts.insert(len(parts) // 2, (CHINESE + end).encode())
    found, problems = read(b"".join(parts))
    whole = "\n".join(text for text, _ in lines)
    assert found.replace(f"{CHINESE}\n", "").rstrip("\n") == whole
    assert set(problems.kinds) <= {"other encoding", "empty file"}


def test_each_line_in_another_encoding_is_named() -> None:
    lines = [CHINESE.encode()] * 5 + [FRENCH.encode("cp1252")] + [CHINESE.encode()]
    found, problems = read(b"\n".join(lines))
    assert found.split("\n")[5] == FRENCH and "\ufffd" not in found
    assert problems.kinds["other encoding"].places == [("f.txt:6", "this line read as cp1252")]
    lines = [FRENCH.encode("cp1252")] * 9 + [CHINESE.encode()] + [GERMAN.encode("cp1252")]
    found, problems = read(b"\n".join(lines))
    assert found.split("\n")[9] == CHINESE and "\ufffd" not in found
    assert problems.kinds["other encoding"].places == [
        ("f.txt", "read as cp1252"),
        ("f.txt:10", "this line read as utf-8"),
    ]


def test_an_older_encoding_that_only_begins_behind_the_sample_is_read() -> None:
    data = b"plain\n" * 20_000 + f"{GERMAN}\n".encode("cp1252")
    assert read(data)[0].endswith(f"{GERMAN}\n")


def test_lines_of_utf8_do_not_hide_which_encoding_the_others_are_in() -> None:
    data = f"{CHINESE}\n".encode() + f"{CZECH}\n".encode("cp1250") * 9
    assert read(data)[0] == f"{CHINESE}\n" + f"{CZECH}\n" * 9


@pytest.mark.parametrize(
    ("language", "words", "encoding"),
    [
        *(("Russian", RUSSIAN, encoding) for encoding in ("cp1251", "koi8-r", "cp866")),
        *(("Ukrainian", UKRAINIAN, encoding) for encoding in ("cp1251", "koi8-u")),
    ],
)
@pytest.mark.parametrize("form", ["{}", "- {}.", "{0}, {0}!", "<p>{}</p>", "{}…"])
def test_a_word_alone_on_a_line_is_read_as_the_file_is(
    language: str, words: list[str], encoding: str, form: str
) -> None:
    if "…" in form and encoding != "cp1251":
        form = form.replace("…", "...")
    text = "".join(f"{form.format(word)}\n" for word in words)
    whole = f"{TEXTS[language]}\n{text}"
    found, problems = read(whole.encode(encoding))
    assert found.split("\n") == whole.split("\n")
    assert problems.count("other encoding") == 1  # that of the file


@pytest.mark.parametrize("encoding", ["cp1252", "cp1250", "cp1251", "koi8-r", "koi8-u", "cp866"])
@pytest.mark.parametrize(
    "line", ["été", "voilà", "à la mode", "schön", "Öl", "天鹅", "“yes”", "5 €"]
)
def test_a_short_line_of_utf8_is_read_as_that_wherever_most_are_older(
    encoding: str, line: str
) -> None:
    assert decode_mixed(f"{line}\n".encode(), encoding) == (f"{line}\n", 1)


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r", "cp866"])
def test_words_of_the_file_s_own_letters_are_read_in_utf8(encoding: str) -> None:
    # "и" is "Рё" in Windows-1251: both may be, and the one is a word.
    for word in RUSSIAN:
        assert decode_mixed(word.encode(), encoding) == (word, 1)


@pytest.mark.parametrize(
    ("encoding", "line"),
    [
        *(("cp1250", word) for word in ("MŮŽE", "TÉŽ", "KÓŁ", "„KÓŁ”")),
        *(("cp1252", line) for line in ("CAFÉ…", "«\xa0CAFÉ\xa0»", "É…")),
        *(("cp1251", line) for line in ("В\xa01812", "О—", "«Ні»")),
    ],
)
def test_what_is_sound_in_the_file_s_encoding_is_read_by_it(encoding: str, line: str) -> None:
    assert decode_mixed(line.encode(encoding), encoding) == (line, 0)


@pytest.mark.parametrize(
    "line",
    [
        CHINESE.encode()[1:],  # half a character at the start, the middle, the end
        CHINESE.encode()[:10] + CHINESE.encode()[11:],
        CHINESE.encode()[:-4] + b"\n",
        b"a \xff\xfe b\n",
        b"word \xe6\x98 word\n",
        b"naive \xc3 word\n",
        "Лебедь".encode("cp1251") + b"\n",
        "łabędź".encode("cp1250") + b" \xb3\xb9\n",
        b"\x81\x8d\n",
        b"cut off: \xe4",
    ],
)
def test_damaged_utf8_is_not_taken_for_windows_latin(line: bytes) -> None:
    assert western_text(line) is None


@pytest.mark.parametrize("text", [ENGLISH, FRENCH, GERMAN, "À la carte, señor: 5 € – «oui»"])
def test_windows_latin_is_taken_for_what_it_is(text: str) -> None:
    assert western_text(f"{text}\n".encode("cp1252")) == f"{text}\n"


@given(st.lists(st.binary(max_size=9) | st.sampled_from([b"\n", b"\r\n", b"\r"])), st.data())
def test_the_blocks_do_not_matter(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    encoding = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "cp1252", "cp850"]))
    told: list[tuple[int, str]] = []
    decoder = MixedDecoder(encoding, lambda number, other: told.append((number, other)))
    at, found = 0, ""
    while at < len(whole):
        size = data.draw(st.integers(1, 8))
        found += decoder.decode(whole[at : at + size])
        at += size
    found += decoder.finish()
    assert (found, len(told)) == decode_mixed(whole, encoding)
    lines = whole.removeprefix(b"\xef\xbb\xbf").splitlines() if "sig" in encoding else None
    for number, _ in told:
        assert not (lines or whole.splitlines())[number - 1].isascii()


@given(st.text(max_size=50), st.integers(1, 9))
def test_lines_too_long_to_wait_for_lose_nothing(text: str, size: int) -> None:
    data = text.encode(errors="replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixed, "MAX_WAITING_BYTES", 5)
        decoder = MixedDecoder("utf-8", lambda *_: None)
        found = "".join(decoder.decode(data[at : at + size]) for at in range(0, len(data), size))
        assert found + decoder.finish() == data.decode()


def test_a_page_put_together_of_both_is_read_as_both() -> None:
    page = f"<html><body><p>{CHINESE}</p>\n".encode() + f"<p>{FRENCH}</p>\n".encode("cp1252")
    problems = Problems()
    (piece,) = html_pieces(io.BytesIO(page), "a.html", problems)
    assert CHINESE in piece.text and FRENCH in piece.text
    assert {kind: x.count for kind, x in problems.kinds.items()} == {"other encoding": 1}
