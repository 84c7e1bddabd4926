"""What holds for every route: errors, keys, rates, sizes, logs, draining."""

from __future__ import annotations

import asyncio
import gzip
import html
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import thread as futures
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette

from draftrec.serve.http.app import _life_of, create_app, exposure, make_server
from draftrec.serve.http.lifecycle import Lifecycle, accepted
from draftrec.serve.http.schemas import ApiError
from draftrec.serve.logs import RequestLog
from draftrec.serve.service import Service, ServiceSources
from tests.jobs.recommend.worlds import World, make_world
from tests.serve.services import (
    ADMIN,
    KEY,
    KEYS,
    Running,
    error_of,
    held,
    knowledge_settings,
    recommend_settings,
    running,
    settings,
)
from tests.waiting import until

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def served(world: World) -> Iterator[Running]:
    limits = {"body_bytes": 2000, "body_seconds": 0.2, "queue": 8, "records": 8}
    with running(settings(recommend_settings(world), limits=limits)) as found:
        yield found


@pytest.mark.slow
def test_health_and_documents(served: Running) -> None:
    client = served.client
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.get("/dashboard").headers["content-type"].startswith("text/html")
    assert client.get("/dashboard/data.json").json()["runs"] == []
    document = client.get("/openapi.json").json()
    assert "/v1/recommend" in document["paths"]
    assert "/v1/knowledge" not in document["paths"], "only what is served"
    assert document["components"]["schemas"]["RecommendRequest"]["examples"]
    page = client.get("/docs").text
    assert "/v1/recommend" in page
    assert "http" not in page.replace("http://testserver", "").replace("HTTP", "")
    assert "$KEY" not in page
    elsewhere = client.get("/docs", headers={"host": "shop.example:8123"}).text
    assert "curl -X POST http://shop.example:8123/v1/recommend" in elsewhere


def test_errors_are_json_and_never_a_traceback(served: Running) -> None:
    post = served.client.post
    for body in (b"{", b"", b"\xff\xfe", b"[" * 1900, b'{"history": [' + b"9" * 1900 + b"]}"):
        answer = post("/v1/recommend", content=body, headers=JSON)
        assert answer.status_code in (400, 422), body
        assert "Traceback" not in answer.text
        assert answer.json().keys() == {"error"}
    error_of(post("/v1/recommend", content=b"{", headers=JSON), 400, "invalid_json")
    form = {"content-type": "application/x-www-form-urlencoded"}  # what curl -d says by itself
    for body, headers in ((b'{"history": [10]}', form), (b"[10]", JSON), (b"3", JSON)):
        answer = post("/v1/recommend", content=body, headers=headers)
        assert "content-type: application/json" in error_of(answer, 422, "invalid_request")
    error_of(served.client.get("/nothing"), 404, "not_found")
    error_of(served.client.get("/v1/recommend"), 405, "method_not_allowed")
    error_of(post("/v1/knowledge", json={}), 404, "not_found")


def test_a_bug_costs_one_request(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    work = served.service.recommending
    assert work
    catalogue = work.recommender.catalogue

    def broken(*args: Any, **more: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(catalogue), "filter_of", broken)
    error_of(served.recommend([10]), 503, "engine_failed")
    monkeypatch.undo()
    assert served.recommend([10]).status_code == 200
    assert any(line["event"] == "error" and line["message"] == "a bug" for line in served.log)
    monkeypatch.setattr("draftrec.serve.http.api._query", broken)
    error_of(served.recommend([10]), 500, "internal")


def test_large_bodies_are_refused(served: Running) -> None:
    answer = served.client.post("/v1/recommend", content=b"x" * 3000, headers=JSON)
    assert "2000 bytes" in error_of(answer, 413, "too_large")
    assert answer.headers["connection"] == "close"
    pieces = (b"x" * 500 for _ in range(10))  # chunked: no length is announced
    error_of(served.client.post("/v1/recommend", content=pieces, headers=JSON), 413, "too_large")


def test_packed_bodies_are_refused_by_name(served: Running) -> None:
    body = gzip.compress(b'{"history": [10]}')
    answer = served.client.post(
        "/v1/recommend", content=body, headers={**JSON, "content-encoding": "gzip"}
    )
    assert "gzip" in error_of(answer, 415, "packed_body")
    plain = {**JSON, "content-encoding": "identity"}
    answer = served.client.post("/v1/recommend", content=b'{"history": [10]}', headers=plain)
    assert answer.status_code == 200


class Asgi:
    """A client that sends what a test says, when it says so."""

    def __init__(self, served: Running, *, length: int | None = None) -> None:
        self.app = create_app(served.service)
        headers = [(b"content-type", b"application/json")]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        self.scope: dict[str, Any] = {
            "type": "http", "method": "POST", "path": "/v1/recommend", "headers": headers,
            "query_string": b"", "client": ("10.0.0.9", 1), "http_version": "1.1",
            "scheme": "http", "server": ("testserver", 80), "raw_path": b"/v1/recommend",
        }  # fmt: skip
        self.sent: list[dict[str, Any]] = []
        self.reads = 0

    async def run(self, *messages: Any) -> None:
        """Give the messages; a number is a pause in seconds. Then silence."""
        rest = list(messages)

        async def receive() -> dict[str, Any]:
            self.reads += 1
            while rest:
                message = rest.pop(0)
                if isinstance(message, dict):
                    return message
                await asyncio.sleep(message)
            await asyncio.sleep(60)
            raise AssertionError("nobody should wait so long")

        async def send(message: Any) -> None:
            self.sent.append(message)

        await self.app(self.scope, receive, send)


def piece(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_that_is_announced_too_large_is_not_read(served: Running) -> None:
    client = Asgi(served, length=10_000_000)
    asyncio.run(client.run({"type": "http.disconnect"}))
    assert client.sent[0]["status"] == 413
    assert client.reads == 1, "only after the answer, for a client that is still sending"


def test_a_slow_body_is_given_up(served: Running) -> None:
    client = Asgi(served)
    asyncio.run(client.run(piece(b'{"his', more=True)))
    assert client.sent[0]["status"] == 408


def test_whoever_hangs_up_leaves_the_batch(served: Running) -> None:
    event = held(served.service)
    engine, work = served.service.recommend, served.service.recommending
    assert engine
    assert work
    try:
        client = Asgi(served)
        body = json.dumps({"history": [10, 11]}).encode()
        asyncio.run(client.run(piece(body, more=False), 0.1, {"type": "http.disconnect"}))
        assert client.sent == []
        assert served.log[-1]["status"] == 499
        running = list(engine._running.values())
        assert [t.gone for t in running] == [True]
    finally:
        event.set()
        del work.turn  # type: ignore[attr-defined]
    assert served.recommend([10]).status_code == 200
    assert not work._asked
    half = Asgi(served)
    asyncio.run(half.run(piece(b"{", more=True), {"type": "http.disconnect"}))
    assert half.sent == []


@pytest.mark.slow
def test_a_full_queue_says_when_to_come_back(served: Running) -> None:
    event = held(served.service)
    try:
        with ThreadPoolExecutor(16) as clients:
            jobs = [clients.submit(served.recommend, [10 + i]) for i in range(16)]
            until(lambda: sum(job.done() for job in jobs) >= 4)
            event.set()
            answers = [job.result() for job in jobs]
    finally:
        event.set()
        del served.service.recommending.turn  # type: ignore[union-attr, attr-defined]
    refused = [a for a in answers if a.status_code == 429]
    assert 4 <= len(refused) <= 7, "eight wait, and one to four run"
    for answer in refused:
        error_of(answer, 429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
    assert sum(a.status_code == 200 for a in answers) == 16 - len(refused)


def test_the_log_has_no_contents_unless_asked(world: World, served: Running) -> None:
    answer = served.client.post(
        "/v1/recommend", json={"history": [23, 24]}, headers={"x-request-id": "mine-1"}
    )
    line = served.log[-1]
    assert answer.headers["x-request-id"] == "mine-1"
    assert line.keys() == {
        "time", "event", "id", "route", "method", "status", "ms", "queue_ms", "passes", "partial",
        "client", "users",
    }  # fmt: skip
    assert (line["id"], line["route"], line["status"]) == ("mine-1", "/v1/recommend", 200)
    odd = served.client.get("/healthz", headers={"x-request-id": "a b\tc"})
    assert odd.headers["x-request-id"] != "a b\tc"
    with running(settings(recommend_settings(world, "none"), log_contents=True)) as telling:
        telling.recommend([23, 24], k=2)
        contents = telling.log[-1]["contents"]
        assert contents["asked"]["history"] == [23, 24]
        assert len(contents["told"]["items"]) == 2


@pytest.mark.slow
def test_keys_and_rates(world: World) -> None:
    chosen = settings(
        recommend_settings(world, "none"),
        keys=KEYS,
        rate={"per_second": 0.01, "burst": 3},
        monitoring="key",
    )
    with running(chosen) as guarded:
        client, body = guarded.client, {"history": [10]}
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}):
            answer = client.post("/v1/recommend", json=body, headers=headers)
            error_of(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert KEY not in guarded._log.getvalue()
        mine, admin = ({"authorization": f"Bearer {key}"} for key in (KEY, ADMIN))
        assert client.post("/v1/recommend", json=body, headers=mine).status_code == 200
        assert guarded.log[-1]["key"] == "shop"
        error_of(client.post("/admin/reload", headers=mine), 403, "forbidden")
        assert client.post("/admin/reload", headers=admin).json() == {"items": 60}
        client.post("/v1/recommend", json=body, headers=mine)
        answer = client.post("/v1/recommend", json=body, headers=mine)
        error_of(answer, 429, "rate_limited")
        assert int(answer.headers["retry-after"]) > 60
        assert client.post("/v1/recommend", json=body, headers=admin).status_code == 200
        assert client.get("/healthz").status_code == 200
        error_of(client.get("/metrics"), 401, "unauthorized")
        assert client.get("/metrics", headers=mine).status_code == 200
        paths = client.get("/openapi.json").json()["paths"]
        keyed = [
            path for path, found in paths.items() for one in found.values() if "security" in one
        ]
        assert sorted(keyed) == ["/admin/reload", "/metrics", "/v1/recommend"]
        page = html.unescape(client.get("/docs").text)
        assert '/v1/recommend -H "authorization: Bearer $KEY"' in page
        assert "/healthz\n" not in page
        assert "/healthz -H" not in page


@pytest.mark.slow
def test_people_sign_in_with_a_cookie_for_pages_alone(world: World) -> None:
    chosen = settings(recommend_settings(world, "none"), keys=KEYS, monitoring="key")
    with running(chosen) as guarded:
        client = guarded.client
        client.follow_redirects = False
        error_of(client.get("/dashboard/data.json"), 401, "unauthorized")
        first = client.get("/dashboard", headers={"accept": "text/html,*/*"})
        assert (first.status_code, first.headers["location"]) == (303, "login?next=dashboard")
        page = client.get(first.headers["location"])
        assert 'value="dashboard"' in page.text
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        refused = client.post("/login", data={"key": "wrong", "next": "/dashboard"})
        assert refused.status_code == 401
        assert "set-cookie" not in refused.headers
        elsewhere = {"sec-fetch-site": "cross-site"}
        answer = client.post("/login", data={"key": KEY}, headers=elsewhere)
        error_of(answer, 403, "forbidden")
        answer = client.post("/login", data={"key": f" {KEY}\n", "next": "/metrics"})
        assert (answer.status_code, answer.headers["location"]) == (303, "metrics")
        cookie = answer.headers["set-cookie"].lower()
        assert {"httponly", "samesite=strict", "path=/"} <= set(cookie.split("; "))
        assert KEY not in cookie
        assert client.get("/dashboard/data.json").status_code == 200
        assert client.get("/metrics").status_code == 200
        assert 'href="login"' in client.get("/dashboard").text
        assert "shop" in client.get("/login").text
        error_of(guarded.recommend([10]), 401, "unauthorized")
        stolen = client.cookies["draftrec_session"]
        assert client.post("/logout").headers["location"] == "login"
        assert "draftrec_session" not in client.cookies
        client.cookies["draftrec_session"] = stolen
        assert client.get("/metrics").status_code == 401, "the session itself has ended"
        assert any(line["route"] == "/login" for line in guarded.log), "all of it is written"
        assert KEY not in guarded._log.getvalue()
        too_long = client.post("/login", content=b"key=" + b"x" * (2 << 20))
        error_of(too_long, 413, "too_large")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["https://evil.example", "//evil.example", "/\\evil", "/v1", ""])
def test_a_login_leads_nowhere_else_and_cannot_be_tried_for_ever(world: World, place: str) -> None:
    chosen = settings(recommend_settings(world, "none"), keys=KEYS, monitoring="key")
    with running(chosen) as guarded:
        client = guarded.client
        client.follow_redirects = False
        assert "evil" not in client.get("/login", params={"next": place}).text
        answer = client.post("/login", data={"key": KEY, "next": place})
        assert answer.headers["location"] == "dashboard"
        tried = [client.post("/login", data={"key": f"guess {i}"}) for i in range(12)]
        assert [a.status_code for a in tried][-2:] == [429, 429]
        assert int(tried[-1].headers["retry-after"]) >= 1
        locked_out = client.post("/login", data={"key": KEY})
        assert locked_out.status_code == 429, "even who has found it"


def test_without_keys_nobody_may_reload_and_addresses_have_rates(world: World) -> None:
    rate = {"per_second": 0.01, "burst": 2}
    with running(settings(recommend_settings(world, "none"), rate=rate)) as served:
        error_of(served.client.post("/admin/reload"), 403, "forbidden")
        assert served.recommend([10]).status_code == 200
        error_of(served.recommend([10]), 429, "rate_limited")
        assert served.client.get("/readyz").status_code == 200


def test_draining_answers_what_was_accepted_and_refuses_the_rest(world: World) -> None:
    with running(settings(recommend_settings(world, "none"))) as served:
        event, lifecycle = held(served.service), served.service.lifecycle
        with ThreadPoolExecutor(2) as clients:
            job = clients.submit(served.recommend, [10, 11])
            until(lambda: lifecycle.in_flight)
            lifecycle.drain()
            error_of(served.client.get("/readyz"), 503, "draining")
            error_of(served.recommend([10]), 503, "draining")
            assert served.client.get("/healthz").status_code == 200
            assert not lifecycle.may_end()
            event.set()
            assert job.result().status_code == 200
        assert lifecycle.may_end()


def test_draining_is_bounded_and_gives_notice() -> None:
    lifecycle = Lifecycle(seconds=30, notice=5)
    assert not lifecycle.may_end()
    lifecycle.drain()
    now = time.monotonic()
    assert not lifecycle.may_end(now + 1)
    assert lifecycle.may_end(now + 6)
    with accepted(lifecycle):
        assert not lifecycle.may_end(now + 6)
        assert lifecycle.may_end(now + 31)


def test_a_request_that_takes_too_long_is_counted_as_unanswered(world: World) -> None:
    with running(settings(recommend_settings(world, "none"), drain_seconds=0.01)) as served:
        server, lifecycle = make_server(served.service), served.service.lifecycle
        with accepted(lifecycle):
            assert asyncio.run(server.on_tick(1)) is False
            server.handle_exit(15, None)
            time.sleep(0.02)
            assert asyncio.run(server.on_tick(1)) is True
        assert server.unanswered == 1
        assert not server._captured_signals, "it would be raised again, and the exit code not 0"


def test_a_second_signal_ends_at_once(world: World) -> None:
    with running(settings(recommend_settings(world, "none"))) as served:
        server = make_server(served.service)
        with accepted(served.service.lifecycle):
            server.handle_exit(15, None)
            assert asyncio.run(server.on_tick(1)) is False
            server.handle_exit(2, None)
            assert asyncio.run(server.on_tick(1)) is True
        assert server.force_exit
        assert server.unanswered == 1


def test_whoever_is_not_answered_before_the_end_is_told(served: Running) -> None:
    event, client = held(served.service), Asgi(served)

    async def scenario() -> None:
        asked = piece(json.dumps({"history": [10, 11]}).encode(), more=False)
        task = asyncio.create_task(client.run(asked))
        while not served.service.lifecycle.in_flight:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        task.cancel()
        await task

    try:
        asyncio.run(scenario())
    finally:
        event.set()
        del served.service.recommending.turn  # type: ignore[union-attr, attr-defined]
    assert client.sent[0]["status"] == served.log[-1]["status"] == 503
    assert json.loads(client.sent[1]["body"])["error"]["code"] == "draining"


def test_no_process_waits_for_what_a_reload_reads(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, awaited = served.service.sources.recommend, list[bool]()
    assert source
    real = source.reload

    def reload(old: Any) -> Any:
        reading = threading.current_thread()
        time.sleep(0.1)  # an executor notes its threads once they have begun
        awaited.append(not reading.daemon or reading in futures._threads_queues)  # type: ignore[attr-defined]
        return real(old)

    monkeypatch.setattr(source, "reload", reload)
    assert served.client.portal.call(served.service.reload) == {"items": 60}  # type: ignore[union-attr]
    assert awaited == [False]


def test_a_broken_engine_ends_the_server(world: World) -> None:
    with running(settings(recommend_settings(world, "none"))) as served:
        server = make_server(served.service)
        assert served.service.recommend
        served.service.recommend.broken = MemoryError()
        assert asyncio.run(server.on_tick(1)) is True


@pytest.mark.slow
def test_a_service_that_is_not_ready_says_so(world: World) -> None:
    with running(settings(recommend_settings(world, "none"), knowledge_settings())) as served:
        assert served.service.recommend
        served.service.recommend.ready.clear()
        error_of(served.client.get("/readyz"), 503, "starting")
        error_of(served.recommend([10]), 503, "starting")
        served.service.recommend.ready.set()
        served.service.recommend.broken = RuntimeError("gone")
        error_of(served.client.get("/healthz"), 503, "broken")


def test_two_reloads_at_once_are_one_too_many(served: Running) -> None:
    async def twice() -> list[Any]:
        both = (served.service.reload(), served.service.reload())
        return await asyncio.gather(*both, return_exceptions=True)

    done, refused = served.client.portal.call(twice)  # type: ignore[union-attr]
    assert done == {"items": 60}
    assert isinstance(refused, ApiError)
    assert refused.code == "reloading"


def test_forwarded_addresses_are_believed_from_named_proxies_only() -> None:
    service = Service(settings(), ServiceSources(), RequestLog(io.StringIO()))
    config = make_server(service).config
    assert not config.proxy_headers
    service.settings = settings(trusted_proxies=["10.0.0.0/8"])
    config = make_server(service).config
    assert config.proxy_headers
    assert config.forwarded_allow_ips == ["10.0.0.0/8"]


_LOADS = """
import os, signal
from draftrec.serve.http import app

class Loading:
    def __init__(self, *given):
        os.kill(os.getpid(), signal.SIGHUP)
        raise app.DraftrecError("still there")

app.Service = Loading
app.serve(app.ServeSettings(port=0), app.ServiceSources(), print)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no such signal")
def test_who_asks_for_a_reload_while_models_load_ends_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", _LOADS], capture_output=True, text=True)
    assert "still there" in done.stderr
    assert done.returncode == 1


def test_who_asks_for_a_reload_while_one_goes_on_gets_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one under way may have read what has changed since."""
    service = Service(settings(), ServiceSources(), RequestLog(io.StringIO()))
    server, begun = make_server(service), list[int]()

    async def scenario() -> None:
        go_on = asyncio.Event()

        async def read() -> dict[str, Any]:
            begun.append(1)
            await go_on.wait()
            return {}

        monkeypatch.setattr(service, "_reload_all", read)
        for _ in range(2):
            service.lifecycle.reload_wanted = True
            await server.check()
            await asyncio.sleep(0.01)
            assert len(begun) == 1
        go_on.set()
        await asyncio.sleep(0.01)
        await server.check()
        await asyncio.sleep(0.01)

    asyncio.run(scenario())
    assert len(begun) == 2


def test_what_browsers_and_probes_ask_for() -> None:
    chosen = settings(allowed_hosts=["shop.example"], cors_origins=["https://shop.example"])
    with running(chosen, ServiceSources()) as served:
        client, good = served.client, {"host": "shop.example"}
        for path in ("/healthz", "/readyz", "/metrics"):
            found = client.head(path, headers=good)
            assert (found.status_code, found.content) == (200, b"")
            assert found.headers["x-content-type-options"] == "nosniff"
            assert found.headers["x-frame-options"] == "DENY"
        assert client.get("/metrics", headers={"host": "evil.example"}).status_code == 400
        wanted = "authorization, content-type, x-stainless-lang, x-stainless-retry-count"
        asks = {
            **good,
            "access-control-request-method": "POST",
            "access-control-request-headers": wanted,  # those of OpenAI's client for browsers
        }
        for origin, status in (("https://shop.example", 200), ("https://evil.example", 400)):
            found = client.options("/v1/recommend", headers={**asks, "origin": origin})
            assert found.status_code == status
    with running(settings(), ServiceSources()) as served:
        found = served.client.get("/healthz", headers={"origin": "https://shop.example"})
        assert "access-control-allow-origin" not in found.headers


def test_a_service_that_others_can_reach_is_warned_of() -> None:
    public = {"host": "0.0.0.0", "keys": KEYS}
    assert "monitoring: key" in (exposure(settings(**public)) or "")
    assert exposure(settings(**public, monitoring="key")) is None
    assert "no API keys" in (exposure(settings(host="0.0.0.0")) or "")
    assert exposure(settings()) is None


def test_a_lack_of_descriptors_is_one_line_and_no_traceback() -> None:
    stream = io.StringIO()
    service = Service(settings(), ServiceSources(), RequestLog(stream))
    for _ in range(1000):
        service.note_loop_error(None, {"message": "accept", "exception": OSError(24, "too many")})
    assert service.log.flush()
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == [
        "out_of_descriptors"
    ]


def test_an_application_that_is_left_no_time_ends_without_a_traceback() -> None:
    """At a second signal asyncio cancels it, and uvicorn logged that as a failure."""
    called: list[str] = []
    told: list[str] = []
    service: Any = SimpleNamespace(
        note_loop_error=None,
        start=lambda: called.append("start"),
        stop=lambda: called.append("stop"),
    )

    async def ends() -> None:
        events: asyncio.Queue[Any] = asyncio.Queue()

        async def send(message: Any) -> None:
            told.append(message["type"])

        app = Starlette(lifespan=_life_of(service))
        life = asyncio.create_task(app({"type": "lifespan"}, events.get, send))
        await events.put({"type": "lifespan.startup"})
        while not told:
            await asyncio.sleep(0)
        life.cancel()
        await life

    asyncio.run(ends())
    assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert called == ["start"], "threads are waited for only where there is time"
