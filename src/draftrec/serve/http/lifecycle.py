"""From start to a clean end: signals, draining, a server that waits for accepted requests, and
connections that wait for nothing: timed out, and let go when there are too many, so that clients
who neither ask nor read keep nobody out.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from draftrec.serve.settings import LimitSettings


class Lifecycle:
    """What the server and its requests know of each other.

    A request counts as accepted from the moment at which it was not refused; while draining, no
    more are accepted, and the server ends when the last one is answered, after `seconds` at most
    and `notice` at least.
    """

    def __init__(self, seconds: float, notice: float) -> None:
        self.seconds, self.notice = seconds, notice
        self.in_flight = 0
        self.reload_wanted = False
        self._since: float | None = None

    @property
    def draining(self) -> bool:
        return self._since is not None

    def drain(self) -> None:
        """Accept no more requests."""
        if self._since is None:
            self._since = time.monotonic()

    def may_end(self, now: float | None = None, *, unread: bool = False) -> bool:
        """Is everything answered, or has it taken too long? `unread`: has a client yet to read?"""
        if self._since is None:
            return False
        waited = (time.monotonic() if now is None else now) - self._since
        answered = not self.in_flight and not unread
        return waited >= self.seconds or (answered and waited >= self.notice)


class accepted(AbstractContextManager[None]):
    """Counts a request as accepted while it lasts."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self.lifecycle = lifecycle

    def __enter__(self) -> None:
        self.lifecycle.in_flight += 1

    def __exit__(self, *_: object) -> None:
        self.lifecycle.in_flight -= 1


class DrainingServer(uvicorn.Server):
    """uvicorn, which would close its port at the first SIGTERM; this one drains before.

    A second SIGTERM or Ctrl-C ends at once. SIGHUP asks for a reload. `check` is called ten times
    a second. `unanswered`: accepted requests that took longer than the server was to wait for.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        lifecycle: Lifecycle,
        check: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(config)
        self.lifecycle, self.check = lifecycle, check
        self.unanswered = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; the second time, end."""
        if self.lifecycle.draining:
            self.unanswered = self.lifecycle.in_flight
            self.should_exit = self.force_exit = True
        self.lifecycle.drain()

    async def startup(self, sockets: list | None = None) -> None:  # type: ignore[type-arg]
        """Listen for SIGHUP as well."""
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, self._wish_reload)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Is it time to end?"""
        await self.check()
        unread = any(c.unsent for c in self.server_state.connections)  # type: ignore[union-attr]
        if self.lifecycle.may_end(unread=unread) and not self.should_exit:
            self.unanswered = self.lifecycle.in_flight
            self.should_exit = True
        return await super().on_tick(counter)

    def _wish_reload(self, sig: int, frame: FrameType | None) -> None:
        self.lifecycle.reload_wanted = True


#: Beyond `limits.connections`: probes are answered while every connection is at work.
_SPARE = 32
#: Bytes of a request before its body; more than is read at once, which may hold another's body.
_MOST_HEADERS = 1 << 20
#: Descriptors for what is no connection: models, pools, pipes.
_OWN = 256


_Base: Any = AutoHTTPProtocol  # with httptools where that is installed


class Impatient(_Base):
    """uvicorn's HTTP/1.1, which would wait for ever: for the first request of a connection, and for
    a client to read its answer.

    A request has `seconds` from the connection, or from the answer before, until its headers are
    there. Of an answer, something has to be read every `unread` seconds. Where there are more than
    `most` connections, the longest idle one closes.
    """

    seconds: float
    unread: float
    most: int
    _headers: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Wait for a request, if need be in the place of another connection."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self.most:
            self._make_room()

    def on_response_complete(self) -> None:
        """Wait for the next request, once the client has read the answer."""
        super().on_response_complete()
        self._timer.cancel()
        self._wait()

    def on_message_begin(self) -> None:
        """Of httptools alone, which keeps headers that have no end; h11 does not."""
        super().on_message_begin()
        self._headers = 0

    def on_headers_complete(self) -> None:
        """The rest is the body's."""
        self._headers = None
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Read, unless headers come without end."""
        super().data_received(data)
        if self._headers is not None:
            self._headers += len(data)
            if self._headers > _MOST_HEADERS:
                self.transport.abort()

    def resume_writing(self) -> None:
        """Something was read."""
        super().resume_writing()
        self._left = -1

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._timer.cancel()
        super().connection_lost(exc)

    @property
    def asked(self) -> bool:
        """Is a request under way?"""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def unsent(self) -> int:
        """Bytes of an answer that wait for the client to read."""
        return self.transport.get_write_buffer_size()

    @property
    def idle(self) -> bool:
        """Is no request under way, and every answer sent?"""
        return not self.asked and not self.unsent

    def _wait(self) -> None:
        self.since, self._left = time.monotonic(), self.unsent
        self._timer = self.loop.call_later(self.seconds if self.idle else self.unread, self._look)

    def _look(self) -> None:
        """End the connection if nothing has moved: no request has begun, or none of an answer was
        read to which nothing is added, since it is whole, or there is no room for more."""
        whole = self.flow.write_paused or not self.asked
        if self.unsent == self._left and (whole if self.unsent else self.idle):
            self.transport.abort()
        else:
            self._wait()

    def _make_room(self) -> None:
        idle = [c for c in self.connections if c.idle and c is not self]
        if idle:
            oldest = min(idle, key=lambda c: c.since)
            self.connections.discard(oldest)  # it goes only in the loop's next turn
            oldest.transport.abort()
        elif len(self.connections) > self.most + _SPARE:
            self.transport.abort()


def protocol(limits: LimitSettings) -> type[asyncio.Protocol]:
    """The class of connections under these limits. Raises the process's own limit of open files,
    as far as it may, to what they need."""
    facts = {
        "seconds": limits.headers_seconds,
        "unread": limits.unread_seconds,
        "most": _room(limits.connections),
    }
    return type("BoundedConnection", (Impatient,), facts)


def _room(wanted: int) -> int:
    """Connections that there are descriptors for, once the process may have as many as it is
    allowed to ask for."""
    try:
        import resource
    except ImportError:  # no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _SPARE + _OWN
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, min(wanted, soft - _SPARE - min(_OWN, soft // 4)))
    return wanted
