"""From start to a clean end: signals, draining, and a server that waits for accepted requests."""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from types import FrameType, TracebackType

import uvicorn


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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
