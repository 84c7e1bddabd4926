"""The dashboard: one page, its data as JSON, and a stream of events while jobs run.

Of a running service it shows a few figures. No build step and nothing from elsewhere: the page, its
modules and uPlot are files of this package.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse

from draftrec.errors import DraftrecError
from draftrec.serve.dashboard.history import History, quantile
from draftrec.serve.dashboard.sources import FRESH_SECONDS, RunSources
from draftrec.serve.metrics import COUNTERS, GAUGES, PREFIX

if TYPE_CHECKING:
    from draftrec.serve.metrics import ServiceMetrics


def service_figures(metrics: ServiceMetrics) -> dict[str, Any]:
    """`at`: Unix seconds; `counters` and `gauges`: sums over labels; `routes`: per route the
    requests, those that the service failed (5xx), refused as too many (429) and as wrong (any other
    4xx), and the median and 99th percentile of their seconds since the start."""
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
    elif status == "429":
        route["refused"] += value
    elif status.startswith("4"):
        route["wrong"] += value


def _no_requests() -> dict[str, float]:
    return {"requests": 0, "failed": 0, "refused": 0, "wrong": 0}


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
        return RedirectResponse("/dashboard")

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
