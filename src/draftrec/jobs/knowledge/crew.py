"""Who does the shards of a job. The local crew is one worker in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from draftrec.errors import Interrupted
from draftrec.jobs.knowledge.plan import JobSpec, Plan
from draftrec.jobs.knowledge.worker import (
    Facts,
    OnStep,
    ShardResult,
    ShardTask,
    ShardWorker,
    ShouldStop,
    TextGenerator,
    TextsOf,
    worker_of,
)

Loader = Callable[[JobSpec, dict[str, Any] | None], TextGenerator]


class Crew(Protocol):
    """Does shards in any order and by any number of workers, and gives them back in theirs.

    A shard drafts from the shards that its task names and from no others, so that what is written
    does not depend on who was fast.
    """

    @property
    def facts(self) -> Facts:
        """Of the model; the same for all workers."""
        ...

    def results(
        self,
        tasks: Iterator[ShardTask],
        texts_of: TextsOf,
        on_step: OnStep,
        should_stop: ShouldStop | None,
    ) -> Iterator[ShardResult]:
        """One result per task, in order. A result is finished for good, and `texts_of` knows its
        texts, once the next one is asked for. Raises Interrupted once `should_stop()` is true."""
        ...

    def save_pool(self, folder: Path, shards: int, texts_of: TextsOf) -> None:
        """Keep the pool as it is after the first `shards` shards."""
        ...

    def close(self) -> None:
        """Let the workers go."""
        ...


#: Makes the crew that a job asks for; the state is what a run before this one knew of costs.
Hire = Callable[[Plan, dict[str, Any] | None], Crew]


class LocalCrew:
    """One worker, in this process."""

    def __init__(self, worker: ShardWorker) -> None:
        self._worker = worker

    @property
    def facts(self) -> Facts:
        return self._worker.facts

    def results(
        self,
        tasks: Iterator[ShardTask],
        texts_of: TextsOf,
        on_step: OnStep,
        should_stop: ShouldStop | None,
    ) -> Iterator[ShardResult]:
        for task in tasks:
            if should_stop and should_stop():
                raise Interrupted
            self._worker.learn(task.known, texts_of)
            yield self._worker.work(task, on_step, should_stop)

    def save_pool(self, folder: Path, shards: int, texts_of: TextsOf) -> None:
        self._worker.learn(shards, texts_of)
        self._worker.generator.pool.save(folder)

    def close(self) -> None:
        pass


def local(load: Loader) -> Hire:
    """The crew whose only worker has the generator that `load` makes."""

    def hire(plan: Plan, cost_state: dict[str, Any] | None) -> Crew:
        generator = load(plan.spec, cost_state)
        return LocalCrew(worker_of(plan.spec, generator, plan.previous))

    return hire
