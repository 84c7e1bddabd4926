"""`draftrec generate --engine ray`: the workers of a job on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from draftrec.engine.text.stats import StepStats, summed
from draftrec.errors import DraftrecError
from draftrec.jobs.knowledge.crew import Crew, Hire
from draftrec.jobs.knowledge.plan import JobSpec, Plan
from draftrec.jobs.knowledge.refresh import PreviousRun
from draftrec.jobs.knowledge.shards import RunFolder
from draftrec.jobs.knowledge.worker import (
    Facts,
    OnStep,
    ShardResult,
    ShardTask,
    ShardWorker,
    ShouldStop,
    TextsOf,
    given_pool,
    load_generator,
    worker_of,
)
from draftrec.jobs.ray.cluster import ClusterSpec, Share
from draftrec.jobs.ray.workers import RayWorkers, usual_lag

Load = Callable[[JobSpec, dict[str, Any] | None], Any]
Given = Callable[[JobSpec, str], Any]


@dataclass(frozen=True, slots=True)
class ShardWork:
    """Makes a worker where it runs. It reads finished shards from the run's folder: what a new
    worker has to catch up with, and what the others wrote since its last shard."""

    spec: JobSpec
    load: Load = load_generator
    given: Given = given_pool

    def __call__(self) -> _ShardWork:
        if not self.spec.output.is_dir():
            raise DraftrecError(
                f"a worker does not see {self.spec.output}; let --output be on storage that all "
                f"nodes of the cluster share"
            )
        previous = PreviousRun(self.spec.previous) if self.spec.previous else None
        # What a pass costs is measured by every worker: their devices may differ.
        return _ShardWork(worker_of(self.spec, self.load(self.spec, None), previous), self)


class _ShardWork:
    def __init__(self, worker: ShardWorker, made_by: ShardWork) -> None:
        self._worker, self._made_by = worker, made_by
        self._folder = RunFolder(made_by.spec.output)

    @property
    def facts(self) -> Facts:
        return replace(self._worker.facts, cost_state=None)

    def __call__(self, task: ShardTask) -> tuple[ShardResult, StepStats | None]:
        """The shard's texts, and all its steps as one."""
        spec = self._made_by.spec
        if task.known < self._worker.learned and spec.config.pool_lag != "auto":
            # The shard of a lost worker, which was begun when less was known.
            fingerprint = self._worker.facts.fingerprint["tokenizer"]
            self._worker.unlearn(self._made_by.given(spec, fingerprint))
        self._worker.learn(task.known, self._folder.texts)
        steps: list[StepStats] = []
        result = self._worker.work(task, steps.append)
        # Shards of several workers go on side by side, so earlier lives' times would count twice.
        cost = replace(result.cost, earlier_seconds=0.0)
        return replace(result, cost=cost, cost_state=None), summed(steps) if steps else None


class RayCrew(RayWorkers):
    """Workers on a cluster. At most `window` shards are under way at a time."""

    def __init__(
        self,
        spec: JobSpec,
        cluster: ClusterSpec,
        make: Callable[[Share], ShardWork],
        note: Callable[[str], None],
    ) -> None:
        lag = spec.config.pool_lag
        window = 1 + (usual_lag(cluster.workers) if lag == "auto" else lag)
        if window < cluster.workers:
            note(f"with a pool lag of {lag} shards only {window} workers have work at a time")
        super().__init__(cluster, make, note)
        self.window, self._spec = window, spec

    def results(
        self,
        tasks: Iterator[ShardTask],
        texts_of: TextsOf,
        on_step: OnStep,
        should_stop: ShouldStop | None,
    ) -> Iterator[ShardResult]:
        for result, steps in self.fleet.results(tasks, self.window, should_stop):
            if steps:
                on_step(steps)
            yield result

    def save_pool(self, folder: Path, shards: int, texts_of: TextsOf) -> None:
        # As a local job would: the same texts in the same order.
        pool = given_pool(self._spec, self.facts.fingerprint["tokenizer"])
        for index in range(shards):
            pool.add(texts_of(index))
        pool.save(folder)


def on_ray(
    cluster: ClusterSpec,
    note: Callable[[str], None],
    load: Load = load_generator,
    given: Given = given_pool,
) -> Hire:
    """The crew whose workers are Ray actors."""

    def hire(plan: Plan, cost_state: dict[str, Any] | None) -> Crew:
        spec = plan.spec
        return RayCrew(
            spec, cluster, lambda share: ShardWork(_at_worker(spec, share), load, given), note
        )

    return hire


def _at_worker(spec: JobSpec, share: Share) -> JobSpec:
    """The same files, from wherever a worker runs, and its own device."""
    found = {
        name: path.resolve()
        for name in ("output", "pool", "previous")
        if (path := getattr(spec, name)) is not None
    }
    target = spec.config.generate.target
    model = Path(target.model)
    own = {
        "model": str(model.resolve()) if model.exists() else target.model,
        "device": share.device(target.device),
    }
    generate = spec.config.generate.model_copy(update={"target": target.model_copy(update=own)})
    config = spec.config.model_copy(update={"generate": generate})
    return replace(spec, config=config, **found)
