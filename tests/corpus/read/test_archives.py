import bz2
import gzip
import io
import lzma
import random
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.corpus.document import Document
from cygnet.corpus.read.find import find_files
from cygnet.corpus.read.open import Bounds
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import read_file

NAMES = ("a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz", "a.tar.zst")
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)
MEMBERS = {
    "docs/a.txt": b"first",
    "docs/rows.jsonl": b'{"text": "second", "n": 2}\n{"text": "third", "n": 3}\n',
    "b.txt.gz": gzip.compress(b"fourth"),
    ".hidden/c.txt": b"hidden",
    "__MACOSX/a.txt": b"hidden",
    "image.png": b"\x89PNG",
    "inner.zip": b"PK\x05\x06" + bytes(18),
    "d.txt": b"fifth",
}


def archive(name: str, members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as packed:
            for member, data in members.items():
                packed.writestr(member, data)
        return sink.getvalue()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = sink.getvalue()
    if name.endswith((".tgz", ".gz")):
        return gzip.compress(data)
    if name.endswith(".zst"):
        return pyarrow.compress(data, "zstd", asbytes=True)
    packers = {".bz2": bz2.compress, ".xz": lzma.compress}
    return packers.get(Path(name).suffix, bytes)(data)


def read(
    path: Path, content: bytes, bounds: Bounds | None = None
) -> tuple[list[Document], Problems]:
    path.write_bytes(content)
    problems = Problems()
    (file,) = find_files([str(path)], problems)
    return list(read_file(file, problems, bounds=bounds or Bounds())), problems


@pytest.mark.parametrize("name", NAMES)
def test_each_member_is_read_as_a_file_of_its_kind(tmp_path: Path, name: str) -> None:
    documents, problems = read(tmp_path / name, archive(name, MEMBERS))
    assert [(d.text, d.source, d.domain, d.fields) for d in documents] == [
        ("first", f"{name}!docs/a.txt", "a", {}),
        ("second", f"{name}!docs/rows.jsonl:1", "a", {"n": 2}),
        ("third", f"{name}!docs/rows.jsonl:2", "a", {"n": 3}),
        ("fourth", f"{name}!b.txt.gz", "a", {}),
        ("fifth", f"{name}!d.txt", "a", {}),
    ]
    assert {kind: [Path(p[0]).name for p in x.places] for kind, x in problems.kinds.items()} == {
        "not text": [f"{name}!image.png"],
        "nested archive": [f"{name}!inner.zip"],
    }


@pytest.mark.parametrize("name", NAMES)
@given(texts=st.lists(TEXTS, max_size=4))
def test_texts_come_back_from_each_archive(
    tmp_path_factory: pytest.TempPathFactory, name: str, texts: list[str]
) -> None:
    members = {f"{i}.txt": b"\xef\xbb\xbf" + text.encode() for i, text in enumerate(texts)}
    documents, problems = read(tmp_path_factory.getbasetemp() / name, archive(name, members))
    assert [d.text for d in documents] == texts and not problems.kinds


def words(num_bytes: int, seed: int) -> bytes:
    draw = random.Random(seed)
    return b"".join(b"%x\n" % draw.getrandbits(60) for _ in range(num_bytes // 15))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("streamed", [False, True])
def test_of_a_truncated_archive_what_came_before_is_used(
    tmp_path: Path, name: str, streamed: bool
) -> None:
    members = {f"{i}.txt": words(400_000, i) for i in range(4)}
    content = archive(name, members)
    if streamed and name == "a.zip":  # sizes stand behind the members, as in a zip to a pipe

        class Pipe(io.RawIOBase):
            parts: list[bytes] = []  # noqa: RUF012

            def writable(self) -> bool:
                return True

            def write(self, data: bytes) -> int:  # type: ignore[override]
                self.parts.append(bytes(data))
                return len(data)

        pipe = Pipe()
        with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as packed:  # type: ignore[arg-type]
            for member, data in members.items():
                packed.writestr(member, data)
        content = b"".join(pipe.parts)
    documents, problems = read(tmp_path / name, content[: len(content) * 5 // 8])
    for i in range(2):
        text = "".join(d.text for d in documents if f"!{i}.txt" in d.source)
        assert text.encode() == members[f"{i}.txt"]
    third = "".join(d.text for d in documents if "!2.txt" in d.source).encode()
    assert members["2.txt"].startswith(third) and len(third) > 30_000
    # One cut is one problem; it names the member that it goes through.
    assert {kind: x.count for kind, x in problems.kinds.items()} == {"damaged file": 1}
    assert problems.kinds["damaged file"].places[0][0] == f"{tmp_path / name}!2.txt"


def test_a_damaged_member_costs_itself_alone(tmp_path: Path) -> None:
    content = bytearray(archive("a.zip", {f"{i}.txt": words(50_000, i) for i in range(3)}))
    at = content.index(b"1.txt") + 20_000
    content[at : at + 100] = bytes(100)
    documents, problems = read(tmp_path / "a.zip", bytes(content))
    assert {d.source.split(":")[0] for d in documents} >= {"a.zip!0.txt", "a.zip!2.txt"}
    assert [p[0] for p in problems.kinds["damaged file"].places] == [f"{tmp_path}/a.zip!1.txt"]


BOMB = {"a.txt": b"before", "bomb.txt": b"bomb \n" * 200_000, "z.txt": b"after"}


@pytest.mark.parametrize("bound", [{"max_member_bytes": 100_000}, {"max_ratio": 20}])
def test_a_bomb_in_a_zip_is_named_with_its_bound_and_the_rest_goes_on(
    tmp_path: Path, bound: dict[str, int]
) -> None:
    bounds = Bounds(free_bytes=10_000, **bound)
    documents, problems = read(tmp_path / "a.zip", archive("a.zip", BOMB), bounds)
    assert [d.text for d in documents] == ["before", "after"]
    ((where, why),) = problems.kinds["unpacks too large"].places
    assert where.endswith("a.zip!bomb.txt") and next(iter(bound)) in why


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.zst"])
def test_a_member_of_a_tar_over_the_bound_is_cut_and_the_rest_goes_on(
    tmp_path: Path, name: str
) -> None:
    bounds = Bounds(max_member_bytes=100_000)
    documents, problems = read(tmp_path / name, archive(name, BOMB), bounds)
    assert (documents[0].text, documents[-1].text) == ("before", "after")
    assert sum(len(d.text) for d in documents) < 300_000
    ((where, why),) = problems.kinds["unpacks too large"].places
    assert where.endswith("!bomb.txt") and "max_member_bytes (100,000)" in why


def test_a_compressed_tar_that_is_a_bomb_stops_at_the_ratio(tmp_path: Path) -> None:
    bounds = Bounds(max_ratio=20, free_bytes=10_000)
    documents, problems = read(tmp_path / "a.tgz", archive("a.tgz", BOMB), bounds)
    assert documents[0].text == "before" and "after" not in {d.text for d in documents}
    assert any("max_ratio (20)" in why for _, why in problems.kinds["unpacks too large"].places)


def test_a_header_that_lies_about_the_size_does_not_get_past_the_bound(tmp_path: Path) -> None:
    content = bytearray(archive("a.zip", BOMB))
    true, lie = (1_200_000).to_bytes(4, "little"), (5_000).to_bytes(4, "little")
    documents, problems = read(tmp_path / "a.zip", bytes(content).replace(true, lie))
    assert sum(len(d.text) for d in documents if "bomb" in d.source) <= 5_000
    assert problems.count("damaged file") == 1


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    content = archive("a.zip", {f"{i}.txt": words(60_000, 1) for i in range(20)})
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        first = packed.infolist()[0]
        data_end = packed.infolist()[1].header_offset
    # Each entry of the directory points to the first member's data.
    sink = io.BytesIO(content[:data_end])
    sink.seek(0, io.SEEK_END)
    with zipfile.ZipFile(sink, "a") as forged:
        for i in range(20):
            info = zipfile.ZipInfo(first.filename)
            info.header_offset, info.CRC = first.header_offset, first.CRC
            info.compress_type = zipfile.ZIP_DEFLATED
            info.compress_size, info.file_size = first.compress_size, first.file_size
            forged.filelist.append(info)
            forged.NameToInfo[f"{i}"] = info
        forged._didModify = True  # type: ignore[attr-defined]
    documents, problems = read(tmp_path / "a.zip", sink.getvalue())
    assert len({d.text for d in documents}) == len(documents)
    assert problems.count("unpacks too large") + problems.count("damaged file") >= 19


def test_an_encrypted_member_is_named(tmp_path: Path) -> None:
    content = bytearray(archive("a.zip", {"a.txt": b"secret", "b.txt": b"open"}))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    documents, problems = read(tmp_path / "a.zip", bytes(content))
    assert [d.text for d in documents] == ["open"]
    assert "encrypted" in problems.kinds["damaged file"].places[0][1]


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_an_archive_with_any_damage_raises_nothing(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    content = bytearray(archive(name, {"a.txt": b"one " * 50, "b.jsonl": b'{"text": "x"}\n' * 9}))
    start = data.draw(st.integers(0, len(content)))
    content[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    read(tmp_path_factory.getbasetemp() / name, bytes(content))


@pytest.mark.parametrize("name", NAMES)
@given(content=st.binary(max_size=300))
def test_random_bytes_are_counted_and_raise_nothing(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes
) -> None:
    documents, problems = read(tmp_path_factory.getbasetemp() / name, content)
    assert documents == [] and sum(p.count for p in problems.kinds.values()) >= 1


@pytest.mark.parametrize("name", ["l.tar", "l.tar.gz"])
def test_a_tar_that_promises_more_than_there_is_ends_at_once(tmp_path: Path, name: str) -> None:
    info = tarfile.TarInfo("s.txt")
    info.size = 10**12
    data = archive("a.tar", {"a.txt": b"first"})[:1024]
    data += info.tobuf(tarfile.GNU_FORMAT) + b"words" * 10_000
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    problems = Problems()
    (file,) = find_files([str(tmp_path / name)], problems)
    text = "".join(document.text for document in read_file(file, problems))
    assert text.startswith("firstwordswords")
    assert problems.count("damaged file") == 1
