"""The last hour of a service, for pages that are opened later; and what it is."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from draftrec.serve.metrics import PREFIX

if TYPE_CHECKING:
    from draftrec.serve.metrics import ServiceMetrics

#: Seconds between two points, and how many are kept: an hour.
POINT_SECONDS = 5.0
MOST_POINTS = 720

#: (upper bound, requests at or below it), bounds rising, the last one infinite.
Buckets = Seq[tuple[float, float]]

_TOTALS = ("new_tokens", "target_calls", "drafted_tokens", "accepted_tokens", "beam_users")
_GAUGES = ("queue_requests", "waiting_sequences", "batch_sequences", "beam_batch_users")
_TIMES = ("request_seconds", "queue_seconds", "time_to_first_token_seconds")


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters as they stand. `answers`: by class of status ("2xx", and "429" by itself); `times`:
    by histogram and route, requests at or below each bound. Only routes that clients come for."""

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
                answers["429" if status == "429" else f"{status[0]}xx"] += value
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
