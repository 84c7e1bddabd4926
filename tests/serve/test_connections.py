"""Connections that ask for nothing: they end, and keep nobody out."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import uvicorn

from draftrec.serve.http import lifecycle
from draftrec.serve.settings import LimitSettings
from tests.waiting import until

#: More than a system keeps for a client who does not read.
LARGE = b"x" * (12 << 20)


async def answer(scope: Any, receive: Any, send: Any) -> None:
    pieces = {"/large": [LARGE], "/pieces": [LARGE[:1000]] * 12_000}.get(scope["path"], [b"ok"])
    headers = [(b"content-length", str(sum(map(len, pieces))).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in pieces[:-1]:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": pieces[-1]})


class Server(lifecycle.DrainingServer):
    """One that listens to no signals, as it runs in a thread."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await uvicorn.Server.startup(self, sockets)


async def nothing() -> None:
    return


@contextmanager
def served(**limits: Any) -> Iterator[tuple[int, Server]]:
    """The port of a server under these limits, and the server."""
    kind = lifecycle.protocol(LimitSettings(**limits))
    config = uvicorn.Config(
        answer, http=kind, log_config=None, lifespan="off", timeout_graceful_shutdown=1
    )
    server = Server(config, lifecycle.Lifecycle(30, 0), nothing)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1], server
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def serving(**limits: Any) -> Iterator[int]:
    with served(**limits) as (port, _):
        yield port


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port))


def ends(client: socket.socket, seconds: float = 10.0) -> bool:
    client.settimeout(seconds)
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "])
def test_a_connection_without_a_whole_request_ends(sent: bytes) -> None:
    with serving(headers_seconds=0.3) as port, connected(port) as client:
        client.sendall(sent)
        assert ends(client)


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: "])
def test_headers_without_end_end_their_connection(begin: bytes) -> None:
    """Where httptools is installed, it would keep them all."""
    with serving() as port, connected(port) as client, pytest.raises(ConnectionError):
        client.sendall(begin + b"x" * (64 << 20))


def test_a_slow_second_request_ends_its_connection_too() -> None:
    with serving(headers_seconds=0.5) as port, connected(port) as client:
        client.settimeout(60)
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        got = b""
        while not got.endswith(b"ok"):
            got += client.recv(4096)
        client.sendall(b"GET / HT")
        assert ends(client)


def test_idle_connections_give_way_to_a_probe() -> None:
    with serving(connections=8, headers_seconds=600) as port, ExitStack() as open_ones:
        idle = [
            open_ones.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(40)
        ]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as found:
            assert found.status == 200
        assert all(ends(client) for client in idle[:30])
        assert not ends(idle[-1], 0.2)


def asks(port: int, path: str, *, more: str = "") -> socket.socket:
    """Has asked, and takes little before it reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    client.connect(("127.0.0.1", port))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n{more}\r\n".encode())
    return client


def read_slowly(client: socket.socket, seconds: float) -> int:
    """Bytes of all that comes, a little at a time at first."""
    client.settimeout(60)
    got, end = 0, time.monotonic() + seconds
    while got < len(LARGE) and (piece := client.recv(1 << 18)):
        got += len(piece)
        time.sleep(0.05 if time.monotonic() < end else 0)
    return got


@pytest.mark.parametrize("more", ["", "Connection: close\r\n"])
def test_whoever_reads_slowly_gets_the_whole_answer(more: str) -> None:
    with (
        serving(headers_seconds=0.2, unread_seconds=1) as port,
        asks(port, "/large", more=more) as c,
    ):
        assert read_slowly(c, 1.5) >= len(LARGE)


@pytest.mark.parametrize("path", ["/large", "/pieces"])
def test_whoever_reads_nothing_is_let_go(path: str) -> None:
    with served(headers_seconds=0.3, unread_seconds=0.3) as (port, server), asks(port, path):
        until(lambda: server.server_state.connections)
        until(lambda: not server.server_state.connections)


def test_a_server_that_drains_waits_for_answers_to_be_read() -> None:
    with served() as (port, server), asks(port, "/large") as client:
        connections: Any = server.server_state.connections
        until(lambda: any(c.unsent for c in connections))
        server.lifecycle.drain()
        time.sleep(0.3)
        assert not server.should_exit
        assert read_slowly(client, 1.5) >= len(LARGE)
        until(lambda: server.should_exit)


def test_a_process_asks_for_as_many_files_as_its_connections_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resource = pytest.importorskip("resource")
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1 << 20))
    assert lifecycle.protocol(LimitSettings(connections=5000)).most == 5000  # type: ignore[attr-defined]
    assert asked[0][0] > 5000
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    assert lifecycle.protocol(LimitSettings(connections=5000)).most < 1024  # type: ignore[attr-defined]
