"""One JSON object per request, on a stream. Histories, prompts and texts only where asked for."""

from __future__ import annotations

import json
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MOST_LINES = 10_000


@dataclass(eq=False, slots=True)
class RequestNote:
    """What the log will say of a request. `waits`: seconds that each of its users, or texts,
    waited for an engine; empty if it never did. `users`: those of a recommendation.

    `contents`: what was asked and answered, which is written only with `log_contents`.
    """

    id: str
    route: str
    method: str
    client: str
    key: str | None = None
    status: int = 0
    waits: Seq[float] = ()
    passes: int | None = None
    users: int | None = None
    partial: bool | None = None
    error: str | None = None
    contents: dict[str, Any] = field(default_factory=dict[str, Any])
    began: float = field(default_factory=time.monotonic)

    @property
    def caller(self) -> str:
        """Whose rate it counts for."""
        return f"key {self.key}" if self.key else f"address {self.client}"


class RequestLog:
    """Writes whole lines, from any thread, in a thread of its own.

    A reader that has gone away, or that stalls, costs no request: `most` lines wait for it, and
    `on_drop` is called for every further one. How many were lost stands in the log once it is read
    again. (`logging.handlers.QueueListener` would wait for a stalled reader when it is stopped.)
    """

    def __init__(self, stream: TextIO, *, contents: bool = False, most: int = _MOST_LINES) -> None:
        self.stream, self.contents = stream, contents
        self.dropped = 0
        self.on_drop: Callable[[], None] = lambda: None
        self._lines: queue.Queue[str | threading.Event] = queue.Queue(most)
        threading.Thread(target=self._write_lines, name="request-log", daemon=True).start()

    def request(self, note: RequestNote) -> None:
        """A request that is over."""
        values: dict[str, Any] = {
            "id": note.id,
            "route": note.route,
            "method": note.method,
            "status": note.status,
            "ms": round(1e3 * (time.monotonic() - note.began), 3),
            "queue_ms": round(1e3 * max(note.waits), 3) if note.waits else None,
            "passes": note.passes,
            "users": note.users,
            "partial": note.partial,
            "client": note.client,
            "key": note.key,
            "error": note.error,
        }
        if self.contents:
            values["contents"] = note.contents or None
        self.write("request", **{k: v for k, v in values.items() if v is not None})

    def write(self, event: str, **values: Any) -> None:
        """One line."""
        try:
            self._lines.put_nowait(_line(event, values))
        except queue.Full:
            self.dropped += 1
            self.on_drop()

    def flush(self, seconds: float = 1.0) -> bool:
        """Wait until everything so far is written, or so long at most; was it?"""
        written, end = threading.Event(), time.monotonic() + seconds
        try:
            self._lines.put(written, timeout=seconds)
        except queue.Full:
            return False
        return written.wait(max(0.0, end - time.monotonic()))

    def _write_lines(self) -> None:
        told = 0
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            if (dropped := self.dropped) > told:
                line += _line("lines_dropped", {"lines": dropped - told})
                told = dropped
            try:
                self.stream.write(line)
                self.stream.flush()
            except (OSError, ValueError):
                continue  # nobody reads any more, or the stream was closed


def _line(event: str, values: dict[str, Any]) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "event": event, **values}, default=str) + "\n"


def request_id(given: str | None) -> str:
    """The client's own id if it is harmless, a new one otherwise."""
    if given and _SANE_ID.fullmatch(given):
        return given
    return uuid.uuid4().hex[:16]
