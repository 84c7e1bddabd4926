"""The workers of a job as Ray actors: tasks in, results back in the order of the tasks.

Ray places the actors, carries what they are given and give back, and notices when one dies. What
it cannot know is decided here: that a task of a dead worker goes to whoever is free, that its
successor is made like it was, and how far the work may run ahead of the results; and which cluster
a job runs on, and what each of its workers gets there.
"""

from __future__ import annotations

import heapq
import os
import secrets
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from draftrec.errors import DraftrecError, Interrupted, needing
from draftrec.jobs.executor import (
    Executor,
    Note,
    OnProgress,
    Share,
    ShouldStop,
    Start,
    Work,
    Worker,
)
from draftrec.models.cpu import usable_cores

# A shard's records and texts are a few megabytes; Ray would take 30 % of the memory.
_OBJECT_STORE_BYTES = 512 << 20
_KNOCK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """`workers`, each with a model of its own. `address`: a running cluster, as `ray.init` takes
    it; None starts one on this machine, unless RAY_ADDRESS is set. `gpus_per_worker` may be a
    fraction; None: one, where the cluster has any. `cpus_per_worker`; None: this machine's cores
    shared out, or one on a cluster."""

    workers: int = 1
    gpus_per_worker: float | None = None
    cpus_per_worker: float | None = None
    address: str | None = None


def import_ray() -> Any:
    """The `ray` package. Raises DraftrecError where it is missing."""
    with needing("ray", "--engine ray needs Ray"):
        import ray
    return ray


@contextmanager
def connected(spec: ClusterSpec) -> Iterator[Share]:
    """Be part of a cluster; yields what a worker gets there.

    A cluster that was started for this job ends with it, and so does a process's connection that
    was made for it. Raises DraftrecError where no cluster answers, or where this machine has too
    little for the workers.
    """
    _check(spec)
    ray = import_ray()
    ours = not ray.is_initialized()
    address = spec.address or os.environ.get("RAY_ADDRESS")
    if ours:
        with _own_signals():
            _join(ray, address) if address else _start(ray, spec)
    try:
        yield _share(ray, spec, local=ours and not address)
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Who hears SIGTERM goes on to: Ray would end the process instead, without a word."""
    heard = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(heard) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, heard)


def _check(spec: ClusterSpec) -> None:
    if spec.workers < 1:
        raise DraftrecError(f"--workers must be 1 or more, not {spec.workers}")
    for name in ("gpus_per_worker", "cpus_per_worker"):
        value = getattr(spec, name)
        if value is not None and not 0 <= value < 1024:
            raise DraftrecError(f"--{name.replace('_', '-')} must be 0 or more, not {value:g}")


def _start(ray: Any, spec: ClusterSpec) -> None:
    """A cluster on this machine that has room for the workers and for nothing else."""
    # A local cluster that lives for one job has nobody to report to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray makes its workers yield to every other process, which a local job does not do either.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A secret for this cluster alone; Ray's own would be written to the home folder.
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # With fractions of a processor a sum of shares may exceed the whole by a rounding error.
    cpus = spec.workers * _cpus(spec) + 1
    ray.init(
        "local",  # not one that somebody else has started here
        num_cpus=int(cpus),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=_OBJECT_STORE_BYTES,
    )


def _join(ray: Any, address: str) -> None:
    try:
        if address != "auto":
            _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DraftrecError(
            f"no Ray cluster answers at {address} ({reason}); start one with `ray start --head`, "
            f"or leave --address out to use this machine alone"
        ) from error


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("it is neither auto, nor HOST:PORT, nor ray://HOST:PORT")
    with socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS):
        pass


def _share(ray: Any, spec: ClusterSpec, *, local: bool) -> Share:
    there = ray.cluster_resources()
    gpus = spec.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if there.get("GPU", 0) else 0.0
    if local and gpus * spec.workers > there.get("GPU", 0):
        raise DraftrecError(
            f"{spec.workers} workers with {gpus:g} GPUs each are asked for, this machine has "
            f"{there.get('GPU', 0):g}; lower --workers or --gpus-per-worker, or join a cluster "
            f"with --address"
        )
    if not local:
        return Share(1.0 if spec.cpus_per_worker is None else spec.cpus_per_worker, gpus, None)
    threads = os.environ.get("OMP_NUM_THREADS")
    return Share(_cpus(spec), gpus, int(threads) if threads else max(1, int(_cpus(spec))))


def _cpus(spec: ClusterSpec) -> float:
    """Of this machine, per worker."""
    if spec.cpus_per_worker is not None:
        return spec.cpus_per_worker
    return max(1, usable_cores() // spec.workers)


_TRIES = 4
_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 60.0


class _Actor:
    """The actor. It makes its worker at the first call, so that what goes wrong there is said."""

    def __init__(self, make: Callable[[], Any], threads: int | None) -> None:
        self._make, self._threads = make, threads
        self._worker: Any = None

    def start(self) -> Any:
        """Make the worker; its facts."""
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)
        self._worker = self._make()
        return self._worker.facts

    def facts(self) -> Any:
        """Again what `start` gave: a sign of life."""
        return self._worker.facts

    def do(self, task: Any) -> Any:
        """One task."""
        return self._worker(task)


@dataclass(slots=True)
class _Queue:
    """Tasks by number: which are next, which results are there. `first` is the next to give back;
    at most `window` tasks from there on are begun."""

    tasks: Iterator[Any]
    window: int
    first: int = 0
    taken: int = 0
    exhausted: bool = False
    again: list[tuple[int, Any]] = field(default_factory=list[tuple[int, Any]])
    done: dict[int, Any] = field(default_factory=dict[int, Any])
    tries: Counter[int] = field(default_factory=Counter[int])

    def next(self) -> tuple[int, Any] | None:
        """The task to begin now, the earliest first; None if there is none, or none may be yet."""
        if self.again:
            return heapq.heappop(self.again)
        if self.taken - self.first >= self.window:
            return None
        task = next(self.tasks, None)
        if task is None:
            self.exhausted = True
            return None
        self.taken += 1
        return self.taken - 1, task


@dataclass(frozen=True, slots=True)
class _Call:
    """What a worker was asked for; no `number`: to start, or for a sign of life."""

    worker: int
    number: int | None = None
    task: Any = None


class ActorPool:
    """`workers` actors, each with what `make` makes where it runs. `note` is told what a user
    should know."""

    def __init__(self, make: Callable[[], Any], workers: int, share: Share, note: Note) -> None:
        self._share, self._note = share, note
        self._ray = import_ray()
        # Once for all: it may hold a model.
        self._make = self._ray.put(make)
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, _Call] = {}
        self._idle: list[int] = []
        self._starts: Counter[int] = Counter()
        self._facts: Any = None
        self._told = time.monotonic()
        for worker in range(workers):
            self._start(worker)

    def facts(self) -> Any:
        """Of the first worker that is ready. Raises DraftrecError with what kept it from it."""
        queue = _Queue(iter(()), 0)
        while self._facts is None:
            self._collect(queue, None)
        return self._facts

    def results(
        self, tasks: Iterator[Any], window: int, should_stop: Callable[[], bool] | None = None
    ) -> Iterator[Any]:
        """A result per task, in order. A task is taken when at most `window` - 1 tasks before it
        have no result yet that was given back and left behind.

        Raises Interrupted once `should_stop()` is true, what a worker raised, and DraftrecError for
        a task that no worker survives.
        """
        queue = _Queue(tasks, window)
        while True:
            # Given back before new tasks are taken, so that those know of as much as can be.
            while queue.first in queue.done:
                yield queue.done.pop(queue.first)
                queue.first += 1
            self._dispatch(queue)
            if queue.exhausted and queue.first == queue.taken:
                return
            self._collect(queue, should_stop)

    def close(self) -> None:
        """End all workers at once."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        self._calls.clear()

    def _start(self, worker: int) -> None:
        """A new actor in a worker's place; its worker is made when Ray has found room for it."""
        made = self._ray.remote(_Actor).options(
            num_cpus=self._share.cpus, num_gpus=self._share.gpus, max_restarts=0
        )
        self._actors[worker] = actor = made.remote(self._make, self._share.threads)
        self._calls[actor.start.remote()] = _Call(worker)

    def _dispatch(self, queue: _Queue) -> None:
        while self._idle and (job := queue.next()):
            worker = self._idle.pop(0)
            ref = self._actors[worker].do.remote(job[1])
            self._calls[ref] = _Call(worker, *job)

    def _collect(self, queue: _Queue, should_stop: Callable[[], bool] | None) -> None:
        """Wait a moment for answers, and take those that came."""
        if should_stop and should_stop():
            raise Interrupted
        if not self._calls:
            raise DraftrecError("no worker is left; mend what ended them and run the command again")
        ready, _ = self._ray.wait(list(self._calls), timeout=_POLL_SECONDS)
        for ref in ready:
            call = self._calls.pop(ref)
            try:
                answer = self._ray.get(ref)
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, DraftrecError):
                    raise error.cause from None
                self._lost(call, error, queue)
            except self._ray.exceptions.RayError as error:
                self._lost(call, error, queue)
            else:
                self._take(call, answer, queue)
        self._complain()

    def _take(self, call: _Call, answer: Any, queue: _Queue) -> None:
        if call.number is not None:
            queue.done[call.number] = answer
        elif self._facts is None:
            self._facts = answer
        elif answer != self._facts:
            raise DraftrecError(
                f"worker {call.worker} has another model or other files than the first one "
                f"({answer} against {self._facts}); let all nodes see the same, and name a --dtype "
                f"if their processors differ"
            )
        self._starts[call.worker] = 0
        self._idle.append(call.worker)

    def _lost(self, call: _Call, error: Exception, queue: _Queue) -> None:
        """Let somebody else do what a worker was lost with, and put another one in its place."""
        reason = _reason(error)
        self._ray.kill(self._actors.pop(call.worker))
        # A lost node takes several: a shard must not be tried on one after another of them.
        for worker in self._idle:
            self._calls[self._actors[worker].facts.remote()] = _Call(worker)
        self._idle.clear()
        if call.number is None:
            self._starts[call.worker] += 1
        else:
            queue.tries[call.number] += 1
            if queue.tries[call.number] >= _TRIES:
                raise DraftrecError(
                    f"the same shard ended {_TRIES} workers, the last with: {reason}; lower "
                    f"--batch-size if memory ran out, then run the command again to go on"
                ) from error
            heapq.heappush(queue.again, (call.number, call.task))
        if self._starts[call.worker] < _TRIES:
            self._note(f"worker {call.worker} was lost ({reason}); another one takes its place")
            self._start(call.worker)
        else:
            self._note(f"worker {call.worker} cannot start ({reason}); going on without it")

    def _complain(self) -> None:
        """Say now and then which workers are waited for."""
        now = time.monotonic()
        if now - self._told < _PATIENCE_SECONDS:
            return
        self._told = now
        waiting = sorted(call.worker for call in self._calls.values() if call.number is None)
        if waiting:
            names = ", ".join(map(str, waiting))
            self._note(
                f"not ready yet: worker {names} (loading its model, or waiting for "
                f"{self._share.cpus:g} CPUs and {self._share.gpus:g} GPUs of the cluster)"
            )


def _reason(error: Exception) -> str:
    """What ended a worker, in one line."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else 'no reason given'}"


class RayExecutor:
    """The workers of a job on a cluster, which lets go of them when it ends. `note` is told what a
    user should know. Raises DraftrecError as `connected` and `ActorPool.facts` do."""

    worker = None

    def __init__(self, work: Work, cluster: ClusterSpec, note: Note) -> None:
        self._window = work.window(cluster.workers, note)
        with ExitStack() as stack:
            share = stack.enter_context(connected(cluster))
            self._pool = ActorPool(_Elsewhere(work.placed(share)), cluster.workers, share, note)
            stack.callback(self._pool.close)
            self.facts: Any = self._pool.facts()
            self._open = stack.pop_all()

    def results(
        self,
        tasks: Iterator[Any],
        on_progress: OnProgress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Iterator[Any]:
        for result, progress in self._pool.results(tasks, self._window, should_stop):
            if on_progress:
                for told in progress:
                    on_progress(told)
            yield result

    def close(self) -> None:
        self._open.close()


def on_ray(cluster: ClusterSpec, note: Note) -> Start:
    """Starts executors whose workers are Ray actors."""

    def start(work: Work) -> Executor:
        return RayExecutor(work, cluster, note)

    return start


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """Makes a worker that gives back with each result what it would have told meanwhile."""

    work: Work

    def __call__(self) -> _Telling:
        return _Telling(self.work())


class _Telling:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    @property
    def facts(self) -> Any:
        return self._worker.facts

    def __call__(self, task: Any) -> tuple[Any, list[Any]]:
        progress: list[Any] = []
        result = self._worker(task, progress.append)
        return result, self._worker.merged(progress)
