"""Who does the shards of a job: an executor hands tasks to workers and gives their results back in
the order of the tasks. Here it is one worker in this process, in `jobs.ray` many on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from draftrec.errors import Interrupted

Note = Callable[[str], None]
#: Is told how a task gets on: a decoding step, users or texts that are done.
OnProgress = Callable[[Any], None]
ShouldStop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker gets of a cluster. `threads` of the processor's for PyTorch; None: as Ray
    decides."""

    cpus: float
    gpus: float
    threads: int | None

    def device(self, asked: str) -> str:
        """A worker's device: as asked; by itself none that was not given to it."""
        return "cpu" if asked == "auto" and not self.gpus else asked


class Worker(Protocol):
    """Does one task at a time."""

    @property
    def facts(self) -> Any:
        """What a job records of it; the same for all workers."""
        ...

    def __call__(
        self,
        task: Any,
        on_progress: OnProgress | None = None,
        should_stop: ShouldStop | None = None,
        /,
    ) -> Any: ...

    def merged(self, progress: list[Any], /) -> list[Any]:
        """What is told of a whole task that was done elsewhere."""
        ...


class Work(Protocol):
    """Makes a worker where it runs."""

    def __call__(self) -> Worker: ...

    def placed(self, share: Share, /) -> Work:
        """The same, to be sent away: files as they are found from anywhere, a device of its own."""
        ...

    def window(self, workers: int, note: Note, /) -> int:
        """Most tasks under way at a time, the first without a result included. `note` is told if
        that leaves some of the `workers` idle."""
        ...


class Executor(Protocol):
    """Workers that are ready, at least the first. `worker`: the one of this process, if it is that
    one which does all tasks, one after another; None where tasks overlap."""

    worker: Any

    @property
    def facts(self) -> Any:
        """Of the workers."""
        ...

    def results(
        self,
        tasks: Iterator[Any],
        on_progress: OnProgress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Iterator[Any]:
        """One result per task, in order. A result is finished for good once the next one is asked
        for. Raises Interrupted once `should_stop()` is true."""
        ...

    def close(self) -> None:
        """Let the workers go."""
        ...


#: Makes the executor for a job's work; raises DraftrecError for what it cannot work with.
Start = Callable[[Work], Executor]


class LocalExecutor:
    """One worker, in this process."""

    def __init__(self, work: Work) -> None:
        self.worker: Any = work()

    @property
    def facts(self) -> Any:
        return self.worker.facts

    def results(
        self,
        tasks: Iterator[Any],
        on_progress: OnProgress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Iterator[Any]:
        for task in tasks:
            if should_stop and should_stop():
                raise Interrupted
            yield self.worker(task, on_progress, should_stop)

    def close(self) -> None:
        pass


def usual_window(workers: int) -> int:
    """Tasks under way: two for every worker, so that those who are done need not wait for those who
    are not."""
    return 2 * workers
