"""Metrics of jobs and of the service, in the format that Prometheus reads.

Counters only grow, so that rates come from the reader (`rate(draftrec_new_tokens_total[1m])` is
tokens per second) and several processes add up. Names carry base units, as Prometheus asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any, Protocol

from draftrec.core import SOURCES
from draftrec.errors import DraftrecError
from draftrec.serve.metric_names import COUNTERS, GAUGES, HISTOGRAMS, PREFIX

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from draftrec.engine.text.stats import StepStats, Timing

#: Groups that have a label of their own; each is a time series, and pools may have thousands.
MOST_GROUPS = 50
_OTHER_GROUPS = "(others)"
_PHASES = ("draft", "verify", "prefill")


class SearchCounts(Protocol):
    """What a finished beam search tells of itself, as `Beams` and `UserSearch` do."""

    @property
    def target_calls(self) -> int: ...
    @property
    def draft_calls(self) -> int: ...
    @property
    def drafted(self) -> int: ...
    @property
    def accepted_steps(self) -> int: ...


class ServiceMetrics:
    """All metrics of one process. Safe to call from several threads.

    `registry`: where to collect, a new `CollectorRegistry` by default, so that several can live in
    one process. Raises DraftrecError where prometheus-client is not installed.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        client = _client()
        self.registry = registry or client.CollectorRegistry()
        self._metrics: dict[str, Any] = {}
        for kind, table in ((client.Counter, COUNTERS), (client.Gauge, GAUGES)):
            for name, (words, labels) in table.items():
                self._metrics[name] = kind(PREFIX + name, words, labels, registry=self.registry)
        for name, (words, labels, bounds) in HISTOGRAMS.items():
            self._metrics[name] = client.Histogram(
                PREFIX + name, words, labels, buckets=bounds, registry=self.registry
            )
        self._groups: set[str] = set()
        self._seconds = dict.fromkeys(_PHASES, 0.0)

    def render(self) -> tuple[bytes, str]:
        """The body of `GET /metrics` and its content type."""
        client = _client()
        return client.generate_latest(self.registry), client.CONTENT_TYPE_LATEST

    # Requests.

    def observe_request(
        self, route: str, status: int, seconds: float, queue_seconds: float | None = None
    ) -> None:
        """A request was answered. `route`: the path's template, never the path itself.

        `seconds` include `queue_seconds`; None for one that never waited for an engine.
        """
        self._add("requests", 1, route=route, status=str(status))
        self._observe("request_seconds", seconds, route=route)
        if queue_seconds is not None:
            self._observe("queue_seconds", queue_seconds, route=route)

    def set_queue(self, route: str, waiting: int) -> None:
        """Requests that wait for an engine now."""
        self._set("queue_requests", waiting, route=route)

    def observe_error(self, kind: str) -> None:
        """Something failed. `kind`: one of a few words, such as `engine` or `deadline`."""
        self._add("errors", 1, kind=kind)

    # Texts.

    def observe_step(self, step: StepStats) -> None:
        """One decoding step of a whole batch."""
        counts = {
            "passes": 1,
            "pass_rows": step.rows,
            "texts": step.finished,
            "new_tokens": step.new_tokens,
            "target_calls": step.target_calls,
            "draft_calls": step.draft_calls,
            "drafted_tokens": step.drafted_tokens,
            "accepted_tokens": step.accepted_tokens,
            "relaxed_tokens": step.relaxed_tokens,
        }
        for name, count in counts.items():
            self._add(name, count)
        for source, count in zip(SOURCES, step.accepted_by_source, strict=True):
            self._add("source_accepted_tokens", count, source=source)
        for depth, count in enumerate(step.accepted_by_depth, 1):
            self._add("depth_accepted_tokens", count, depth=str(depth))
        for group, (drafted, accepted) in step.by_group.items():
            label = self._group_label(group)
            self._add("group_drafted_tokens", drafted, group=label)
            self._add("group_accepted_tokens", accepted, group=label)
        self._set("batch_sequences", step.active)
        self._set("waiting_sequences", step.waiting)
        self._set("kv_tokens", step.kv_tokens)

    def observe_text(self, finish_reason: str, tokens: int) -> None:
        """A text was handed over. Its tokens were counted by `observe_step` already."""
        self._add("text_ends", 1, reason=finish_reason)
        self._observe("text_tokens", tokens)

    def observe_timing(self, timing: Timing) -> None:
        """Take over what an engine's clocks have gained since the last call.

        One engine per `ServiceMetrics`; clocks that start anew are noticed.
        """
        for phase in _PHASES:
            now, before = getattr(timing, f"{phase}_seconds"), self._seconds[phase]
            self._add("phase_seconds", now - before if now >= before else now, phase=phase)
            self._seconds[phase] = now

    def set_kv_capacity(self, tokens: int, nbytes: int) -> None:
        """Room of the KV slab."""
        self._set("kv_capacity_tokens", tokens)
        self._set("kv_capacity_bytes", nbytes)

    def set_pool(self, nbytes: int, hit_rate: float, texts: int = 0) -> None:
        """The pool in use. `hit_rate`: drafts from it of which a token was accepted, 0 to 1."""
        self._set("pool_bytes", nbytes)
        self._set("pool_hit_ratio", hit_rate)
        self._set("pool_texts", texts)

    # Beams.

    def observe_beam_pass(self, users: int, rows: int, seconds: float) -> None:
        """One forward pass of the beam loop: users that took part, rows scored."""
        self._add("beam_passes", 1)
        self._add("beam_pass_rows", rows)
        self._observe("beam_pass_seconds", seconds)
        self._set("beam_batch_users", users)

    def observe_beams(
        self, done: Iterable[SearchCounts], *, results: int = 0, invalid: int = 0, partial: int = 0
    ) -> None:
        """Finished searches. `results`: items returned; `invalid`: answers that are no item;
        `partial`: searches that their deadline cut short."""
        searches: Seq[SearchCounts] = list(done)
        counts = {
            "beam_users": len(searches),
            "beam_target_calls": sum(s.target_calls for s in searches),
            "beam_draft_calls": sum(s.draft_calls for s in searches),
            "beam_drafted_rows": sum(s.drafted for s in searches),
            "beam_accepted_steps": sum(s.accepted_steps for s in searches),
            "beam_plain_users": sum(not s.drafted for s in searches),
            "beam_results": results,
            "beam_invalid": invalid,
            "beam_partial_users": partial,
        }
        for name, count in counts.items():
            self._add(name, count)

    def _group_label(self, group: str) -> str:
        if group in self._groups:
            return group
        if len(self._groups) >= MOST_GROUPS:
            return _OTHER_GROUPS
        self._groups.add(group)
        return group

    def _of(self, name: str, labels: dict[str, str]) -> Any:
        return self._metrics[name].labels(**labels) if labels else self._metrics[name]

    def _add(self, name: str, amount: float, **labels: str) -> None:
        if amount:
            self._of(name, labels).inc(amount)

    def _set(self, name: str, value: float, **labels: str) -> None:
        self._of(name, labels).set(value)

    def _observe(self, name: str, value: float, **labels: str) -> None:
        self._of(name, labels).observe(value)


def _client() -> Any:
    try:
        import prometheus_client
    except ImportError:
        raise DraftrecError(
            'metrics need prometheus-client; install it with pip install "draftrec[serve]"'
        ) from None
    return prometheus_client
