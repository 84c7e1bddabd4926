"""Keys by their hashes, and buckets that refill."""

from __future__ import annotations

import hashlib

from draftrec.serve.http.auth import Keyring, Sessions, TokenBuckets
from draftrec.serve.settings import KeySettings, RateSettings
from tests.serve.services import ADMIN, KEY, KEYS


def test_keys_are_found_by_their_hashes_only() -> None:
    keyring = Keyring([KeySettings.model_validate(k) for k in KEYS])
    found = keyring.find(f"Bearer {KEY}")
    assert found
    assert (found.name, found.admin) == ("shop", False)
    admin = keyring.find(f"bearer  {ADMIN} ")
    assert admin
    assert admin.admin
    for wrong in (None, "", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "Bearer", KEYS[0]["sha256"]):
        assert keyring.find(wrong) is None  # type: ignore[arg-type]
    secret = "schlüssel".encode()
    strange = KeySettings(name="s", sha256=hashlib.sha256(secret).hexdigest())
    assert Keyring([strange]).find(f"Bearer {secret.decode('latin-1')}") is strange
    assert Keyring([strange]).find("Bearer \u2603") is None
    assert not Keyring(())
    assert Keyring(()).find("Bearer ") is None


def test_a_bucket_empties_and_refills() -> None:
    buckets = TokenBuckets(RateSettings(per_second=2.0, burst=3))
    assert [buckets.take("a", 10.0) for _ in range(4)] == [0, 0, 0, 1]
    several = TokenBuckets(RateSettings(per_second=2.0, burst=5))
    assert several.take("a", 10.0) == 0
    assert several.take("a", 10.0, count=4, paid=1) == 0
    assert several.take("a", 10.0) == 0
    assert several.take("a", 10.0, count=3, paid=1) == 2, "none is left, and three are wanted"
    assert several.take("a", 11.5) == 0
    assert several.take("a", 11.5, count=3, paid=1) == 0, "who has waited may go on"
    assert buckets.take("b", 10.0) == 0, "every caller has its own"
    assert buckets.take("a", 10.4) == 1, "0.8 of a request has come back"
    assert buckets.take("a", 10.5) == 0
    assert [buckets.take("a", 1000.0) for _ in range(4)] == [0, 0, 0, 1], "no more than the burst"


def test_a_slow_rate_says_how_long_to_wait() -> None:
    buckets = TokenBuckets(RateSettings(per_second=0.1, burst=1))
    assert buckets.take("a", 0.0) == 0
    assert buckets.take("a", 0.0) == 10
    assert buckets.take("a", 4.0) == 6


def test_the_oldest_callers_are_forgotten() -> None:
    buckets = TokenBuckets(RateSettings(per_second=1e-6, burst=1), most=2)
    for caller in ("a", "b", "c"):
        assert buckets.take(caller, 0.0) == 0
    assert buckets.take("c", 0.0) > 0
    assert buckets.take("a", 0.0) == 0, "forgotten, so it begins with a full bucket"


def test_sessions_end_with_time_by_hand_and_where_there_are_too_many() -> None:
    key = KeySettings.model_validate(KEYS[0])
    sessions = Sessions(seconds=60, most=2)
    first = sessions.open(key, now=0.0)
    assert sessions.find(first, now=59.0) is key
    assert sessions.find(first, now=60.0) is None
    second = sessions.open(key, now=1.0)
    third = sessions.open(key, now=2.0)
    assert len({first, second, third}) == 3
    assert sessions.find(first, now=3.0) is None, "the oldest of three"
    sessions.close(second)
    assert sessions.find(second, now=3.0) is None
    assert sessions.find(third, now=3.0) is key
    for nobody in (None, "", "\u2603", third + "x"):
        assert sessions.find(nobody, now=3.0) is None
        sessions.close(nobody)
