"""Tasks come back in order, once each, whatever becomes of the workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from draftrec.errors import DraftrecError, Interrupted
from draftrec.jobs.ray import ActorPool, Share
from tests.jobs.ray.chores import Chore

pytestmark = pytest.mark.slow

Task = tuple[float, str]


class Workers:
    """Workers with what they said."""

    def __init__(
        self, share: Share, folder: Path, workers: int = 2, threads: int | None = None, **chore: Any
    ) -> None:
        self.notes: list[str] = []
        self.taken = 0
        # Threads are set in PyTorch, which takes each actor seconds to import.
        share = replace(share, threads=threads)
        self.pool = ActorPool(Chore(folder, **chore), workers, share, self.notes.append)

    def tasks(self, tasks: list[Task]) -> Iterator[Task]:
        for task in tasks:
            self.taken += 1
            yield task

    def results(self, tasks: list[Task], window: int = 4) -> list[str]:
        return [what for _, what in self.pool.results(self.tasks(tasks), window)]


@pytest.fixture
def pool_of(share: Share, tmp_path: Path) -> Iterator[Any]:
    made: list[Workers] = []

    def make(**options: Any) -> Workers:
        made.append(Workers(share, tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        one.pool.close()


def test_results_have_the_order_of_the_tasks_whoever_is_fast(pool_of: Any) -> None:
    it = pool_of(threads=1)
    assert it.pool.facts() == "same"
    tasks = [
        (0.0, "meet 2"),
        (0.0, "meet 2"),
        *((0.3 if i % 3 else 0.0, f"task {i}") for i in range(8)),
    ]
    found = list(it.pool.results(iter(tasks), window=4))
    assert [what for _, what in found] == [what for _, what in tasks]
    assert len({pid for pid, _ in found}) == 2
    assert it.results([]) == []
    assert it.results([(0.0, "again")]) == ["again"]
    assert it.notes == []


@pytest.mark.parametrize("window", [1, 3])
def test_the_work_runs_ahead_of_the_results_by_the_window_and_no_more(
    pool_of: Any, window: int
) -> None:
    it = pool_of(workers=3)
    it.results([(0.0, "meet 3")] * 3)
    it.taken, ahead = 0, []
    results = it.pool.results(it.tasks([(0.0, str(i)) for i in range(8)]), window)
    for done, _ in enumerate(results):
        ahead.append(it.taken - done)
    assert len(ahead) == 8
    assert max(ahead) == window


@pytest.mark.parametrize("what", ["die once", "break once"])
def test_a_lost_workers_task_is_done_by_another(pool_of: Any, what: str) -> None:
    it = pool_of()
    tasks = [(0.0, "first"), (0.1, what), *((0.05, f"task {i}") for i in range(6))]
    assert it.results(tasks) == [t for _, t in tasks]
    assert len([n for n in it.notes if "was lost" in n]) == 1


@pytest.mark.parametrize(("what", "said"), [("die", "ActorDied"), ("break", "a device error")])
def test_a_task_that_ends_every_worker_is_given_up(pool_of: Any, what: str, said: str) -> None:
    it = pool_of()
    with pytest.raises(DraftrecError, match=f"ended 4 workers.*{said}") as caught:
        it.results([(0.0, "first"), (0.0, what)])
    assert "\n" not in str(caught.value)


def test_a_lost_node_takes_its_idle_workers_and_no_shard(pool_of: Any) -> None:
    """Five idle workers die at once, more than the times that a task may end its worker."""
    it = pool_of(workers=5)
    met = list(it.pool.results(iter([(0.0, "meet 5")] * 5), 5))
    pids = {pid for pid, _ in met}
    assert len(pids) == 5
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert it.results([(0.0, "first"), (0.0, "second")]) == ["first", "second"]
    assert [n for n in it.notes if "was lost" in n]


def test_what_a_worker_refuses_is_said_as_it_is(pool_of: Any) -> None:
    with pytest.raises(DraftrecError, match=r"^this is refused$"):
        pool_of().results([(0.0, "refuse")])
    with pytest.raises(DraftrecError, match=r"^no such model$"):
        pool_of(fails="refuse").pool.facts()


def test_a_worker_that_dies_at_its_start_starts_again(pool_of: Any) -> None:
    it = pool_of(fails="die once")
    assert it.results([(0.2, str(i)) for i in range(4)]) == ["0", "1", "2", "3"]
    assert len([n for n in it.notes if "was lost" in n]) == 1


def test_workers_that_cannot_start_says_so(pool_of: Any) -> None:
    it = pool_of(workers=1, fails="die")
    with pytest.raises(DraftrecError, match="no worker is left"):
        it.pool.facts()
    assert "cannot start" in it.notes[-1]


def test_workers_with_different_models_are_refused(pool_of: Any) -> None:
    it = pool_of(fails="differ")
    with pytest.raises(DraftrecError, match="another model"):
        it.results([(0.2, str(i)) for i in range(20)])


def test_halted_workers_stop_at_once(pool_of: Any) -> None:
    it = pool_of()
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        list(it.pool.results(iter([(60.0, "long")]), 4, lambda: next(asked)))
