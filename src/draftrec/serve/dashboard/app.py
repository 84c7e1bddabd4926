"""The dashboard: one page, its data as JSON, and a stream of events while jobs run.

Of a running service it shows a few figures and the last hour. No build step and nothing from
elsewhere: the page, its modules and uPlot are files of this package."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from collections.abc import Sequence as Seq
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse

from draftrec.errors import DraftrecError
from draftrec.serve.dashboard.sources import FRESH_SECONDS, RunSources
from draftrec.serve.metrics import COUNTERS, GAUGES, PREFIX

if TYPE_CHECKING:
    from draftrec.serve.metrics import ServiceMetrics

#: Seconds between two points, and how many are kept: an hour.
POINT_SECONDS = 5.0
MOST_POINTS = 720

#: (upper bound, requests at or below it), bounds rising, the last one infinite.
Buckets = Seq[tuple[float, float]]

_TOTALS = ("new_tokens", "target_calls", "drafted_tokens", "accepted_tokens", "beam_users")
_GAUGES = ("queue_requests", "waiting_sequences", "batch_sequences", "beam_batch_users")
#: Statuses of too many requests, and of clients that hung up, who were not refused as wrong.
_APART = ("429", "499")
_TIMES = ("request_seconds", "queue_seconds", "time_to_first_token_seconds")


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters as they stand. `answers`: by class of status ("2xx", and those of `_APART` by
    themselves); `times`: by histogram and route, requests at or below each bound. Only routes that
    clients come for."""

    at: float
    totals: dict[str, float]
    gauges: dict[str, float]
    answers: dict[str, float]
    times: dict[str, dict[str, dict[float, float]]]


def sample_of(metrics: ServiceMetrics) -> Sample:
    """What the counters say now."""
    totals: dict[str, float] = defaultdict(float)
    gauges: dict[str, float] = defaultdict(float)
    answers: dict[str, float] = defaultdict(float)
    times: dict[str, dict[str, dict[float, float]]] = {name: {} for name in _TIMES}
    for family in metrics.registry.collect():
        name = family.name.removeprefix(PREFIX)
        for found in family.samples:
            labels, value = found.labels, found.value
            if name in _TOTALS and found.name.endswith("_total"):
                totals[name] += value
            elif name in _GAUGES:
                gauges[name] += value
            elif not labels.get("route", "").startswith("/v1/"):
                continue
            elif name == "requests" and found.name.endswith("_total"):
                status = labels["status"]
                answers[status if status in _APART else f"{status[0]}xx"] += value
            elif name in _TIMES and found.name.endswith("_bucket"):
                counts = times[name].setdefault(labels["route"], defaultdict(float))
                counts[float(labels["le"])] += value
    return Sample(time.time(), dict(totals), dict(gauges), dict(answers), times)


def point_of(before: Sample, now: Sample) -> dict[str, Any]:
    """What happened between two samples. `answers`: a second, by class of status; `totals`: a
    second; `times`: by histogram and route the median and 99th percentile in seconds, only of
    routes that were asked. A counter that fell belongs to a service that was started anew."""
    seconds = max(now.at - before.at, 1e-3)

    def rates(new: Mapping[str, float], old: Mapping[str, float]) -> dict[str, float]:
        found = {name: max(0.0, value - old.get(name, 0.0)) for name, value in new.items()}
        return {name: round(value / seconds, 4) for name, value in found.items()}

    times: dict[str, dict[str, list[float]]] = {}
    for name, routes in now.times.items():
        for route, counts in routes.items():
            old = before.times.get(name, {}).get(route, {})
            buckets = [(bound, n - old.get(bound, 0.0)) for bound, n in sorted(counts.items())]
            if buckets and buckets[-1][1] > 0:
                shares = [round(quantile(buckets, share), 6) for share in (0.5, 0.99)]
                times.setdefault(name, {})[route] = shares
    return {
        "at": round(now.at, 1),
        "totals": rates(now.totals, before.totals),
        "answers": rates(now.answers, before.answers),
        "gauges": now.gauges,
        "times": times,
    }


def quantile(buckets: Buckets, share: float) -> float:
    """The value below which `share` of what was observed lies, linear within a bucket, as
    Prometheus' histogram_quantile; the last finite bound where it lies above that; 0 for nothing.
    """
    total = buckets[-1][1] if buckets else 0.0
    if not total:
        return 0.0
    below, count_below = 0.0, 0.0
    for bound, count in buckets:
        if count >= share * total:
            if bound == float("inf"):
                return below
            part = (share * total - count_below) / (count - count_below)
            return below + (bound - below) * part
        below, count_below = bound, count
    return below


@dataclass
class History:
    """Points of the last hour, of the service whose metrics these are. `about`: what it is, asked
    whenever a page is opened."""

    metrics: ServiceMetrics
    about: Callable[[], dict[str, Any]] = dict
    _points: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MOST_POINTS))
    _last: Sample | None = None

    def look(self) -> None:
        """Add a point."""
        now = sample_of(self.metrics)
        if self._last is not None:
            self._points.append(point_of(self._last, now))
        self._last = now

    def since(self, at: float) -> list[dict[str, Any]]:
        """The points after a moment, in Unix seconds."""
        return [point for point in self._points if point["at"] > at]

    async def keep(self) -> None:
        """Add points until this is cancelled."""
        while True:
            self.look()
            await asyncio.sleep(POINT_SECONDS)


def service_figures(metrics: ServiceMetrics) -> dict[str, Any]:
    """`at`: Unix seconds; `counters` and `gauges`: sums over labels; `routes`: per route the
    requests, those that the service failed (5xx), whose clients hung up (499), that it refused as
    too many (429) and as wrong (any other 4xx), and the median and 99th percentile of their seconds
    since the start."""
    totals: dict[str, float] = defaultdict(float)
    routes: dict[str, dict[str, float]] = defaultdict(_no_requests)
    latencies: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for family in metrics.registry.collect():
        for sample in family.samples:
            name = sample.name.removeprefix(PREFIX)
            if name == "request_seconds_bucket":
                bound = float(sample.labels["le"])
                latencies[sample.labels["route"]][bound] += sample.value
            elif name == "requests_total":
                _count(routes[sample.labels["route"]], sample.labels["status"], sample.value)
            totals[name.removesuffix("_total")] += sample.value
    for route, buckets in latencies.items():
        ordered = sorted(buckets.items())
        routes[route] |= {"p50": quantile(ordered, 0.5), "p99": quantile(ordered, 0.99)}
    return {
        "at": round(time.time(), 3),
        "counters": {name: totals[name] for name in COUNTERS if name in totals},
        "gauges": {name: totals[name] for name in GAUGES if name in totals},
        "routes": dict(sorted(routes.items())),
    }


def _count(route: dict[str, float], status: str, value: float) -> None:
    route["requests"] += value
    if status.startswith("5"):
        route["failed"] += value
    elif status == "499":
        route["gone"] += value
    elif status == "429":
        route["refused"] += value
    elif status.startswith("4"):
        route["wrong"] += value


def _no_requests() -> dict[str, float]:
    return {"requests": 0, "failed": 0, "gone": 0, "refused": 0, "wrong": 0}


STATIC = Path(__file__).parents[1] / "static"
#: What browsers may load for the page: this package's own files, and nothing inline.
_POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
#: Where the page has a link to the account, if there are any.
_ACCOUNT = b"<!-- account -->"
#: Seconds after which an idle stream says that it is still there.
_HEARTBEAT = 15.0


def router(
    sources: RunSources,
    metrics: ServiceMetrics | None = None,
    stopping: Callable[[], bool] = lambda: False,
    about: Callable[[], dict[str, Any]] = dict,
    account: str | None = None,
) -> APIRouter:
    """`/dashboard` and what it needs, to be included in an application.

    `metrics`: those of a service that the page shows as well, which is `about`. Streams end once
    `stopping()` is true, so that a service that drains need not wait for open pages. `account`:
    where one signs in and out.
    """
    history = None if metrics is None else History(metrics, about)

    routes = APIRouter(prefix="/dashboard", include_in_schema=False, lifespan=_kept(history))
    files = {p.name: p for p in STATIC.iterdir() if p.suffix in _TYPES}

    @routes.get("")
    def page() -> Response:
        headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
        body = (STATIC / "dashboard.html").read_bytes()
        if account:
            body = body.replace(_ACCOUNT, f'<a href="{account}">Sign out</a>'.encode())
        return Response(body, media_type="text/html", headers=headers)

    @routes.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        kind = _TYPES[files[name].suffix]
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return Response(files[name].read_bytes(), media_type=kind, headers=headers)

    @routes.get("/data.json")
    async def data() -> Response:
        return Response((await sources.latest()).json, media_type="application/json")

    @routes.get("/texts.json")
    async def texts(
        run: str, other: str = "", entity: str = "", start: int = 0, count: int = 3
    ) -> Response:
        try:
            page = await sources.texts(run, start, count, entity=entity, other=other)
        except KeyError:
            return JSONResponse({"note": "this page shows no such run"}, 404)
        except DraftrecError as error:
            return JSONResponse({"note": str(error)}, 409)
        return JSONResponse(asdict(page), headers={"Cache-Control": "no-store"})

    @routes.get("/events")
    def events(request: Request) -> Response:
        last = request.headers.get("last-event-id", "")
        stream = event_stream(sources, last, metrics, stopping, history)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    return routes


def _kept(history: History | None) -> Callable[[object], AbstractAsyncContextManager[None]]:
    """A lifespan in which the history goes on."""

    @asynccontextmanager
    async def keeping(_app: object) -> AsyncIterator[None]:
        task = asyncio.create_task(history.keep()) if history else None
        yield
        if task:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    return keeping


def application(sources: RunSources, stopping: Callable[[], bool] = lambda: False) -> FastAPI:
    """The dashboard alone, as `draftrec dashboard` serves it; `/` leads to it."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(router(sources, stopping=stopping))

    @app.get("/")
    def root() -> Response:
        return RedirectResponse("dashboard")

    return app


async def event_stream(
    sources: RunSources,
    last: str = "",
    metrics: ServiceMetrics | None = None,
    stopping: Callable[[], bool] = lambda: False,
    history: History | None = None,
) -> AsyncIterator[str]:
    """Server-sent events: `data` with everything at first, then `changes` with what changed,
    `service` with a service's figures each second, `history` with the points of its last hour, and
    those that are added. `last`: the version that the page has already, after a broken connection.
    """
    yield "retry: 2000\n\n"
    silent, told = 0.0, 0.0
    while not stopping():
        news = await sources.news(last)
        said = ""
        if news.event:
            said = f"id: {news.version}\nevent: {news.event}\ndata: {news.json}\n\n"
            last = news.version
        if metrics is not None:
            said += f"event: service\ndata: {json.dumps(service_figures(metrics))}\n\n"
        if history is not None and (points := history.since(told)):
            added = {"points": points, **({} if told else {"about": history.about()})}
            said += f"event: history\ndata: {json.dumps(added)}\n\n"
            told = points[-1]["at"]
        silent = 0.0 if said else silent + FRESH_SECONDS
        if silent >= _HEARTBEAT:
            said, silent = ": still here\n\n", 0.0
        if said:
            yield said
        await asyncio.sleep(FRESH_SECONDS)
