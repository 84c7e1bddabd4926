"""Before a request reaches its handler: may it in, is it small enough, and what the log will say.

Plain ASGI, so that a body is refused before it is read, and a client that hangs up is noticed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from starlette.requests import cookie_parser

from draftrec.serve.http.auth import COOKIE, login_location
from draftrec.serve.http.lifecycle import Lifecycle, accepted
from draftrec.serve.http.schemas import (
    OPENAI_ROUTES,
    ApiError,
    ClientGoneError,
    rate_limited,
    retry,
)
from draftrec.serve.logs import RequestNote, request_id

if TYPE_CHECKING:
    from draftrec.serve.service import Service
    from draftrec.serve.settings import LimitSettings

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Beginnings of paths that need a key where there are any, and that may need one.
GUARDED, MONITORING = ("/v1/", "/admin/"), ("/metrics", "/dashboard")
_LOGIN = ("/login", "/logout")
_QUIET = ("/healthz", "/readyz", "/metrics", "/dashboard")
#: Of a refused body, so much is thrown away before the connection closes: a client that is still
#: sending would otherwise not get to read why.
_LINGER_BYTES, _LINGER_SECONDS = 32 << 20, 2.0
HUNG_UP = 499
_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
#: Refusals that are part of starting and ending, and no failures.
_EXPECTED = ("starting", "draining")


class Gate:
    """ASGI middleware: request ids, keys, rates, draining, sizes, times, log and metrics."""

    def __init__(self, app: App, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or say why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        note = _note(scope)
        scope.setdefault("state", {})["note"] = note
        reply = _Reply(send, note, self.service.lifecycle)
        try:
            await self._through(scope, receive, reply, note)
        except ApiError as error:
            note.error = error.code
            await reply.error(error)
            if isinstance(error, _TooLargeError) and error.more:
                await _discard(receive)
            await reply.finish()
        except ClientGoneError:
            note.status = HUNG_UP
        except asyncio.CancelledError:  # the service has waited for it as long as it may
            await reply.fail(ApiError(503, "draining", "the service has ended; ask another one"))
        except Exception as error:  # noqa: BLE001 - one request must not end the service
            self.service.note_error(error)
            await reply.fail(ApiError(500, "internal", "something failed; the log says what"))
        finally:
            self._tell(note)

    async def _through(
        self, scope: Scope, receive: Receive, reply: _Reply, note: RequestNote
    ) -> None:
        path: str = scope["path"]
        if path.startswith(MONITORING) and self.service.settings.monitoring == "key":
            self._who(scope, note, pages=True)
        if path in _LOGIN:
            body = await _read(scope, receive, self.service.settings.limits)
            receive = _replayed(body, receive)
        if not path.startswith(GUARDED):
            await self.app(scope, receive, reply)
            return
        self._who(scope, note)
        self._rate(note)
        if self.service.lifecycle.draining:
            raise ApiError(
                503, "draining", "the service is about to end; ask another one", retry(1)
            )
        if self.service.lifecycle.in_flight >= self.service.settings.limits.connections:
            raise ApiError(503, "busy", "too many requests are under way; try again", retry(1))
        with accepted(self.service.lifecycle):
            body = await _read(scope, receive, self.service.settings.limits)
            await self.app(scope, _replayed(body, receive), reply)

    def _who(self, scope: Scope, note: RequestNote, *, pages: bool = False) -> None:
        """Whose key it is, where there are keys. `pages` are shown to who has signed in as well,
        and browsers are led to where one does."""
        keyring = self.service.keyring
        if not keyring:
            return
        key = keyring.find(_header(scope, b"authorization"))
        if key is None and pages:
            key = self.service.sessions.find(_cookie(scope))
            if key is None and scope["path"] == "/dashboard" and _wants_page(scope):
                raise _SignInFirst(scope["path"])
        if key is None:
            raise ApiError(
                401,
                "unauthorized",
                "this needs an API key; send it as `Authorization: Bearer KEY`",
                {"www-authenticate": "Bearer"},
            )
        note.key = key.name
        scope["state"]["key"] = key

    def _rate(self, note: RequestNote) -> None:
        """What asks for many at once pays for the others when it is read."""
        if self.service.buckets and (seconds := self.service.buckets.take(note.caller)):
            raise rate_limited(seconds)

    def _tell(self, note: RequestNote) -> None:
        """Log and count the request."""
        service = self.service
        service.metrics.observe_request(
            note.route, note.status, service.seconds_since(note), note.waits
        )
        if note.users:
            service.metrics.observe_users(note.users, note.status)
        quiet = note.route.startswith(_QUIET)
        if note.status >= 500 and note.error and note.error not in _EXPECTED:
            service.metrics.observe_error(note.error)
        if not quiet or note.status >= 400:
            service.log.request(note)


class _SignInFirst(ApiError):
    """For people in browsers."""

    def __init__(self, path: str) -> None:
        location = {"location": login_location(path), "cache-control": "no-store"}
        super().__init__(303, "unauthorized", "sign in first", location)


class _TooLargeError(ApiError):
    """`more`: the client may still be sending."""

    def __init__(self, limits: LimitSettings, *, more: bool) -> None:
        message = f"the body has more than {limits.body_bytes} bytes; ask for less at once"
        super().__init__(413, "too_large", message)
        self.more = more


class _Reply:
    """Sends the answer, and notes its status."""

    def __init__(self, send: Send, note: RequestNote, lifecycle: Lifecycle) -> None:
        self._send, self.note, self.lifecycle = send, note, lifecycle
        self.started = self.ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.note.status = message["status"]
            given = message.get("headers", ())
            named = {name for name, _ in given}
            headers = [*given, (b"x-request-id", self.note.id.encode())]
            headers += [pair for pair in _SECURITY if pair[0] not in named]
            if self.lifecycle.draining:  # or the next request would meet a closed port
                headers.append((b"connection", b"close"))
            message["headers"] = headers
        elif message["type"] == "http.response.body":
            self.ended = not message.get("more_body", False)
        await self._send(message)

    async def error(self, error: ApiError) -> None:
        """The whole error, though `finish` has to follow."""
        if self.started:
            return
        status, body = error.answer(self.note.route)
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            **error.headers,
        }
        if error.status in (408, 413):
            headers["connection"] = "close"  # the rest of the body is never read
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": status, "headers": raw})
        await self({"type": "http.response.body", "body": body, "more_body": True})

    async def fail(self, error: ApiError) -> None:
        """The error in place of an answer. Where one has begun, only its status is noted: the
        connection closes, so that nobody takes what was sent for the whole."""
        self.note.error = error.code
        if self.started:
            self.note.status = error.status
        else:
            await self.error(error)
            await self.finish()

    async def finish(self) -> None:
        """End the answer."""
        if self.started and not self.ended:
            await self({"type": "http.response.body", "body": b""})


def _note(scope: Scope) -> RequestNote:
    client = scope.get("client")
    given = _header(scope, b"x-request-id")
    address = client[0] if client else "unknown"
    return RequestNote(request_id(given), _route(scope["path"]), scope["method"], address)


def _route(path: str) -> str:
    """A label out of few: metrics must not grow with whatever is asked for."""
    known = (*_LOGIN, "/v1/recommend", "/v1/knowledge", "/admin/reload", "/docs", "/openapi.json")
    if path in (*known, *OPENAI_ROUTES, *_QUIET):
        return path
    if path.startswith("/v1/models/"):
        return "/v1/models"
    return "/dashboard/..." if path.startswith("/dashboard/") else "other"


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return None


def _cookie(scope: Scope) -> str | None:
    """The session's name that a browser sends along."""
    return cookie_parser(_header(scope, b"cookie") or "").get(COOKIE)


def _wants_page(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD") and "text/html" in (_header(scope, b"accept") or "")


async def _read(scope: Scope, receive: Receive, limits: LimitSettings) -> bytes:
    """The body, unless it is too long, too slow or packed."""
    announced = _header(scope, b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > limits.body_bytes:
        raise _TooLargeError(limits, more=True)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > limits.body_bytes:
                    raise _TooLargeError(limits, more=more)
                if not more:
                    break
    except TimeoutError:
        raise ApiError(
            408, "too_slow", f"the body did not arrive within {limits.body_seconds:g} s"
        ) from None
    coding = (_header(scope, b"content-encoding") or "identity").strip().lower()
    if coding not in ("", "identity"):
        raise ApiError(
            415,
            "packed_body",
            f"the body is packed (content-encoding: {coding[:20]}), and only plain ones are read; "
            "send it without that",
        )
    return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read already, then whatever comes, which is a client hanging up."""
    pending = [body]

    async def again() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return again


async def _discard(receive: Receive) -> None:
    """Throw away what a client is still sending, for a while."""
    left = _LINGER_BYTES
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return
