"""The clients of the benchmark of the server count what comes, however it is cut."""

import socket
import subprocess
import sys
import time

import pytest

from benchmarks.serve_overhead import CLIENTS

STREAM = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b'e\r\ndata: {"a":1}\n\r\n10\r\ndata: {"a":200}\n\r\n'
    b"0e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_events_are_counted_however_they_are_cut(size: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = str(listening.getsockname()[1])
        clients = subprocess.Popen(
            [sys.executable, "-c", CLIENTS, port, "1"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert clients.stdin
        clients.stdin.write(b"{}\n")
        clients.stdin.flush()
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(0, len(STREAM), size):
            connection.sendall(STREAM[i : i + size])
            time.sleep(0.002)  # so that the parts are read one by one
        connection.close()
        told, _ = clients.communicate()
    assert clients.returncode == 0 and told == b"3\n"
