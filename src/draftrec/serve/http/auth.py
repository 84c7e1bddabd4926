"""API keys, sessions of people in browsers, and how fast their holders may ask; and the page on
which people in browsers give a key, for what `monitoring: key` guards.

The key is exchanged for a session in a cookie that no script can read and that other sites cannot
make a browser send. It opens pages and metrics only: requests to a model still need the key itself.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, StrictUndefined

from draftrec.serve.http.schemas import ApiError, retry
from draftrec.serve.settings import KeySettings, RateSettings

if TYPE_CHECKING:
    from draftrec.serve.service import Service


_MOST_BUCKETS = 10_000
_SESSION_SECONDS, _MOST_SESSIONS = 12 * 3600, 1000


class Keyring:
    """The keys that the settings list by their SHA-256."""

    def __init__(self, keys: Seq[KeySettings]) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, authorization: str | None) -> KeySettings | None:
        """Whose key an Authorization header holds (`Bearer KEY`, its bytes read as Latin-1), None
        for nobody's.

        Takes the same time for every wrong key: it is compared with all of them, by their hashes.
        """
        scheme, _, key = (authorization or "").partition(" ")
        digest = _digest(key.strip())
        found = None
        for known in self._keys:
            if hmac.compare_digest(digest, known.sha256):
                found = known
        return found if scheme.lower() == "bearer" else None


class Sessions:
    """Who signed in with which key, for `seconds` each; the oldest go first, at `most` of them.

    Only hashes of their names are kept, and a restart ends them all.
    """

    def __init__(self, seconds: int = _SESSION_SECONDS, most: int = _MOST_SESSIONS) -> None:
        self.seconds, self.most = seconds, most
        self._open: OrderedDict[str, tuple[float, KeySettings]] = OrderedDict()

    def open(self, key: KeySettings, now: float | None = None) -> str:
        """A new session's name, which nobody can guess."""
        now = time.monotonic() if now is None else now
        name = secrets.token_urlsafe(32)
        self._open[_digest(name)] = now + self.seconds, key
        if len(self._open) > self.most:
            self._open.popitem(last=False)
        return name

    def find(self, name: str | None, now: float | None = None) -> KeySettings | None:
        """Whose session it is; None for one that has ended, or never began."""
        now = time.monotonic() if now is None else now
        end, key = self._open.get(_digest(name or ""), (0.0, None))
        return key if now < end else None

    def close(self, name: str | None) -> None:
        """End a session."""
        self._open.pop(_digest(name or ""), None)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("latin-1", "replace")).hexdigest()


class TokenBuckets:
    """One bucket per caller: `burst` requests at once, refilled `per_second`.

    Callers that were not heard of for longest are forgotten first, at `most` of them, so that
    memory does not follow the number of addresses.
    """

    def __init__(self, rate: RateSettings, most: int = _MOST_BUCKETS) -> None:
        self.rate, self.most = rate, most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str, now: float | None = None, count: int = 1, paid: int = 0) -> int:
        """0 if the caller may go on; otherwise the whole seconds after which it may.

        `count`: requests that it makes at once, at most the burst, of which `paid` were taken
        already.
        """
        now = time.monotonic() if now is None else now
        left, since = self._buckets.pop(caller, (float(self.rate.burst), now))
        left = min(float(self.rate.burst), left + (now - since) * self.rate.per_second)
        allowed = left >= count - paid
        self._buckets[caller] = (left - (count - paid) if allowed else left), now
        if len(self._buckets) > self.most:
            self._buckets.popitem(last=False)
        return 0 if allowed else max(1, math.ceil((count - left) / self.rate.per_second))


COOKIE = "draftrec_session"
#: Of login attempts, for every address.
ATTEMPTS = RateSettings(per_second=0.2, burst=10)
#: Where a login may lead; anything else could be a page of somebody else's.
#: Beside the login, so that a proxy may serve all of it below a path of its own.
_PLACES = ("dashboard", "metrics", "docs")
_MOST_KEY = 1024
_PAGE = Environment(autoescape=True, undefined=StrictUndefined).from_string("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>draftrec: sign in</title>
<style nonce="{{ nonce }}">
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 24rem; margin: 12vh auto; padding: 0 1.2rem; }
h1 { font-size: 1.4rem; }
input, button { font: inherit; padding: .5rem .7rem; min-height: 2.5rem; }
input { width: 100%; box-sizing: border-box; margin: .3rem 0 .9rem; }
.problem { border-left: 4px solid #d03b3b; padding-left: .8rem; }
</style>
</head>
<body>
<main>
<h1>draftrec</h1>
{% if problem %}<p class="problem" role="alert">{{ problem }}</p>{% endif %}
{% if name %}
<p>You are signed in with the key <strong>{{ name }}</strong>. <a href="{{ next }}">Go on</a></p>
<form method="post" action="logout"><button>Sign out</button></form>
{% else %}
<form method="post" action="login">
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<input name="next" type="hidden" value="{{ next }}">
<button>Sign in</button>
</form>
{% endif %}
</main>
</body>
</html>
""")  # noqa: E501


def login_location(path: str) -> str:
    """Where a browser that wants `path` is sent first."""
    return f"login?next={quote(path.lstrip('/'))}"


def login_router(service: Service) -> APIRouter:
    """`GET` and `POST /login`, `POST /logout`."""
    router = APIRouter(include_in_schema=False)

    @router.get("/login")
    async def page(request: Request, next: str = "") -> Response:  # noqa: A002 - as it is asked
        key = service.sessions.find(request.cookies.get(COOKIE))
        return _page(next=_inside(next), name=key.name if key else "")

    @router.post("/login")
    async def login(request: Request) -> Response:
        _same_site(request)
        if seconds := service.login_attempts.take(request.state.note.client):
            message = f"too many attempts; try again in {seconds} s"
            request.state.note.error = "rate_limited"
            return _page(429, problem=message, headers=retry(seconds))
        given = parse_qs((await request.body()).decode("latin-1"), max_num_fields=8)
        text = given.get("key", [""])[-1]
        next_ = _inside(given.get("next", [""])[-1])
        # Forms send UTF-8, and keys are compared by their bytes read as Latin-1.
        words = text.strip().encode().decode("latin-1")
        key = service.keyring.find(f"Bearer {words}") if 0 < len(words) <= _MOST_KEY else None
        if key is None:
            request.state.note.error = "unauthorized"
            return _page(401, problem="There is no such key.", next=next_)
        request.state.note.key = key.name
        answer = RedirectResponse(next_, 303)
        answer.set_cookie(
            COOKIE,
            service.sessions.open(key),
            max_age=service.sessions.seconds,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @router.post("/logout")
    async def logout(request: Request) -> Response:
        _same_site(request)
        service.sessions.close(request.cookies.get(COOKIE))
        answer = RedirectResponse("login", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return router


def _page(
    status: int = 200,
    *,
    next: str = _PLACES[0],  # noqa: A002 - the field's name
    name: str = "",
    problem: str = "",
    headers: dict[str, str] | None = None,
) -> Response:
    nonce = secrets.token_urlsafe(12)
    policy = f"default-src 'none'; style-src 'nonce-{nonce}'; form-action 'self'; base-uri 'none'"
    body = _PAGE.render(nonce=nonce, next=next, name=name, problem=problem)
    headers = {
        "content-security-policy": f"{policy}; frame-ancestors 'none'",
        "cache-control": "no-store",
        **(headers or {}),
    }
    return HTMLResponse(body, status, headers)


def _inside(path: str) -> str:
    """The path where it is one of ours, else the dashboard's."""
    own = path.removeprefix("/")
    return own if own in _PLACES else _PLACES[0]


def _same_site(request: Request) -> None:
    """Browsers say whether a form was sent from elsewhere. Raises ApiError where it was."""
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise ApiError(403, "forbidden", "sign in and out on the page of this service only")
