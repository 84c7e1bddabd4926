"""Metrics of a running job: a watcher that counts steps, and `/metrics` on the loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from draftrec.errors import DraftrecError
from draftrec.knowledge.crew import Loader
from draftrec.knowledge.job import Watcher
from draftrec.knowledge.worker import TextGenerator
from draftrec.serve.metrics import ServiceMetrics

if TYPE_CHECKING:
    from draftrec.engine.text.stats import StepStats
    from draftrec.knowledge.manifest import Manifest
    from draftrec.knowledge.plan import JobSpec

_HOST = "127.0.0.1"


class MeasuredJob(Watcher):
    """Counts what a job does, and passes everything on to another watcher.

    The job loads its generator through `loader`, so that clocks and pool can be read as well.
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
        if self._generator is not None:
            self.metrics.observe_timing(self._generator.timing)
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
            usage = pool.usage
            hit_rate = usage.hits / usage.drafts if usage.drafts else 0.0
            self.metrics.set_pool(pool.nbytes, hit_rate, len(pool))


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
