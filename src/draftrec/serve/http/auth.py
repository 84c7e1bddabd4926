"""API keys, sessions of people in browsers, and how fast their holders may ask."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence as Seq

from draftrec.serve.settings import KeySettings, RateSettings

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
