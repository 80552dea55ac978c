import gzip
import io
import json
import random
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from cygnet.corpus.document import Document
from cygnet.corpus.read import remote
from cygnet.corpus.read.find import find_files
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import read_file
from cygnet.errors import UserError


@dataclass
class Site:
    """What a server on this machine gives, and how it misbehaves."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str = '"one"'
    content_type: str = "application/octet-stream"
    knows_ranges: bool = True
    has_head: bool = True
    breaks: list[int] = field(default_factory=list)
    """After how many bytes the next connections break; 0 for never."""
    changes_after_break: bool = False
    failures: list[int] = field(default_factory=list)
    """Answers to the next requests."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """(method, range) of each."""


def handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            wanted = self.headers.get("Range", "")
            site.requests.append((self.command, wanted))
            data = site.files.get(self.path)
            if site.failures:
                return self.send_error(site.failures.pop(0))
            if data is None or (not with_body and not site.has_head):
                return self.send_error(404 if data is None else 405)
            found = re.fullmatch(r"bytes=(\d+)-", wanted)
            is_same = self.headers.get("If-Range", site.etag) == site.etag
            start = int(found[1]) if found and site.knows_ranges and is_same else 0
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("Content-Type", site.content_type)
            self.send_header("ETag", site.etag)
            self.end_headers()
            if with_body:
                body = data[start:]
                broken = site.breaks.pop(0) if site.breaks else 0
                self.wfile.write(body[:broken] if broken else body)
                if broken and site.changes_after_break:
                    site.etag = '"two"'
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(site))
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    server.shutdown()
    thread.join()
    server.server_close()


def read(*given: str) -> tuple[list[Document], Problems]:
    problems = Problems()
    files = find_files(given, problems)
    return [d for file in files for d in read_file(file, problems)], problems


ROWS = [{"text": f"row {i} {random.Random(i).random()}"} for i in range(5_000)]
JSONL = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
TEXTS = [row["text"] for row in ROWS]


def test_a_url_is_read_as_its_file_and_has_an_identity(site: Site) -> None:
    site.files["/set/rows.jsonl.gz"] = gzip.compress(JSONL)
    url = f"{site.address}/set/rows.jsonl.gz?version=3"
    site.files["/set/rows.jsonl.gz?version=3"] = site.files["/set/rows.jsonl.gz"]
    (file,) = find_files([url], Problems())
    assert (file.url, file.size, file.version) == (
        url,
        len(site.files["/set/rows.jsonl.gz"]),
        '"one"',
    )
    assert (file.source, file.domain, file.kind) == (
        "127.0.0.1/set/rows.jsonl.gz",
        "rows",
        "jsonl",
    )
    told: list[int] = []
    documents = list(read_file(file, Problems(), advance=told.append))
    assert [d.text for d in documents] == TEXTS
    assert documents[1].source == "127.0.0.1/set/rows.jsonl.gz:2"
    assert sum(told) == file.num_bytes() == file.size


@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize("has_head", [True, False])
def test_a_broken_connection_goes_on_where_it_broke(
    site: Site, knows_ranges: bool, has_head: bool
) -> None:
    site.files["/rows.jsonl"] = JSONL
    site.knows_ranges, site.has_head = knows_ranges, has_head
    # Where there are no ranges all is sent again, and must once come whole.
    probe = [] if has_head else [0]
    site.breaks = [*probe, *([50_000] * 3 if knows_ranges else [100_000, 150_000])]
    documents, problems = read(f"{site.address}/rows.jsonl")
    assert [d.text for d in documents] == TEXTS and not problems.kinds
    asked = [wanted for method, wanted in site.requests if method == "GET" and wanted]
    step = 50_000 if knows_ranges else 100_000
    assert asked[0] == f"bytes={step}-" and len(asked) == (3 if knows_ranges else 2)


def test_a_file_that_changes_while_it_is_read_is_not_joined(site: Site) -> None:
    site.files["/rows.jsonl"] = JSONL
    site.breaks, site.changes_after_break = [100_000], True
    documents, problems = read(f"{site.address}/rows.jsonl")
    assert [d.text for d in documents] == TEXTS[: len(documents)] and len(documents) > 1_000
    assert "changed on the server" in problems.kinds["damaged file"].places[0][1]


def test_a_server_that_fails_for_a_moment_is_asked_again(site: Site) -> None:
    site.files["/a.txt"] = b"hello"
    site.failures = [503, 429]
    assert [d.text for d in read(f"{site.address}/a.txt")[0]] == ["hello"]


def test_urls_that_fail_are_counted_and_the_rest_goes_on(site: Site, tmp_path: Path) -> None:
    site.files["/good.txt"] = b"good"
    site.files["/a.bin"] = b"\0"
    lost, closed = f"{site.address}/lost.txt", "http://127.0.0.1:9/a.txt"
    documents, problems = read(lost, closed, f"{site.address}/a.bin", f"{site.address}/good.txt")
    assert [d.text for d in documents] == ["good"]
    places = dict(problems.kinds["failed download"].places)
    assert places[lost].startswith("404") and "refused" in places[closed]
    assert problems.kinds["not text"].places[0][0] == f"{site.address}/a.bin"


def test_a_url_that_fails_after_it_was_found_is_counted(site: Site) -> None:
    site.files["/a.txt"] = b"x"
    problems = Problems()
    (file,) = find_files([f"{site.address}/a.txt"], problems)
    site.files.clear()
    assert list(read_file(file, problems)) == []
    places = [(f"{site.address}/a.txt", "HTTP Error 404: Not Found")]
    assert problems.kinds["failed download"].places == places


def test_a_name_without_a_suffix_is_read_by_its_content_type(site: Site) -> None:
    site.files["/page"] = b"just words"
    site.content_type = "text/plain; charset=utf-8"
    assert [d.text for d in read(f"{site.address}/page")[0]] == ["just words"]


def test_passwords_in_urls_are_not_shown() -> None:
    problems = Problems()
    find_files(["http://me:secret@127.0.0.1:9/a.txt"], problems)
    assert problems.count("failed download") == 1 and "secret" not in str(problems)


def test_archives_and_parquet_behind_urls(site: Site) -> None:
    import zipfile

    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("inner/a.txt", "inside")
    site.files["/a.zip"] = sink.getvalue()
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"]}), sink)
    site.files["/b.parquet"] = sink.getvalue()
    documents, _ = read(f"{site.address}/a.zip", f"{site.address}/b.parquet")
    assert [(d.text, d.source) for d in documents] == [
        ("inside", "127.0.0.1/a.zip!inner/a.txt"),
        ("one", "127.0.0.1/b.parquet:1"),
        ("two", "127.0.0.1/b.parquet:2"),
    ]


@pytest.fixture
def stored() -> Iterator[str]:
    fsspec = pytest.importorskip("fsspec")
    storage = fsspec.filesystem("memory")
    for name, content in {
        "top/a.txt": b"one",
        "top/poems/b.jsonl.gz": gzip.compress(b'{"text": "two"}\n'),
        "top/.hidden.txt": b"no",
        "top/image.png": b"no",
    }.items():
        storage.pipe(f"/box/{name}", content)
    yield "memory://box"
    storage.rm("/box", recursive=True)


def test_folders_globs_and_files_of_a_storage(stored: str) -> None:
    documents, problems = read(f"{stored}/top")
    assert [(d.text, d.source, d.domain) for d in documents] == [
        ("one", "top/a.txt", "top"),
        ("two", "top/poems/b.jsonl.gz:1", "poems"),
    ]
    assert problems.count("not text") == 1
    documents, _ = read(f"{stored}/top/*.txt", f"{stored}/top/poems/b.jsonl.gz")
    assert [(d.text, d.source, d.domain) for d in documents] == [
        ("one", "top/a.txt", "top"),
        ("two", "b.jsonl.gz:1", "b"),
    ]
    (file,) = find_files([f"{stored}/top/a.txt"], Problems())
    assert file.size == 3 and file.version


def test_storage_that_is_not_there_or_not_known(stored: str) -> None:
    _, problems = read(f"{stored}/nothing.txt")
    assert problems.kinds["failed download"].places[0][0] == f"{stored}/nothing.txt"
    with pytest.raises(UserError, match=r"nosuch://a/b\.txt: Protocol not known: nosuch"):
        read("nosuch://a/b.txt")


def test_a_storage_whose_package_is_missing_is_counted_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = pytest.importorskip("fsspec.registry").known_implementations
    plugged = {"class": "nosuchfs.Storage", "err": "Install nosuchfs to read it"}
    monkeypatch.setitem(registry, "plugged", plugged)
    (tmp_path / "a.txt").write_text("good")
    documents, problems = read("plugged://box/b.txt", str(tmp_path / "a.txt"))
    assert [d.text for d in documents] == ["good"]
    assert problems.kinds["failed download"].places == [
        ("plugged://box/b.txt", "Install nosuchfs to read it")
    ]


@pytest.mark.parametrize("when", ["open", "read"])
def test_a_storage_s_own_errors_are_counted(
    stored: str, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    class OddError(Exception):
        pass

    class File(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OddError("no credentials")

    def refuse(*_: Any, **__: Any) -> File:
        if when == "read":
            return File()
        raise OddError("no credentials")

    storage = pytest.importorskip("fsspec").filesystem("memory")
    problems = Problems()
    (file,) = find_files([f"{stored}/top/a.txt"], problems)
    monkeypatch.setattr(type(storage), "open", refuse)
    assert list(read_file(file, problems)) == []
    (kind,) = problems.kinds
    assert kind == ("failed download" if when == "open" else "damaged file")
    assert problems.kinds[kind].places == [(file.url, "no credentials")]


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("text")
    (document,), _ = read((tmp_path / "a b.txt").as_uri())
    assert (document.text, document.source) == ("text", "a b.txt")
