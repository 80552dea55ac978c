"""What one connection may ask for, and for how long it may keep the server waiting."""

import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cygnet.serve.connection import Connection
from tests.serve.running import PATIENCE_S, Running, running, wait_for

CHAT = "/v1/chat/completions"
BODY = json.dumps(
    {"messages": [{"role": "user", "content": "a swan"}], "max_tokens": 3, "seed": 1}
).encode()
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD_S = 0.5


def post(body: bytes) -> bytes:
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)


def read_until(connection: socket.socket, text: bytes) -> bytes:
    received = b""
    while text not in received:
        part = connection.recv(65536)
        assert part, "the server hung up"
        received += part
    return received


def is_cut(connection: socket.socket) -> bool:
    """Wait for the end of what comes; a server that keeps the connection open fails the test."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def count_of(server: Running, status: int) -> int:
    with server.http as client:
        told = client.get("/metrics").text
    found = re.search(rf'requests_total{{path="{CHAT}",status="{status}"}} (\S+)', told)
    return int(float(found[1])) if found else 0


# --- one request at a time ------------------------------------------------------------------------


def test_a_second_request_before_the_answer_does_not_hide_that_the_client_left(
    endless: Path,
) -> None:
    body = {"messages": [{"role": "user", "content": "a swan"}], "top_k": 20, "seed": 1}
    with running(endless, slots=1, max_queue=2) as server:
        for second in (GET, post(BODY)):
            before = count_of(server, 499)
            connection = connect(server)
            connection.sendall(post(json.dumps(body).encode()))
            wait_for(lambda: server.engine.num_running == 1)
            connection.sendall(second)
            connection.close()
            wait_for(server.is_quiet)
            wait_for(lambda: not server.server.server_state.tasks)
            assert count_of(server, 499) == before + 1  # it was not answered in full
        connection = connect(server)  # both in one piece
        connection.sendall(post(BODY) + post(BODY))
        assert is_cut(connection)
        wait_for(server.is_quiet)
        assert not server.service.drivers[0]._owners


def test_a_connection_serves_request_after_request(server: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    connection.connect()
    first = connection.sock
    stream = json.dumps({**json.loads(BODY), "stream": True}).encode()
    for body in (BODY, stream, None, b"{", BODY, stream, BODY):
        kind = {"content-type": "application/json"}
        connection.request("POST" if body else "GET", CHAT if body else "/healthz", body, kind)
        answer = connection.getresponse()
        assert answer.status == (400 if body == b"{" else 200)
        assert answer.read()
        assert connection.sock is first
    connection.close()


# --- heads ----------------------------------------------------------------------------------------

CHUNKED = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
ENDLESS_HEADS = {
    "fields": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"a: b\r\n" * 4000),
    "field": (b"GET /healthz HTTP/1.1\r\nHost: x\r\na: ", b"b" * 30_000),
    "name": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"b" * 30_000),
    "address": (b"GET /healthz?", b"a" * 30_000),
    "second": (post(BODY), b"a" * 30_000),
    "trailers": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"a: b\r\n" * 4000),
    "trailer": (CHUNKED + b"2\r\n{}\r\n0\r\na: ", b"b" * 30_000),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENDLESS_HEADS)
def test_a_head_without_end_is_cut_off(server: Running, kind: str) -> None:
    begin, part = ENDLESS_HEADS[kind]
    connection = connect(server)
    connection.sendall(begin)
    if kind == "second":
        connection.recv(65536)
        begin = b"GET /healthz HTTP/1.1\r\nHost: x\r\na: "
        connection.sendall(begin)
    with pytest.raises(ConnectionError):
        for _ in range(1000):  # 24 to 30 MB, more than the system's buffers hold
            connection.sendall(part)
    connection.close()
    wait_for(server.is_quiet)


def test_a_large_head_and_a_large_body_go_through(server: Running) -> None:
    with server.http as client:
        assert client.get("/healthz", headers={"a": "b" * 50_000}).status_code == 200
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "user": "u" * 200}
        padded = json.dumps(body).encode() + b" " * 500_000
        kind = {"content-type": "application/json"}
        assert client.post(CHAT, content=padded, headers=kind).status_code == 200
        chunks = (padded[i : i + 50_000] for i in range(0, len(padded), 50_000))
        assert client.post(CHAT, content=chunks, headers=kind).status_code == 200


@pytest.fixture
def hasty(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr("cygnet.serve.connection.HEAD_S", HEAD_S)
    with running(folder) as begun:
        yield begun


@pytest.mark.parametrize("answered", [0, 1, 2])
@pytest.mark.parametrize("half", [b"G", b"GET /healthz HT", b"\r\n", GET[:-2]])
def test_half_a_head_is_not_waited_for(hasty: Running, half: bytes, answered: int) -> None:
    connection = connect(hasty)
    for _ in range(answered):
        connection.sendall(GET)
        read_until(connection, b'{"status":"ok"}')
    connection.sendall(half)
    assert is_cut(connection)
    wait_for(lambda: not hasty.server.server_state.connections)


def test_a_connection_that_asks_for_nothing_is_cut(hasty: Running) -> None:
    assert is_cut(connect(hasty))


def test_once_a_head_has_come_its_time_is_over(hasty: Running) -> None:
    connection = connect(hasty)
    for _ in range(2):
        asked = post(BODY)
        connection.sendall(asked[:-5])
        time.sleep(3 * HEAD_S)
        connection.sendall(asked[-5:])
        assert read_until(connection, b'"usage"').startswith(b"HTTP/1.1 200 ")
    connection.close()


def test_connections_beyond_what_the_system_gives_are_cut(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for(lambda: not server.server.server_state.connections)
    monkeypatch.setattr(Connection, "max_connections", 3)
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
    wait_for(lambda: len(server.server.server_state.connections) == 3)
    with pytest.raises(httpx.HTTPError):
        server.http.get("/healthz")
    held.pop().close()
    wait_for(lambda: len(server.server.server_state.connections) == 2)
    assert server.http.get("/healthz").status_code == 200
    for connection in held:
        connection.close()
