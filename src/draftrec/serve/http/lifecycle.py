"""From start to a clean end: signals, draining, a server that waits for accepted requests, and
connections that wait for nothing: timed out, and let go when there are too many, so that idle
clients keep nobody out.
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

    def may_end(self, now: float | None = None) -> bool:
        """Is everything answered, or has it taken too long?"""
        if self._since is None:
            return False
        waited = (time.monotonic() if now is None else now) - self._since
        return waited >= self.seconds or (not self.in_flight and waited >= self.notice)


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
        if self.lifecycle.may_end() and not self.should_exit:
            self.unanswered = self.lifecycle.in_flight
            self.should_exit = True
        return await super().on_tick(counter)

    def _wish_reload(self, sig: int, frame: FrameType | None) -> None:
        self.lifecycle.reload_wanted = True


#: Beyond `limits.connections`: probes are answered while every connection is at work.
_SPARE = 32
#: Descriptors for what is no connection: models, pools, pipes.
_OWN = 256


_Base: Any = AutoHTTPProtocol  # with httptools where that is installed


class Impatient(_Base):
    """uvicorn's HTTP/1.1, which would wait for the first request of a connection for ever.

    A request has `seconds` from the connection, or from the answer before, until its headers are
    there. Where there are more than `most` connections, the longest idle one closes.
    """

    seconds: float
    most: int

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Wait for a request, if need be in the place of another connection."""
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > self.most:
            self._make_room()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._timer.cancel()
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._timer.cancel()
        super().connection_lost(exc)

    @property
    def idle(self) -> bool:
        """Is no request under way?"""
        return self.cycle is None or self.cycle.response_complete

    def _await_request(self) -> None:
        self.since = time.monotonic()
        self._timer = self.loop.call_later(self.seconds, self._give_up)

    def _give_up(self) -> None:
        if self.idle:
            self.transport.abort()

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
    facts = {"seconds": limits.headers_seconds, "most": _room(limits.connections)}
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
