"""Who may come in: keys, other origins, other machines; and the files of the page."""

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cygnet.errors import UserError
from cygnet.flags import parse
from cygnet.serve import command
from cygnet.serve.errors import ApiError
from cygnet.serve.page_files import HEADERS, page_file
from cygnet.serve.settings import ServeConfig
from tests.serve.running import running

BODY = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
CHAT = "/v1/chat/completions"
ORIGIN = "https://example.org"


def test_one_of_the_keys_is_needed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("from-file\n\nsecond \n")
    monkeypatch.setenv("CYGNET_API_KEY", "from-environment")
    file = tmp_path / "keys"
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<p>")
    with (
        running(folder, api_key=("from-flag",), api_key_file=file, page=page) as server,
        server.http as http,
    ):
        for key in ("from-flag", "from-file", "second", "from-environment"):
            headers = {"authorization": f"Bearer {key}"}
            assert http.post(CHAT, json=BODY, headers=headers).status_code == 200
            assert http.get("/metrics", headers=headers).status_code == 200
        wrong: list[dict[str, str]] = [
            {}, {"authorization": "Bearer from-flag2"},
            {"authorization": "Basic from-flag"}, {"authorization": "from-flag"},
        ]  # fmt: skip
        for headers in wrong:
            for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/metrics")):
                got = http.request(method, path, headers=headers)
                assert got.status_code == 401, (headers, path)
                assert got.json()["error"]["code"] == "invalid_api_key"
                assert got.headers["www-authenticate"] == "Bearer"
        for path in ("/healthz", "/", "/openapi.json"):
            assert http.get(path).status_code == 200


@pytest.mark.parametrize("key", ["", "zwei worte", "schlüssel"])
def test_keys_that_no_header_holds(key: str) -> None:
    with pytest.raises(UserError, match="printable ASCII"):
        ServeConfig(models=("x",), api_key=(key,)).keys()


def test_a_key_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        ServeConfig(models=("x",), api_key_file=tmp_path / "nowhere").keys()
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UserError, match="holds no key"):
        ServeConfig(models=("x",), api_key_file=tmp_path / "empty").keys()


def test_other_origins_are_let_in_only_where_named(folder: Path) -> None:
    asks = {"origin": ORIGIN, "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type"}  # fmt: skip
    with running(folder) as server, server.http as http:
        assert http.options(CHAT, headers=asks).status_code == 405
        got = http.post(CHAT, json=BODY, headers={"origin": ORIGIN})
        assert "access-control-allow-origin" not in got.headers
    with running(folder, cors_origin=(ORIGIN,), api_key=("k",)) as server, server.http as http:
        got = http.options(CHAT, headers=asks)
        assert got.status_code == 200 and got.headers["access-control-allow-origin"] == ORIGIN
        got = http.post(CHAT, json=BODY, headers={"origin": ORIGIN})
        assert got.status_code == 401 and got.headers["access-control-allow-origin"] == ORIGIN
        got = http.options(CHAT, headers={**asks, "origin": "https://example.com"})
        assert got.status_code == 400 and "access-control-allow-origin" not in got.headers


def test_the_page_is_served_under_a_strict_policy(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.mkdir()
    (tmp_path / "secret").write_text("no")
    for name in ("index.html", "page.js", "page.css"):
        (page / name).write_text(name)
    kinds = {"/": "text/html", "/page/page.js": "text/javascript", "/page/page.css": "text/css"}
    with running(folder, page=page) as server, server.http as http:
        for path, kind in kinds.items():
            got = http.get(path)
            assert got.status_code == 200 and got.headers["content-type"].startswith(kind)
            assert all(got.headers[name] == value for name, value in HEADERS.items())
        for path in ("/page/none.js", "/page/..%2fsecret", "/page/../secret", "/page/"):
            got = http.get(path)
            assert got.status_code == 404 and got.text != "no"
    with pytest.raises(ApiError):
        page_file(page, "../secret")


def test_requests_are_counted_by_route(folder: Path) -> None:
    asked = ["/healthz", "/v1/models", "/v1/models/swan", "/v1/models/none/such", "/page/main.js",
             "/page/none.js", "/page/a/b", "/page", "/nowhere"]  # fmt: skip
    with running(folder) as server, server.http as http:
        for path in asked:
            http.get(path)
        told = http.get("/metrics").text
    found = re.findall(r'cygnet_requests_total{path="(.*)",status="(\d+)"} (\d+)', told)
    assert {(path, int(status)): int(count) for path, status, count in found} == {
        ("/healthz", 200): 1, ("/v1/models", 200): 1, ("/v1/models/{name}", 200): 1,
        ("/v1/models/{name}", 404): 1, ("/page/{name}", 200): 1, ("/page/{name}", 404): 2,
        ("other", 404): 2,
    }  # fmt: skip


def announced(config: ServeConfig, address: tuple[str, int]) -> str:
    class Listening:
        def getsockname(self) -> tuple[str, int]:
            return address

    class Service:
        offered: ClassVar[dict[str, Any]] = {}

    service: Any = Service()
    service.config = config
    return "\n".join(command._announcement(service, Listening()))  # type: ignore[arg-type]


def test_a_door_that_stands_open_is_told() -> None:
    config = ServeConfig(models=("x",))
    assert "WARNING" not in announced(config, ("127.0.0.1", 1))
    assert "WARNING" not in announced(config, ("::1", 1))
    assert "WARNING: 0.0.0.0 lets other machines in" in announced(config, ("0.0.0.0", 1))
    assert "http://[::]:1" in announced(config, ("::", 1))
    kept = ServeConfig(models=("x",), api_key=("k",))
    assert "WARNING" not in announced(kept, ("0.0.0.0", 1))


def test_flags_that_may_be_repeated_take_one_value_each() -> None:
    line = ["--api_key", "a", "--api_key", "b", "--cors_origin", ORIGIN, "one", "two"]
    config = parse(ServeConfig, line, "cygnet serve", "", ())
    assert config.models == ("one", "two")
    assert config.api_key == ("a", "b") and config.cors_origin == (ORIGIN,)
