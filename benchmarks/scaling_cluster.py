"""Many workers and one driver: a discrete-event simulation of a job's shards.

The driver hands out shards in the order of the input, at most `window` from the first that is not
written yet: so far may texts be apart that are drafted from each other. It writes finished shards
in order, and hands none out while it writes. A node that fails takes its workers with it, their
shards are done again by others. When the driver fails, all shards that are not written are done
again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Cluster:
    """Sizes, and what goes wrong. `failures` per node and day; `down` seconds until its workers
    are back; `driver_down` seconds until the driver is; `slow` share of workers that take
    `slowness` times as long. `commit(k)`: seconds in which the driver writes shard `k`."""

    workers: int
    shards: int
    window: int
    per_node: int = 8
    failures: float = 0.0
    down: float = 0.0
    driver_down: float = 0.0
    slow: float = 0.0
    slowness: float = 1.0
    commit: Callable[[int], float] = lambda _: 0.0


@dataclass(slots=True)
class Outcome:
    """Seconds of the job, and of all its workers together: shards that were written, shards done
    in vain, waiting for a shard, being down. `failures` of nodes, `driver_failures`."""

    seconds: float = 0.0
    useful: float = 0.0
    lost: float = 0.0
    waiting: float = 0.0
    down: float = 0.0
    failures: int = 0
    driver_failures: int = 0


@dataclass(slots=True)
class _State:
    """`free`: idle workers and since when; `running`: shard and start by worker; `again`: shards
    to be done again; `done`: seconds that shards took which are not written. Events of a worker's
    or the driver's earlier `lives` are void; the driver is down while its number is odd."""

    free: dict[int, float] = field(default_factory=dict[int, float])
    running: dict[int, tuple[int, float]] = field(default_factory=dict[int, tuple[int, float]])
    again: list[int] = field(default_factory=list[int])
    done: dict[int, float] = field(default_factory=dict[int, float])
    next: int = 0
    written: int = 0
    writing: bool = False
    lives: dict[int, int] = field(default_factory=dict[int, int])
    driver_lives: int = 0


class Simulation:
    """One run. `draw(random)`: seconds that a usual worker takes for a shard."""

    def __init__(
        self, cluster: Cluster, draw: Callable[[np.random.Generator], float], seed: int
    ) -> None:
        self.cluster, self.draw = cluster, draw
        self.random = np.random.default_rng(seed)
        slow = self.random.random(cluster.workers) < cluster.slow
        self.pace = np.where(slow, cluster.slowness, 1.0).tolist()
        self.events: list[tuple[float, int, str, int, int]] = []
        self.count = 0
        self.now = 0.0
        self.state = _State(free=dict.fromkeys(range(cluster.workers), 0.0))
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """All shards written. Raises ValueError for a window without a shard."""
        if self.cluster.window < 1:
            raise ValueError("the window must hold a shard")
        for node in range(-(-self.cluster.workers // self.cluster.per_node)):
            self._await_failure("node", node)
        if self.cluster.driver_down:
            self._await_failure("driver", 0)
        handle = {
            "done": self._done, "written": self._written, "node": self._node_fails,
            "up": self._up, "driver": self._driver_fails, "driver up": self._driver_up,
        }  # fmt: skip
        self._dispatch()
        while self.state.written < self.cluster.shards:
            self.now, _, kind, who, life = heapq.heappop(self.events)
            handle[kind](who, life)
            if not self.state.writing:
                self._dispatch()
                self._write()
        self.outcome.seconds = self.now
        self.outcome.waiting += sum(self.now - since for since in self.state.free.values())
        return self.outcome

    def _dispatch(self) -> None:
        """Give shards to idle workers while the window has any: those to be done again first."""
        state, last = self.state, self.state.written + self.cluster.window
        while state.free and state.driver_lives % 2 == 0:
            if state.again:
                shard = heapq.heappop(state.again)
            elif state.next < min(last, self.cluster.shards):
                shard, state.next = state.next, state.next + 1
            else:
                return
            worker = next(iter(state.free))
            self.outcome.waiting += self.now - state.free.pop(worker)
            state.running[worker] = (shard, self.now)
            seconds = self.draw(self.random) * self.pace[worker]
            self._at(self.now + seconds, "done", worker, state.lives.get(worker, 0))

    def _done(self, worker: int, life: int) -> None:
        state = self.state
        if life != state.lives.get(worker, 0):
            return
        shard, start = state.running.pop(worker)
        state.free[worker] = self.now
        state.done[shard] = self.now - start

    def _write(self) -> None:
        """The driver writes the next shard in order, if it is there."""
        state = self.state
        if state.written in state.done:
            state.writing = True
            seconds = self.cluster.commit(state.written)
            self._at(self.now + seconds, "written", state.written, state.driver_lives)

    def _written(self, shard: int, life: int) -> None:
        state = self.state
        if life != state.driver_lives:
            return
        self.outcome.useful += state.done.pop(shard)
        state.written, state.writing = shard + 1, False

    def _node_fails(self, node: int, _life: int) -> None:
        first = node * self.cluster.per_node
        self.outcome.failures += 1
        for worker in range(first, min(first + self.cluster.per_node, self.cluster.workers)):
            self._drop(worker)
            self._at(self.now + self.cluster.down, "up", worker, self.state.lives[worker])
            self.outcome.down += self.cluster.down
        self._await_failure("node", node)

    def _drop(self, worker: int) -> None:
        """What the worker does is lost; it is neither free nor running."""
        state = self.state
        state.lives[worker] = state.lives.get(worker, 0) + 1
        if worker in state.free:
            self.outcome.waiting += self.now - state.free.pop(worker)
        if worker in state.running:
            shard, start = state.running.pop(worker)
            self.outcome.lost += self.now - start
            heapq.heappush(state.again, shard)

    def _up(self, worker: int, life: int) -> None:
        if life == self.state.lives.get(worker, 0):
            self.state.free[worker] = self.now

    def _driver_fails(self, _who: int, _life: int) -> None:
        state = self.state
        self.outcome.driver_failures += 1
        self.outcome.lost += sum(state.done.values())
        for worker in range(self.cluster.workers):
            self._drop(worker)
            self.outcome.down += self.cluster.driver_down
        state.done.clear()
        state.again.clear()
        state.next, state.writing = state.written, False
        state.driver_lives += 1
        self._at(self.now + self.cluster.driver_down, "driver up", 0, state.driver_lives)

    def _driver_up(self, _who: int, life: int) -> None:
        self.state.driver_lives = life + 1
        for worker in range(self.cluster.workers):
            self.state.lives[worker] = self.state.lives.get(worker, 0) + 1
            self.state.free[worker] = self.now
        self._await_failure("driver", 0)

    def _await_failure(self, kind: str, who: int) -> None:
        if self.cluster.failures:
            days = self.random.exponential(1 / self.cluster.failures)
            self._at(self.now + 86_400 * days, kind, who, 0)

    def _at(self, when: float, kind: str, who: int, life: int) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, kind, who, life))
