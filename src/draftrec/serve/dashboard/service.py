"""A service's metrics as the few figures that the dashboard shows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any

from draftrec.serve.metrics import COUNTERS, GAUGES, PREFIX

if TYPE_CHECKING:
    from draftrec.serve.metrics import ServiceMetrics

#: (upper bound, requests at or below it), bounds rising, the last one infinite.
Buckets = Seq[tuple[float, float]]


def service_figures(metrics: ServiceMetrics) -> dict[str, Any]:
    """`at`: Unix seconds; `counters` and `gauges`: sums over labels; `routes`: per route the
    requests, those that the service failed (5xx), refused (429), and the median and 99th percentile
    of their seconds since the start."""
    totals: dict[str, float] = defaultdict(float)
    routes: dict[str, dict[str, float]] = defaultdict(_no_requests)
    latencies: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for family in metrics.registry.collect():
        for sample in family.samples:
            name = sample.name.removeprefix(PREFIX)
            if name == "request_seconds_bucket":
                bound = float(sample.labels["le"])
                latencies[sample.labels["route"]].append((bound, sample.value))
            elif name == "requests_total":
                _count(routes[sample.labels["route"]], sample.labels["status"], sample.value)
            totals[name.removesuffix("_total")] += sample.value
    for route, buckets in latencies.items():
        ordered = sorted(buckets)
        routes[route] |= {"p50": quantile(ordered, 0.5), "p99": quantile(ordered, 0.99)}
    return {
        "at": round(time.time(), 3),
        "counters": {name: totals[name] for name in COUNTERS if name in totals},
        "gauges": {name: totals[name] for name in GAUGES if name in totals},
        "routes": dict(sorted(routes.items())),
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


def _count(route: dict[str, float], status: str, value: float) -> None:
    route["requests"] += value
    if status.startswith("5"):
        route["failed"] += value
    elif status == "429":
        route["refused"] += value


def _no_requests() -> dict[str, float]:
    return {"requests": 0, "failed": 0, "refused": 0}
