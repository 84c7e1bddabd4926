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


async def answer(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def serving(**limits: Any) -> Iterator[int]:
    """The port of a server under these limits."""
    kind = lifecycle.protocol(LimitSettings(**limits))
    config = uvicorn.Config(answer, http=kind, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


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


def test_a_slow_second_request_ends_its_connection_too() -> None:
    with serving(headers_seconds=0.5) as port, connected(port) as client:
        client.settimeout(10)
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        got = b""
        while not got.endswith(b"ok"):
            got += client.recv(4096)
        client.sendall(b"GET / HT")
        assert ends(client)


def test_idle_connections_give_way_to_a_probe() -> None:
    with serving(connections=8) as port, ExitStack() as open_ones:
        idle = [
            open_ones.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(40)
        ]
        began = time.monotonic()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as found:
            assert found.status == 200
        assert time.monotonic() - began < 5
        assert all(ends(client) for client in idle[:30])
        assert not ends(idle[-1], 0.2)


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
