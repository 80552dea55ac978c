"""Files behind URLs: http(s) by the standard library, other kinds of storage by fsspec."""

from __future__ import annotations

import contextlib
import glob
import http.client
import io
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urlsplit

import cygnet
from cygnet.corpus.read.find import InputFile
from cygnet.corpus.read.kinds import READABLE, kind_of, stem_of
from cygnet.corpus.read.problems import Problems
from cygnet.errors import UserError, require

TIMEOUT_S = 60.0
RETRIES = 4
"""So many times in a row a connection may break or a server fail without one byte more."""
FIRST_WAIT_S = 0.5
"""Before the first retry; before each further one it is twice as long."""

_KIND_OF_TYPE = {
    "text/html": "html",
    "application/xhtml+xml": "html",
    "text/plain": "text",
    "text/markdown": "text",
    "text/csv": "csv",
    "application/json": "json",
    "application/x-ndjson": "jsonl",
    "application/jsonl": "jsonl",
    "application/pdf": "pdf",
    "application/epub+zip": "epub",
    "application/zip": "zip",
    "application/warc": "warc",
    "application/vnd.apache.parquet": "parquet",
}
_NO_HEAD = (403, 405, 501)
_WORTH_A_RETRY = (408, 425, 429, 500, 502, 503, 504)
_VERSIONS = ("ETag", "etag", "LastModified", "last_modified", "updated", "mtime", "created")


def local_path(url: str) -> str | None:
    """Return the path that a `file://` URL means; None for any other URL."""
    parts = urlsplit(url)
    if parts.scheme != "file":
        return None
    return urllib.request.url2pathname(parts.path)


def find_urls(given: str, problems: Problems) -> list[InputFile]:
    """Return the files behind a URL: one, or what a folder or a glob of a storage holds.

    What does not answer, is of an unknown kind, or needs a package that is not installed, is
    counted in `problems`.

    Raises:
        UserError: the kind of URL is unknown.
    """
    scheme = urlsplit(given).scheme.lower()
    if scheme == "hf":
        from cygnet.corpus.read.hub import find_hub

        return find_hub(given, problems)
    if scheme in ("http", "https"):
        return _find_http(given, problems)
    return list(_find_stored(given, problems))


def open_url(url: str) -> IO[bytes]:
    """Open what lies behind a URL, streaming.

    Raises:
        OSError: it cannot be opened, or needs a package that is not installed.
        UserError: the kind of URL is unknown.
    """
    if urlsplit(url).scheme.lower() in ("http", "https"):
        return io.BufferedReader(HttpStream(url), 1 << 16)
    storage, path = _storage(url)
    with _as_os_error():
        return io.BufferedReader(_Stored(storage.open(path, "rb")), 1 << 16)


def _find_http(url: str, problems: Problems) -> list[InputFile]:
    parts = urlsplit(url)
    host, name = parts.hostname or "", PurePosixPath(unquote(parts.path)).name
    try:
        with _answer(url, "HEAD") as response:
            headers = response.headers
    except (OSError, http.client.HTTPException, ValueError) as error:
        problems.add("failed download", _shown(url), _why(error))
        return []
    content_type = headers.get_content_type() if "Content-Type" in headers else ""
    kind = kind_of(PurePosixPath(name)) or _KIND_OF_TYPE.get(content_type)
    if kind is None:
        why = f"this kind of file ({content_type or 'unknown'}) is not read; {READABLE} are"
        problems.add("not text", _shown(url), why)
        return []
    return [
        InputFile(
            Path(name or host),
            host + unquote(parts.path),
            stem_of(PurePosixPath(name)) or host,
            kind,
            named=True,
            url=url,
            size=_length(headers),
            version=_validator(headers),
        )
    ]


def _answer(url: str, method: str, headers: Mapping[str, str] | None = None) -> Any:
    """Return the server's answer; a failure that may pass is tried again.

    Raises:
        OSError, http.client.HTTPException: there is none, or it is an error.
    """
    own = {"User-Agent": f"cygnet/{cygnet.__version__}", **(headers or {})}
    for attempt in range(RETRIES + 1):
        request = urllib.request.Request(url, headers=own, method=method)
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            error.close()
            if method == "HEAD" and error.code in _NO_HEAD:
                return _answer(url, "GET", headers)
            if error.code not in _WORTH_A_RETRY or attempt == RETRIES:
                raise
        except (OSError, http.client.HTTPException):
            if attempt == RETRIES:
                raise
        time.sleep(FIRST_WAIT_S * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def _length(headers: Any) -> int:
    value = headers.get("Content-Length", "")
    return int(value) if value.isdecimal() else -1


def _validator(headers: Any) -> str:
    return str(headers.get("ETag") or headers.get("Last-Modified") or "")


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    code = f"{error.code} " if isinstance(error, urllib.error.HTTPError) else ""
    return f"{code}{' '.join(str(reason).split())[:200] or type(error).__name__}"


def _shown(url: str) -> str:
    """Return a URL without a name and password in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class HttpStream(io.RawIOBase):
    """What a server sends; where the connection breaks, the rest is asked for (RFC 9110, 14).

    A server that does not know ranges sends all again, and what was had is passed over.

    Raises:
        OSError: it does not answer, or what it sends is no longer the same file.
    """

    def __init__(self, url: str) -> None:
        self._url, self._at = url, 0
        try:
            self._response = _answer(url, "GET")
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(_why(error)) from error
        self._length = _length(self._response.headers)
        self._validator = _validator(self._response.headers)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read as `io.RawIOBase` does."""
        for attempt in range(RETRIES + 1):
            try:
                if attempt:
                    self._ask_for_the_rest()
                block = self._response.read(len(buffer))
                if block or self._length < 0 or self._at >= self._length:
                    buffer[: len(block)] = block
                    self._at += len(block)
                    return len(block)
                why = f"the connection ended at byte {self._at:,} of {self._length:,}"
            except _ChangedError:
                raise
            except (OSError, http.client.HTTPException) as error:
                why = _why(error)
            self._response.close()
            time.sleep(FIRST_WAIT_S * 2**attempt if attempt < RETRIES else 0)
        raise OSError(f"{why}, and {RETRIES} retries did not help")

    def _ask_for_the_rest(self) -> None:
        headers = {"Range": f"bytes={self._at}-"}
        if self._validator and not self._validator.startswith("W/"):
            headers["If-Range"] = self._validator
        self._response = _answer(self._url, "GET", headers)
        got = self._response.headers
        if self._response.status == 206:
            length_now = got.get("Content-Range", "").rpartition("/")[2]
            is_same = self._length < 0 or length_now in ("*", str(self._length))
            start = got.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
            if not is_same or start != str(self._at) or _validator(got) != self._validator:
                raise _ChangedError("it changed on the server while it was read")
            return
        if _validator(got) != self._validator or _length(got) != self._length:
            raise _ChangedError("it changed on the server while it was read")
        left = self._at
        while left:
            block = self._response.read(min(left, 1 << 20))
            if not block:
                raise OSError(f"the connection ended again, before byte {self._at:,}")
            left -= len(block)

    def close(self) -> None:
        """Close the connection too."""
        if not self.closed:
            self._response.close()
        super().close()


class _ChangedError(OSError):
    """Asking again is of no use."""


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Make an `OSError` of what a storage raises: each kind has errors of its own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(_why(error)) from error


class _Stored(io.RawIOBase):
    """A file of a storage, whose errors are those of files.

    Args:
        file: it, open.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Say whether the file can be sought in."""
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        """Read as `io.RawIOBase` does."""
        with _as_os_error():
            block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Seek as `io.RawIOBase` does."""
        with _as_os_error():
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Return the place in the file."""
        return int(self._file.tell())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _storage(url: str) -> tuple[Any, str]:
    """Return the storage and the path in it.

    Raises:
        OSError: a package that it needs is not installed, or it does not let us in.
        UserError: fsspec knows no such kind of URL.
    """
    try:
        with _as_os_error():
            storage, path = require("fsspec", "data").core.url_to_fs(url)
    except OSError as error:
        if isinstance(error.__cause__, ValueError):
            raise UserError(
                f"{_shown(url)}: {error}; give a path, or a URL that fsspec knows"
            ) from error
        raise
    return storage, path


def _find_stored(url: str, problems: Problems) -> Iterable[InputFile]:
    try:
        storage, path = _storage(url)
        if glob.has_magic(path):
            found, named = storage.glob(path, detail=True), False
        elif storage.isdir(path):
            found, named = storage.find(path, detail=True), False
        else:
            found, named = {path: storage.info(path)}, True
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 (each kind of storage raises errors of its own)
        problems.add("failed download", _shown(url), _why(error) + _if_missing(error))
        return
    if not found:
        problems.add("failed download", _shown(url), "nothing there")
    base = path.rstrip("/")
    for inner, info in sorted(found.items()):
        if info.get("type") == "directory" or PurePosixPath(inner).name.startswith("."):
            continue
        whole = storage.unstrip_protocol(inner)
        name = PurePosixPath(inner)
        kind = kind_of(name)
        if kind is None:
            why = f"this kind of file is not read; {READABLE} are"
            problems.add("not text", _shown(whole), why)
            continue
        folder = name.parent.name or "text"
        source, domain = f"{folder}/{name.name}", folder
        if named:
            source, domain = name.name, stem_of(name)
        elif inner.startswith(base + "/"):
            parts = PurePosixPath(inner[len(base) + 1 :]).parts
            top = PurePosixPath(base).name or "text"
            source, domain = "/".join((top, *parts)), parts[0] if len(parts) > 1 else top
        version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
        size = info.get("size")
        yield InputFile(
            Path(name.name),
            source,
            domain,
            kind,
            named=named,
            url=whole,
            size=-1 if size is None else int(size),
            version=version,
        )


def _if_missing(error: Exception) -> str:
    return "; no such file" if isinstance(error, FileNotFoundError) else ""
