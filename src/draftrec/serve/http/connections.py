"""Connections that wait for nothing: timed out, and let go when there are too many, so that idle
clients keep nobody out.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from draftrec.serve.settings import LimitSettings

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
