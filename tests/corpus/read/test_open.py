import bz2
import gzip
import io
import lzma
import random
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.corpus.read import open as opening
from cygnet.corpus.read.find import find_files
from cygnet.corpus.read.open import Bounds, Flow
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import read_file
from cygnet.errors import UserError


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, "zstd", asbytes=True)


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}
# U+FFFD in a file is told as damage, wherever it came from.
CHARACTERS = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffd")
TEXTS = st.text(CHARACTERS, min_size=1).filter(str.strip)


def read(path: Path, bounds: Bounds | None = None) -> tuple[str, Problems]:
    problems = Problems()
    files = find_files([str(path)], problems)
    documents = [
        document
        for file in files
        for document in read_file(file, problems, bounds=bounds or Bounds())
    ]
    return "".join(document.text for document in documents), problems


def prose(num_bytes: int) -> bytes:
    """Return lines of words that hardly compress below a third."""
    draw = random.Random(0)
    lines = []
    while num_bytes > 0:
        lines.append(" ".join(f"{draw.getrandbits(40):x}" for _ in range(9)).encode() + b"\n")
        num_bytes -= len(lines[-1])
    return b"".join(lines)


@pytest.mark.parametrize("suffix", PACK)
@given(text=TEXTS)
def test_texts_come_back_from_each_compression(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](b"\xef\xbb\xbf" + text.encode()))
    found, problems = read(path)
    assert found == text and not problems.kinds


@pytest.mark.parametrize("suffix", PACK)
def test_joined_streams_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](b"one\n") + PACK[suffix](b"two\n"))
    assert read(path)[0] == "one\ntwo\n"


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("damage", ["cut off", "overwritten"])
def test_what_came_before_the_damage_is_used(tmp_path: Path, suffix: str, damage: str) -> None:
    data = prose(2_000_000)
    packed = PACK[suffix](data)
    # bzip2 and zstd check or give whole blocks, of up to 900,000 bytes.
    packed = packed[: len(packed) * 3 // 4] + (b"" if damage == "cut off" else b"\xff" * 200_000)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(packed)
    text, problems = read(path)
    assert data.decode().startswith(text.replace("\ufffd", "")[: len(data) // 4])
    assert len(text) > 850_000
    assert problems.count("damaged file") == 1
    assert problems.kinds["damaged file"].places[0][0] == str(path)


def test_a_bomb_stops_at_the_bound_that_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"bomb \n" * 500_000))
    (tmp_path / "b.txt").write_text("the rest")
    text, problems = read(tmp_path, Bounds(max_ratio=20, free_bytes=100_000))
    assert text.endswith("the rest") and 0 < text.count("bomb") < 100_000
    where, why = problems.kinds["unpacks too large"].places[0]
    assert where.endswith("a.txt.gz") and "over max_ratio (20)" in why
    assert read(tmp_path)[1].kinds == {}


def test_a_bound_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="max_ratio is 0"):
        Bounds(max_ratio=0)


@pytest.mark.parametrize(
    ("name", "content", "kind", "why"),
    [
        ("a.txt", gzip.compress(b"hello"), "other kind", "gzip-compressed"),
        ("a.txt.gz", b"hello", "other kind", "not compressed"),
        ("a.txt.bz2", lzma.compress(b"hello"), "other kind", "xz-compressed"),
        ("a.txt.gz", gzip.compress(gzip.compress(b"hello")), "not text", "compressed twice"),
        ("a.txt", b"\x7fELF\x02\x01\x01\0rest of it", "not text", "a program (ELF)"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0rest", "not text", "an image (PNG)"),
        ("a.jsonl", b"\xff\xd8\xff\xe0\0rest of it", "not text", "an image (JPEG)"),
        ("a.md", b"MZ\x90\0\x03\0\0\0", "not text", "a program (PE)"),
        ("a.csv", b"RIFF\0\0\0\0WEBPVP8 ", "not text", "an image, a sound or a film (RIFF)"),
        ("a.txt", random.Random(0).randbytes(3000), "not text", "of no text encoding"),
        ("a.xml", b"<?xml version='1.0'?><rows/>", "not text", "XML of a kind"),
    ],
)
def test_first_bytes_decide_where_they_contradict_the_name(
    tmp_path: Path, name: str, content: bytes, kind: str, why: str
) -> None:
    (tmp_path / name).write_bytes(content)
    text, problems = read(tmp_path / name)
    assert text == ("hello" if kind == "other kind" else "")
    assert list(problems.kinds) == [kind] and problems.count(kind) == 1
    assert why in problems.kinds[kind].places[0][1]


def test_a_text_that_starts_with_the_letters_of_a_mark_is_text(tmp_path: Path) -> None:
    for text in ("BZh is how bzip2 starts", "MZ or ZM", "PK\nwas here", "ID3 tags", "RIFF raff"):
        (tmp_path / "a.txt").write_text(text)
        assert read(tmp_path / "a.txt")[0] == text


def test_a_parquet_file_by_another_name_is_read_as_such(tmp_path: Path) -> None:
    import pyarrow.parquet

    table = pyarrow.table({"text": ["one", "two"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.txt")
    text, problems = read(tmp_path / "a.txt")
    assert text == "onetwo" and "parquet" in problems.kinds["other kind"].places[0][1]
    (tmp_path / "b.parquet.xz").write_bytes(lzma.compress((tmp_path / "a.txt").read_bytes()))
    assert read(tmp_path / "b.parquet.xz")[0] == "onetwo"
    text, problems = read(tmp_path / "b.parquet.xz", Bounds(max_member_bytes=100))
    assert text == "" and "max_member_bytes (100)" in problems.lines()[0]


def test_a_source_that_vanishes_or_may_not_be_read_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    problems = Problems()
    files = find_files([str(tmp_path)], problems)
    (tmp_path / "a.txt").unlink()
    real = open

    def refuse(path: Path, *rest: str) -> object:
        if Path(path).name == "b.txt":  # root may read all, whatever the mode
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest)

    monkeypatch.setattr(opening, "open", refuse, raising=False)
    texts = [d.text for file in files for d in read_file(file, problems)]
    assert texts == ["c"]
    assert problems.kinds["unreadable"].places == [
        (str(tmp_path / "a.txt"), "No such file or directory"),
        (str(tmp_path / "b.txt"), "Permission denied"),
    ]


def test_a_fault_of_the_disk_ends_the_file_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            block = super().read1(10)
            if not block:
                raise OSError(5, "Input/output error")
            return block

    (tmp_path / "a.txt").write_text("x")
    monkeypatch.setattr(
        opening, "open", lambda *_: Failing(b"ten bytes\nand more\n"), raising=False
    )
    text, problems = read(tmp_path / "a.txt")
    assert text == "ten bytes\nand more\n"
    assert "Input/output error" in problems.kinds["damaged file"].places[0][1]


@given(st.lists(st.binary(max_size=50)), st.integers(1, 70))
def test_a_flow_gives_what_it_reads_and_counts_it(blocks: list[bytes], size: int) -> None:
    data, told = b"".join(blocks), []
    stream = io.BytesIO(data)
    flow = Flow(stream.read, advance=told.append)
    assert io.BufferedReader(flow, size).read() == data
    assert sum(told) == flow.num_bytes == len(data)


MEASURE = """
import resource, sys
from pathlib import Path
from cygnet.corpus.read.find import find_files
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import read_file
small, large = find_files(sys.argv[1:], Problems())
list(read_file(small, Problems()))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
chars = sum(len(d.text) for d in read_file(large, Problems()))
print(chars, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def packed(suffix: str, data: bytes) -> bytes:
    sink = io.BytesIO()
    if suffix == ".zip":
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("a.txt", data)
    elif suffix == ".tar":
        with tarfile.open(fileobj=sink, mode="w") as tar:
            info = tarfile.TarInfo("a.txt")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    else:
        return gzip.compress(data, 1) if suffix == ".gz" else zstd(data)
    return sink.getvalue()


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".zip", ".tar"])
def test_memory_is_flat_whatever_comes_out(tmp_path: Path, suffix: str) -> None:
    name = "{}" + suffix if suffix in (".zip", ".tar") else "{}.txt" + suffix
    small, large = tmp_path / name.format("small"), tmp_path / name.format("large")
    data = prose(1_000_000) * 80
    small.write_bytes(packed(suffix, b"small"))
    large.write_bytes(packed(suffix, data))
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, small, large], check=True, capture_output=True, text=True
    ).stdout
    chars, grown_mib = map(int, output.split())
    assert chars == len(data) and grown_mib < 40
