"""One JSON object per request, on a stream. Histories, prompts and texts only where asked for."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(eq=False, slots=True)
class RequestNote:
    """What the log will say of a request. `queue_seconds` None: it never waited for an engine.

    `contents`: what was asked and answered, which is written only with `log_contents`.
    """

    id: str
    route: str
    method: str
    client: str
    key: str | None = None
    status: int = 0
    queue_seconds: float | None = None
    passes: int | None = None
    partial: bool | None = None
    error: str | None = None
    contents: dict[str, Any] = field(default_factory=dict[str, Any])
    began: float = field(default_factory=time.monotonic)


class RequestLog:
    """Writes whole lines, from any thread. A reader that has gone away costs no request."""

    def __init__(self, stream: TextIO, *, contents: bool = False) -> None:
        self.stream, self.contents = stream, contents
        self._lock = threading.Lock()

    def request(self, note: RequestNote) -> None:
        """A request that is over."""
        values: dict[str, Any] = {
            "id": note.id,
            "route": note.route,
            "method": note.method,
            "status": note.status,
            "ms": round(1e3 * (time.monotonic() - note.began), 3),
            "queue_ms": None if note.queue_seconds is None else round(1e3 * note.queue_seconds, 3),
            "passes": note.passes,
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
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **values}, default=str) + "\n"
        with self._lock:
            try:
                self.stream.write(line)
                self.stream.flush()
            except (OSError, ValueError):
                return  # nobody reads any more, or the stream was closed


def request_id(given: str | None) -> str:
    """The client's own id if it is harmless, a new one otherwise."""
    if given and _SANE_ID.fullmatch(given):
        return given
    return uuid.uuid4().hex[:16]
