"""Clients that leave, that do not read, and that are too many, cost the others nothing."""

import gc
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.serve.running import Running, running, wait_for

ENDLESS: dict[str, Any] = {
    "messages": [{"role": "user", "content": "a swan"}], "top_k": 20, "seed": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def busy(endless: Path) -> Iterator[Running]:
    """One slot, and a queue of two."""
    with running(endless, slots=1, max_queue=2) as server:
        yield server


def check_that_it_answers(server: Running) -> None:
    got = server.client.chat.completions.create(
        model="endless", messages=ENDLESS["messages"], max_tokens=3, seed=1,
        extra_body={"top_k": 20},
    )  # fmt: skip
    assert got.usage and got.usage.completion_tokens == 3


def begin(server: Running, **settings: Any) -> socket.socket:
    """Ask, and return the connection, whose answer is for the caller to read."""
    body = json.dumps({**ENDLESS, **settings}).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    return connection


def counts(server: Running) -> tuple[int, int]:
    return server.engine.num_running, server.engine.num_waiting


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot_and_its_place(busy: Running, stream: bool) -> None:
    running_one, waiting_one = begin(busy, stream=stream), begin(busy, stream=stream)
    wait_for(lambda: counts(busy) == (1, 1))
    waiting_one.close()
    wait_for(lambda: counts(busy) == (1, 0))
    next_one = begin(busy, stream=stream)
    wait_for(lambda: counts(busy) == (1, 1))
    running_one.close()
    wait_for(lambda: counts(busy) == (1, 0))  # the slot went to the next
    next_one.close()
    wait_for(busy.is_quiet)
    assert not busy.service.drivers[0]._owners


def test_more_than_the_queue_holds_are_told_to_come_back(busy: Running) -> None:
    held = [begin(busy, stream=True)]
    wait_for(lambda: counts(busy) == (1, 0))
    held += [begin(busy, stream=True) for _ in range(2)]
    wait_for(lambda: counts(busy) == (1, 2))
    with busy.http as http:
        for n in (1, 3):
            response = http.post("/v1/chat/completions", json={**ENDLESS, "n": n})
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["code"] == "queue_full"
        assert http.get("/healthz").status_code == 200  # it is busy, not ill
    with pytest.raises(openai.RateLimitError):
        busy.client.chat.completions.create(model="endless", messages=ENDLESS["messages"])
    for connection in held:
        connection.close()
    wait_for(busy.is_quiet)
    got = busy.client.chat.completions.create(
        model="endless", messages=ENDLESS["messages"], max_tokens=2
    )
    assert got.choices[0].message.content is not None


def test_a_client_that_leaves_while_it_sends_its_body(busy: Running) -> None:
    connection = socket.create_connection(("127.0.0.1", busy.port))
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b'Content-Length: 9999\r\n\r\n{"prompt": "'
    )
    wait_for(lambda: busy.service.gate.num_open == 1)
    connection.close()
    wait_for(busy.is_quiet)


def test_a_body_that_never_comes_is_waited_for_no_longer_than_said(folder: Path) -> None:
    with running(folder, stall_s=0.5) as server:
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 99\r\n\r\n{"
        )
        connection.settimeout(60)
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
        connection.close()
        wait_for(server.is_quiet)


def test_embeddings_and_new_requests_do_not_wait_for_a_long_answer(busy: Running) -> None:
    held = begin(busy, stream=True)
    wait_for(lambda: counts(busy) == (1, 0))
    got = busy.client.embeddings.create(model="endless", input=["a"] * 5)
    assert len(got.data) == 5 and counts(busy) == (1, 0)
    held.close()
    wait_for(busy.is_quiet)


def test_a_slow_reader_holds_up_nobody_and_is_cut_off(endless: Path) -> None:
    with running(endless, slots=2, stall_s=1.0, send_buffer=4096) as server:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect(("127.0.0.1", server.port))
        body = json.dumps({**ENDLESS, "stream": True, "logprobs": True, "top_logprobs": 20})
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body.encode())
        )
        wait_for(lambda: counts(server)[0] == 1)
        others = 0
        while counts(server)[0] == 1:
            check_that_it_answers(server)
            others += 1
        assert others > 1
        wait_for(server.is_quiet)
        assert not server.server.server_state.connections or all(
            not connection.flow.write_paused  # type: ignore[union-attr]
            for connection in server.server.server_state.connections
        )
        slow.close()


def test_a_slow_reader_gets_all_that_came_meanwhile(endless: Path) -> None:
    with running(endless, slots=1, send_buffer=4096) as server:
        body = {**ENDLESS, "max_tokens": 1500, "logprobs": True, "top_logprobs": 5}
        connection = begin(server, **body, stream=True)
        wait_for(lambda: server.engine.num_running == 1)
        wait_for(lambda: server.engine.is_idle)  # it went on at its own pace
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(65536)
        lines = [line for line in received.split(b"data: ") if line.startswith(b"{")]
        choices = [json.loads(line.split(b"\n\n")[0])["choices"][0] for line in lines]
        listed = [one for c in choices for one in (c["logprobs"] or {}).get("content", [])]
        assert len(listed) == 1500 and choices[-1]["finish_reason"] == "length"
        whole = server.http.post("/v1/chat/completions", json=body).json()["choices"][0]
        streamed = "".join(choice["delta"].get("content", "") for choice in choices)
        assert streamed == whole["message"]["content"]


def test_connections_dropped_midway_leave_nothing_behind(endless: Path) -> None:
    def flood(server: Running, count: int) -> None:
        """Open, some read a little, all leave."""
        for _ in range(0, count, 20):
            held = [begin(server, stream=i % 2 == 0, n=1 + i % 3) for i in range(20)]
            for connection in held[:8:2]:  # those that stream and have a slot
                connection.settimeout(60)
                connection.recv(100)
            for connection in held:
                connection.close()

    process = psutil.Process()
    with running(endless, slots=4, max_queue=64, max_len=512) as server:
        flood(server, 100)
        wait_for(server.is_quiet)
        gc.collect()
        before, threads = process.memory_info().rss, threading.active_count()
        files = process.num_fds()
        flood(server, 1000)
        wait_for(server.is_quiet)
        wait_for(lambda: process.num_fds() <= files)
        gc.collect()
        assert not server.service.drivers[0]._owners
        assert not server.server.server_state.tasks
        assert threading.active_count() == threads
        assert process.memory_info().rss - before < 20e6
        assert all(not slot.is_used for slot in server.engine._slots.slots)
        check_that_it_answers(server)


def test_streams_share_a_bounded_number_of_chunks(
    endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cygnet.serve.driver.MAX_CHUNKS_PER_S", 20.0)
    with running(endless, slots=1, max_len=2048) as server, server.http as http:
        body = {"prompt": "a", "seed": 1, "stream": True, "max_tokens": 400, "top_k": 20}
        began = time.monotonic()
        with http.stream("POST", "/v1/completions", json=body) as answer:
            chunks = [line for line in answer.iter_lines() if line.startswith("data: {")]
        seconds = time.monotonic() - began
        first = json.loads(chunks[0].removeprefix("data: "))["choices"][0]["text"]
        assert len(first) <= 2  # the first token waits for no other
        assert len(chunks) < 20 * seconds + 4
