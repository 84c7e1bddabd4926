"""Metrics of jobs and of the service, in the format that Prometheus reads; the watcher of a job
that counts its steps, and `/metrics` on the loopback.

Counters only grow, so that rates come from the reader (`rate(draftrec_new_tokens_total[1m])` is
tokens per second) and several processes add up. Names carry base units, as Prometheus asks, and
counters get `_total` when they are shown.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

from draftrec import __version__
from draftrec.core import COUNTED, SOURCES
from draftrec.errors import DraftrecError, needing
from draftrec.jobs.knowledge.job import Watcher
from draftrec.jobs.knowledge.worker import Loader, TextGenerator

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from draftrec.engine.text.stats import Spent, StepStats, Timing
    from draftrec.jobs.knowledge.manifest import Manifest
    from draftrec.jobs.knowledge.plan import JobSpec


PREFIX = "draftrec_"

Labels = tuple[str, ...]

COUNTERS: dict[str, tuple[str, Labels]] = {
    "requests": ("HTTP requests answered.", ("route", "status")),
    "recommend_users": (
        "Users that recommendations were asked for, by the status of their requests.",
        ("status",),
    ),
    "errors": ("Failures, by kind.", ("kind",)),
    "reloads": ("Reloads of catalogue and pool, by result (ok, failed).", ("result",)),
    "log_dropped_lines": ("Lines of the log that its reader was too slow for.", ()),
    "passes": ("Forward passes of the target over a batch of texts.", ()),
    "pass_rows": ("Token rows that these passes computed, drafts and prompts included.", ()),
    "texts": ("Texts finished.", ()),
    "text_ends": ("Texts handed over, by why they ended.", ("reason",)),
    "new_tokens": ("Tokens written.", ()),
    "target_calls": ("Passes times the texts that took part in each; prompts included.", ()),
    "draft_calls": ("Verifications of a draft that was not empty.", ()),
    "drafted_tokens": ("Draft tokens verified.", ()),
    "accepted_tokens": ("Draft tokens kept.", ()),
    "relaxed_tokens": ("Draft tokens kept that were not the target's own choice.", ()),
    "source_accepted_tokens": ("Draft tokens kept, by where they came from.", ("source",)),
    "depth_accepted_tokens": ("Draft tokens kept, by their depth, 1 being first.", ("depth",)),
    "group_drafted_tokens": ("Draft tokens verified, by the text's group.", ("group",)),
    "group_accepted_tokens": ("Draft tokens kept, by the text's group.", ("group",)),
    "phase_seconds": ("Seconds of drafting, verifying and computing prompts.", ("phase",)),
    "beam_passes": ("Forward passes of the target over a batch of users.", ()),
    "beam_pass_rows": ("Token rows that these passes computed.", ()),
    "beam_users": ("Beam searches finished.", ()),
    "beam_target_calls": ("Passes times the users that took part in each.", ()),
    "beam_draft_calls": ("Forward passes of the draft model, per user.", ()),
    "beam_drafted_rows": ("Draft rows verified.", ()),
    "beam_accepted_steps": ("Levels that needed no pass of their own.", ()),
    "beam_plain_users": ("Beam searches in which nothing was drafted.", ()),
    "beam_results": ("Items recommended.", ()),
    "beam_invalid": ("Beams that were no item of the catalogue.", ()),
    "beam_partial_users": ("Beam searches that a deadline cut short.", ()),
}
GAUGES: dict[str, tuple[str, Labels]] = {
    "build_info": ("1 for what runs here.", ("version", "python", "torch")),
    "requests_in_flight": ("Requests that were accepted and are not answered yet.", ()),
    "queue_requests": ("Users, or texts, that wait for an engine.", ("route",)),
    "last_reload_successful": ("1 if the last reload succeeded, or there was none; else 0.", ()),
    "last_reload_success_timestamp_seconds": (
        "When catalogue and pool were loaded last, in Unix time.",
        (),
    ),
    "batch_sequences": ("Texts that the last pass worked on.", ()),
    "waiting_sequences": ("Texts that wait for a place in the batch.", ()),
    "kv_tokens": ("Tokens whose keys and values are kept for running texts.", ()),
    "kv_capacity_tokens": ("Tokens that the KV slab has room for.", ()),
    "kv_capacity_bytes": ("Size of the KV slab.", ()),
    "pool_bytes": ("Size of the pool and its indexes.", ()),
    "pool_texts": ("Texts in the pool.", ()),
    "pool_hit_ratio": ("Drafts from the pool of which a token was kept, over the pool's life.", ()),
    "drafter_info": ("1 for the learned drafter in use.", ("form", "levels", "fingerprint")),
    "beam_batch_users": ("Users that the last pass worked on.", ()),
}
_LATENCIES = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
_TOKENS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0,
)  # fmt: skip
_LENGTHS = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)

#: Meaning, labels, upper bounds of the buckets.
HISTOGRAMS: dict[str, tuple[str, Labels, tuple[float, ...]]] = {
    "request_seconds": (
        "Time to answer a request, its wait included.",
        ("route", "status"),
        _LATENCIES,
    ),
    "queue_seconds": (
        "Time that a user, or a text, waited for an engine.",
        ("route",),
        _LATENCIES,
    ),
    "time_to_first_token_seconds": (
        "Time from a text's arrival to its first token, its wait included.",
        ("route",),
        _LATENCIES,
    ),
    "time_per_output_token_seconds": (
        "Time of a text after its first token, for each token that followed.",
        ("route",),
        _TOKENS,
    ),
    "reload_seconds": ("Time to load catalogue and pool again, failures included.", (), _LATENCIES),
    "beam_pass_seconds": ("Time of a pass over a batch of users.", (), _LATENCIES),
    "text_tokens": ("Tokens of a text that was handed over.", (), _LENGTHS),
}


#: Groups that have a label of their own; each is a time series, and pools may have thousands.
MOST_GROUPS = 50
_OTHER_GROUPS = "(others)"
_PHASES = ("draft", "verify", "prefill")
#: Series that are there from the start, at 0: the first failure would otherwise be no increase.
_KNOWN: dict[str, tuple[str, ...]] = {
    "errors": ("engine", "engine_failed", "broken", "busy", "internal"),
    "recommend_users": ("200",),
    "reloads": ("ok", "failed"),
    "text_ends": ("eos", "length", "stop", "deadline"),
    "source_accepted_tokens": tuple(SOURCES),
    "phase_seconds": _PHASES,
}
_STATUSES = (200, 400, 401, 413, 422, 429, 499, 500, 503)
#: What says what the batch is doing now.
_TEXT_GAUGES = ("batch_sequences", "waiting_sequences", "kv_tokens")


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
    """All metrics of one process, collected in a `registry` of their own, so that several can live
    in one. Safe to call from several threads.

    Raises DraftrecError where prometheus-client is not installed.
    """

    def __init__(self) -> None:
        client = _client()
        self.registry: CollectorRegistry = client.CollectorRegistry()
        self._metrics: dict[str, Any] = {}
        for kind, table in ((client.Counter, COUNTERS), (client.Gauge, GAUGES)):
            for name, (words, labels) in table.items():
                self._metrics[name] = kind(PREFIX + name, words, labels, registry=self.registry)
        for name, (words, labels, bounds) in HISTOGRAMS.items():
            self._metrics[name] = client.Histogram(
                PREFIX + name, words, labels, buckets=bounds, registry=self.registry
            )
        client.ProcessCollector(registry=self.registry)  # process_*, where there is /proc
        self._groups: set[str] = set()
        self._may_have_label: Collection[str] | None = None
        self._seconds = dict.fromkeys(_PHASES, 0.0)
        for name, values in _KNOWN.items():
            for value in values:
                self._metrics[name].labels(value)
        facts = {"version": __version__, "python": platform.python_version()}
        self._set("build_info", 1, **facts, torch=version("torch"))
        self._set("last_reload_successful", 1)
        self._set("last_reload_success_timestamp_seconds", time.time())

    def render(self) -> tuple[bytes, str]:
        """The body of `GET /metrics` and its content type."""
        client = _client()
        return client.generate_latest(self.registry), client.CONTENT_TYPE_LATEST

    # Requests.

    def expect(self, routes: Iterable[str], in_flight: Callable[[], int]) -> None:
        """Show the usual series of routes at 0 from the start, and what `in_flight` says."""
        for route in routes:
            for status in _STATUSES:
                self._metrics["requests"].labels(route, str(status))
            self._metrics["request_seconds"].labels(route, "200")
            self._metrics["queue_requests"].labels(route)
        self._metrics["requests_in_flight"].set_function(in_flight)

    def observe_request(
        self, route: str, status: int, seconds: float, waits: Iterable[float] = ()
    ) -> None:
        """A request was answered. `route`: the path's template, never the path itself.

        `waits`: seconds that its users, or texts, waited for an engine; `seconds` include them.
        """
        self._add("requests", 1, route=route, status=str(status))
        self._observe("request_seconds", seconds, route=route, status=str(status))
        for wait in waits:
            self._observe("queue_seconds", wait, route=route)

    def observe_users(self, users: int, status: int) -> None:
        """A recommendation was asked for so many users, and got this status."""
        self._add("recommend_users", users, status=str(status))

    def set_queue(self, route: str, waiting: int) -> None:
        """Users, or texts, that wait for an engine now."""
        self._set("queue_requests", waiting, route=route)

    def observe_error(self, kind: str) -> None:
        """Something failed. `kind`: one of a few words, such as `engine` or `deadline`."""
        self._add("errors", 1, kind=kind)

    def observe_reload(self, *, succeeded: bool, seconds: float) -> None:
        """Catalogue and pool were read again, or could not be."""
        self._add("reloads", 1, result="ok" if succeeded else "failed")
        self._observe("reload_seconds", seconds)
        self._set("last_reload_successful", int(succeeded))
        if succeeded:
            self._set("last_reload_success_timestamp_seconds", time.time())

    def count_dropped_line(self) -> None:
        """The log's reader was too slow for a line."""
        self._add("log_dropped_lines", 1)

    # Texts.

    def observe_step(self, step: StepStats) -> None:
        """One decoding step of a whole batch."""
        counts = {
            "passes": 1,
            "pass_rows": step.rows,
            "texts": step.finished,
            "new_tokens": step.new_tokens,
            **{name: getattr(step, name) for name in COUNTED},
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

    def observe_first_token(self, route: str, seconds: float) -> None:
        """A text's first token came so long after it was asked for."""
        self._observe("time_to_first_token_seconds", seconds, route=route)

    def observe_token_time(self, route: str, seconds: float) -> None:
        """Each token after a text's first took so long, on average."""
        self._observe("time_per_output_token_seconds", seconds, route=route)

    def rest_texts(self) -> None:
        """No text is being written."""
        for name in _TEXT_GAUGES:
            self._set(name, 0)

    def name_groups(self, groups: Collection[str]) -> None:
        """Give no others labels of their own: clients may name whatever group they like."""
        self._may_have_label = groups

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

    def observe_spent(self, spent: Spent) -> None:
        """What a step of a job took, as the job counts it."""
        for phase in _PHASES:
            self._add("phase_seconds", getattr(spent, phase), phase=phase)

    def set_kv_capacity(self, tokens: int, nbytes: int) -> None:
        """Room of the KV slab."""
        self._set("kv_capacity_tokens", tokens)
        self._set("kv_capacity_bytes", nbytes)

    def set_pool(self, nbytes: int, hit_rate: float, texts: int = 0) -> None:
        """The pool in use. `hit_rate`: drafts from it of which a token was accepted, 0 to 1."""
        self._set("pool_bytes", nbytes)
        self._set("pool_hit_ratio", hit_rate)
        self._set("pool_texts", texts)

    def set_drafter(self, form: str, levels: int, fingerprint: str) -> None:
        """The learned drafter in use."""
        self._set("drafter_info", 1, form=form, levels=str(levels), fingerprint=fingerprint[:12])

    # Beams.

    def observe_beam_pass(self, users: int, rows: int, seconds: float) -> None:
        """One forward pass of the beam loop: users that took part, rows scored."""
        self._add("beam_passes", 1)
        self._add("beam_pass_rows", rows)
        self._observe("beam_pass_seconds", seconds)
        self._set("beam_batch_users", users)

    def rest_beams(self) -> None:
        """Nobody is being recommended for."""
        self._set("beam_batch_users", 0)

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
        may = not group or self._may_have_label is None or group in self._may_have_label
        if not may or len(self._groups) >= MOST_GROUPS:
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
    with needing("serve", "metrics need prometheus-client"):
        import prometheus_client
    return prometheus_client


_HOST = "127.0.0.1"


class MeasuredJob(Watcher):
    """Counts what a job does, and passes everything on to another watcher.

    The job loads its generator through `loader`, so that slab and pool can be read as well.
    """

    def __init__(self, metrics: ServiceMetrics, watcher: Watcher) -> None:
        self.metrics, self._watcher = metrics, watcher
        self._generator: TextGenerator | None = None
        self._room = 0

    def loader(self, load: Loader) -> Loader:
        """`load`, remembering what it made."""

        def remember(spec: JobSpec, cost_state: dict[str, Any] | None) -> TextGenerator:
            self._generator = load(spec, cost_state)
            return self._generator

        return remember

    def note(self, text: str) -> None:
        self._watcher.note(text)

    def warn(self, text: str) -> None:
        self._watcher.warn(text)

    def begin(self, manifest: Manifest, kept: int) -> None:
        self._read_pool()
        self._watcher.begin(manifest, kept)

    def step(self, step: StepStats) -> None:
        self.metrics.observe_step(step)
        self.metrics.observe_spent(step.spent)
        if self._generator is not None:
            self._read_slab(self._generator)
        self._watcher.step(step)

    def shard(self, manifest: Manifest) -> None:
        self._read_pool()
        self._watcher.shard(manifest)

    def _read_slab(self, generator: TextGenerator) -> None:
        """A shard with longer prompts than those before it gets a larger slab."""
        target = getattr(generator, "target", None)  # not every generator has a model
        if target is None or target.slab is None:
            return
        room = target.slab.slots * target.slab.capacity
        if room != self._room:
            self._room = room
            self.metrics.set_kv_capacity(room, room * target.bytes_per_token)

    def _read_pool(self) -> None:
        """Between shards, when the pool has grown and learnt what it was worth."""
        pool = self._generator.pool if self._generator is not None else None
        if pool is not None:
            self.metrics.set_pool(pool.nbytes, pool.usage.hit_rate, len(pool))


@contextmanager
def served(metrics: ServiceMetrics, port: int) -> Iterator[int]:
    """Answer `GET /metrics` on a port of the loopback; yields the port, which 0 leaves to the
    system. Raises DraftrecError where the port is taken."""
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, _HOST, metrics.registry)
    except OSError as error:
        raise DraftrecError(
            f"metrics cannot be served on port {port} ({error.strerror}); give --metrics-port "
            f"another, or 0 for any that is free"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
