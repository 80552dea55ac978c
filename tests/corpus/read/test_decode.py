import io
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.corpus.read import decode
from cygnet.corpus.read.decode import TextStream, cut
from cygnet.corpus.read.problems import Problems

CHINESE = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。\n"
ENGLISH = "It was a bright cold day, and the clocks struck.\n"
FRENCH = "Le cygne est un grand oiseau d'eau; au printemps, il niche près des rivières, l'été.\n"
TRADITIONAL = "天鵝是一種大型水鳥，春天在湖泊和緩流的河邊築巢，秋天成群飛往南方過冬。\n"
JAPANESE = "白鳥は大きな水鳥で、春になると湖や流れの緩やかな川のほとりに巣を作ります。\n"
KOREAN = "백조는 큰 물새로 봄에 호수와 느린 강가에 둥지를 틀고 가을에는 남쪽으로 날아간다.\n"
RUSSIAN = "Лебедь, крупная водоплавающая птица, весной гнездится у озёр и медленных рек.\n"
GREEK = "Ο κύκνος είναι ένα μεγάλο υδρόβιο πουλί που φωλιάζει την άνοιξη.\n"
GERMAN = "Für über zwölf Köche genügt das Öl, schön wäre Käse.\n"


def read(data: bytes) -> tuple[str, Problems]:
    problems = Problems()
    return "".join(TextStream(io.BytesIO(data), "f.txt", problems).chunks()), problems


@pytest.mark.parametrize("text", [ENGLISH * 30, CHINESE * 30, GERMAN * 30, ENGLISH])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marked_unicode_and_utf8_are_recognised(text: str, encoding: str) -> None:
    decoded, _ = read(text.encode(encoding))
    assert decoded == text


@pytest.mark.parametrize(("mark", "encoding"), [("fffe", "utf-16-le"), ("feff", "utf-16-be")])
def test_marks_of_both_byte_orders(mark: str, encoding: str) -> None:
    decoded, _ = read(bytes.fromhex(mark) + CHINESE.encode(encoding))
    assert decoded == CHINESE


@pytest.mark.parametrize("text", [ENGLISH * 30, GERMAN * 30, ENGLISH])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_known_by_its_zeros(text: str, encoding: str) -> None:
    decoded, _ = read(text.encode(encoding))
    assert decoded == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (CHINESE * 30, "gb18030"),
        (CHINESE, "gbk"),
        (GERMAN * 30, "cp1252"),
        (FRENCH * 30, "cp1252"),
        (TRADITIONAL * 30, "big5"),
        (JAPANESE * 30, "shift_jis"),
        (JAPANESE * 30, "euc_jp"),
        (KOREAN * 30, "euc_kr"),
        (RUSSIAN * 30, "cp1251"),
        (RUSSIAN * 30, "koi8_r"),
        (GREEK * 30, "cp1253"),
        (TRADITIONAL * 2000, "big5"),
    ],
)
def test_older_encodings_are_recognised_and_said(text: str, encoding: str) -> None:
    decoded, problems = read(text.encode(encoding))
    assert decoded == text
    assert problems.count("other encoding") == 1


def test_broken_bytes_among_good_ones_are_replaced_counted_and_named() -> None:
    data = (CHINESE * 2).encode() + b"a \xff\xfe b\n" + CHINESE.encode()
    decoded, problems = read(data)
    assert decoded == CHINESE * 2 + "a \ufffd\ufffd b\n" + CHINESE
    assert problems.count("unreadable bytes") == 2
    assert problems.kinds["unreadable bytes"].examples == ["f.txt:3"]


def test_nuls_are_removed_counted_and_named() -> None:
    decoded, problems = read((ENGLISH * 4 + "a\0b\0\n" + ENGLISH).encode())
    assert decoded == ENGLISH * 4 + "ab\n" + ENGLISH
    assert problems.count("NUL characters") == 2
    assert problems.kinds["NUL characters"].examples == ["f.txt:5"]


def test_bytes_that_are_no_text_are_left_out_and_named() -> None:
    decoded, problems = read(random.Random(0).randbytes(5000) + b"\0" * 2000)
    assert decoded == "" and problems.count("not text") == 1


def test_line_ends_of_any_system() -> None:
    decoded, _ = read(b"a\r\nb\rc\n")
    assert decoded == "a\nb\nc\n"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"))))
def test_lines_are_the_lines(monkeypatch_lines: None, lines: list[str]) -> None:
    text = "\n".join(line.replace("\n", "") for line in lines)
    stream = TextStream(io.BytesIO(b"\xef\xbb\xbf" + text.encode()), "f", Problems())
    expected = [(i, x) for i, x in enumerate(text.split("\n"), 1) if x]
    assert [(number, line) for number, line in stream.lines() if line] == expected


@pytest.fixture(scope="module")
def monkeypatch_lines() -> object:
    """Small chunks, so that lines and characters cross their borders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "CHUNK_BYTES", 3)
        patch.setattr(decode, "SAMPLE_BYTES", 3)
        yield


def test_a_line_over_the_limit_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_LINE_CHARS", 50)
    for chunk in (7, 1000):
        monkeypatch.setattr(decode, "CHUNK_BYTES", chunk)
        monkeypatch.setattr(decode, "SAMPLE_BYTES", chunk)
        problems = Problems()
        data = b"one\n" + b"x" * 51 + b"\nthree\n" + b"y" * 50 + b"\n" + b"z" * 200
        lines = list(TextStream(io.BytesIO(data), "f", problems).lines())
        assert lines == [(1, "one"), (3, "three"), (4, "y" * 50)]
        assert problems.kinds["line too long"].examples == [
            "f:2: over 50 characters",
            "f:5: over 50 characters",
        ]


@given(st.text(alphabet="ab。. \n", max_size=300), st.integers(2, 50))
def test_cut_pieces_put_together_are_the_text(text: str, max_chars: int) -> None:
    pieces = list(cut(text, max_chars))
    assert "".join(pieces) == text
    assert all(len(piece) <= max_chars for piece in pieces)


@given(st.text(alphabet="ab。. \n", max_size=300), st.integers(2, 50), st.integers(1, 40))
def test_streamed_pieces_are_those_of_the_whole(text: str, max_chars: int, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "CHUNK_BYTES", chunk)
        patch.setattr(decode, "SAMPLE_BYTES", chunk)
        pieces = list(TextStream(io.BytesIO(text.encode()), "f", Problems()).pieces(max_chars))
    assert [piece for _, piece in pieces] == [piece for piece in cut(text, max_chars) if piece]
    at = 0
    for line, piece in pieces:
        assert line == 1 + text.count("\n", 0, at)
        at += len(piece)


def test_a_piece_ends_at_a_paragraph_where_there_is_one() -> None:
    assert list(cut("a b. c d\n\ne f. g", 14)) == ["a b. c d\n\n", "e f. g"]


@given(st.lists(st.text("ab。. \n", max_size=20)), st.integers(2, 50), st.integers(1, 40))
def test_separators_are_seen_across_chunks(parts: list[str], max_chars: int, chunk: int) -> None:
    data = "\n<|endoftext|>\n".join(parts).encode()
    whole = list(TextStream(io.BytesIO(data), "f", Problems()).pieces(max_chars))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "CHUNK_BYTES", chunk)
        patch.setattr(decode, "SAMPLE_BYTES", chunk)
        streamed = list(TextStream(io.BytesIO(data), "f", Problems()).pieces(max_chars))
    assert streamed == whole
    assert not any("endoftext" in piece for _, piece in whole)


def test_a_separator_line_parts_documents_and_one_inside_a_line_does_not() -> None:
    data = b"one <|endoftext|> one\n<|endoftext|>\ntwo\n"
    pieces = list(TextStream(io.BytesIO(data), "f", Problems()).pieces(1000))
    assert pieces == [(1, "one <|endoftext|> one"), (3, "two\n")]
