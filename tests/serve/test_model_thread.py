"""The engine thread, around work whose passes a test controls."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from draftrec.errors import DraftrecError
from draftrec.serve.http.api import _answer
from draftrec.serve.model_thread import (
    ModelThread,
    QueueFullError,
    Throughput,
    Ticket,
    WorkError,
)
from tests.waiting import until

WAIT = 60


class Counting:
    """Every question takes as many passes as it says; `gate` lets the passes happen."""

    def __init__(self, slots: int = 2) -> None:
        self.slots, self.gate, self.source = slots, threading.Semaphore(0), "old"
        self.left: dict[int, tuple[int, str]] = {}
        self.stopped: list[int] = []
        self.resets = 0
        self.live = False
        self.making: Callable[[], object] = bool
        self.fail: Exception | None = None

    def prepare(self) -> None:
        if self.fail:
            raise self.fail

    def room(self) -> int:
        return self.slots - len(self.left)

    def begin(self, number: int, question: int) -> str | None:
        if question < 0:
            raise DraftrecError("less than nothing")
        if question > 100:
            raise KeyError("a bug")
        if question == 0:
            return "at once"
        self.left[number] = question, self.source
        return None

    def turn(self) -> dict[int, str]:
        assert self.gate.acquire(timeout=WAIT)
        if self.fail:
            error, self.fail = self.fail, None
            raise error
        self.left = {n: (passes - 1, source) for n, (passes, source) in self.left.items()}
        done = {n: source for n, (passes, source) in self.left.items() if not passes}
        for number in done:
            del self.left[number]
        return done

    def stop(self, number: int) -> None:
        self.stopped.append(number)
        del self.left[number]

    def cut(self, number: int) -> str:
        self.making()
        return f"cut with {self.left.pop(number)[0]} to go"

    def late(self, question: int) -> str:
        self.making()
        return "late"

    def may_change(self) -> bool:
        return self.live

    def change(self, new: Any) -> None:
        if new is None:
            raise ValueError("nothing to change to")
        self.source = new

    def reset(self) -> None:
        self.resets += 1
        self.left.clear()


@pytest.fixture
def work() -> Counting:
    return Counting()


@pytest.fixture
def engine(work: Counting) -> Iterator[ModelThread[int, str]]:
    made = ModelThread(work, 4)
    made.start()
    assert made.ready.wait(WAIT)
    yield made
    work.gate.release(1000)
    made.stop()


def ask(engine: ModelThread[int, str], *questions: int) -> list[Ticket[int, str]]:
    tickets = [Ticket[int, str](q) for q in questions]
    engine.submit(tickets)
    return tickets


def test_questions_enter_while_others_run(work: Counting, engine: ModelThread[int, str]) -> None:
    (long,) = ask(engine, 3)
    until(lambda: work.left)
    (short,) = ask(engine, 1)
    work.gate.release(1)  # the pass that is under way knows of `long` only
    until(lambda: len(work.left) == 2)
    work.gate.release(1)
    assert short.future.result(WAIT) == "old"
    assert not long.future.done()
    work.gate.release(1)
    assert long.future.result(WAIT) == "old"
    assert (long.passes, short.passes) == (3, 1)
    assert ask(engine, 0)[0].future.result(WAIT) == "at once"


def test_the_queue_is_bounded_and_takes_all_or_nothing(
    work: Counting, engine: ModelThread[int, str]
) -> None:
    running = ask(engine, 1, 1)
    until(lambda: len(work.left) == 2)
    waiting = ask(engine, 1, 1, 1)
    with pytest.raises(QueueFullError) as caught:
        ask(engine, 1, 1)
    assert caught.value.retry_after >= 1
    waiting += ask(engine, 1)
    work.gate.release(3)
    assert {t.future.result(WAIT) for t in running + waiting} == {"old"}


def test_what_is_wrong_with_one_question_is_its_own_matter(
    work: Counting, engine: ModelThread[int, str]
) -> None:
    bad, bug, good = ask(engine, -1, 101, 1)
    work.gate.release(1)
    with pytest.raises(DraftrecError, match="less than nothing"):
        bad.future.result(WAIT)
    with pytest.raises(WorkError):
        bug.future.result(WAIT)
    assert good.future.result(WAIT) == "old"
    assert work.resets == 0


def test_a_failed_pass_costs_those_in_it_only(
    work: Counting, engine: ModelThread[int, str]
) -> None:
    tickets = ask(engine, 5, 5)
    until(lambda: len(work.left) == 2)
    work.fail = RuntimeError("out of memory")
    (later,) = ask(engine, 1)
    work.gate.release(2)
    for ticket in tickets:
        with pytest.raises(WorkError, match="failed"):
            ticket.future.result(WAIT)
    assert later.future.result(WAIT) == "old"
    assert work.resets == 1


def test_deadlines_cut_what_runs_and_what_waits(
    work: Counting, engine: ModelThread[int, str]
) -> None:
    ask(engine, 9)
    cut = Ticket[int, str](9, deadline=time.monotonic() + 0.05)
    engine.submit([cut])
    work.gate.release(1)
    until(lambda: len(work.left) == 2)
    late = Ticket[int, str](9, deadline=time.monotonic())
    engine.submit([late])
    time.sleep(0.06)
    work.gate.release(1)
    assert cut.future.result(WAIT).startswith("cut with")
    assert late.future.result(WAIT) == "late"


@pytest.mark.parametrize("running", [False, True])
def test_an_answer_that_is_being_made_is_not_made_twice(
    work: Counting, engine: ModelThread[int, str], *, running: bool
) -> None:
    """Whoever asked finds, at the deadline, that the thread is at it already."""
    cancelled = []
    if not running:
        ask(engine, 9, 9)
        until(lambda: len(work.left) == 2)
    late = Ticket[int, str](9, deadline=time.monotonic() + (60 if running else 0))
    work.making = lambda: cancelled.append(late.future.cancel())
    engine.submit([late])
    if running:
        until(lambda: work.left)
        late.deadline = time.monotonic()
    work.gate.release(1)
    assert late.future.result(WAIT) == ("cut with 8 to go" if running else "late")
    assert cancelled == [False]


def test_who_is_late_waits_for_an_answer_that_is_being_made() -> None:
    ticket = Ticket[int, str](9, deadline=time.monotonic())
    assert ticket.claim()

    async def scenario() -> str:
        asked = asyncio.create_task(_answer(ticket, lambda question: "another", ""))
        await asyncio.sleep(0.01)
        ticket.settle("the thread's")
        return await asked

    assert asyncio.run(scenario()) == "the thread's"


def test_those_who_hang_up_leave_the_batch(work: Counting, engine: ModelThread[int, str]) -> None:
    first, second = ask(engine, 50, 50)
    until(lambda: len(work.left) == 2)
    (waiting,) = ask(engine, 50)
    assert first.future.cancel()
    assert waiting.future.cancel()
    work.gate.release(1)
    until(lambda: work.stopped)
    assert len(work.left) == 1
    assert not second.future.done()
    with pytest.raises(CancelledError):
        first.future.result(WAIT)


@pytest.mark.parametrize("live", [False, True])
def test_a_change_keeps_every_question(
    work: Counting, engine: ModelThread[int, str], *, live: bool
) -> None:
    work.live = live
    (old,) = ask(engine, 3)
    until(lambda: work.left)
    done = engine.change("new")
    (new,) = ask(engine, 1)
    with pytest.raises(WorkError, match="another change"):
        engine.change("newer")
    work.gate.release(2)
    if live:
        assert new.future.result(WAIT) == "new"
        assert not old.future.done(), "it goes on with what it began with"
    work.gate.release(2)
    assert old.future.result(WAIT) == "old"
    assert new.future.result(WAIT) == "new"
    assert done.result(WAIT) is None
    with pytest.raises(ValueError, match="nothing to change to"):
        engine.change(None).result(WAIT)
    assert engine.ready.is_set()


def test_a_change_that_nobody_wants_any_more_costs_no_question(
    work: Counting, engine: ModelThread[int, str]
) -> None:
    (running,) = ask(engine, 2)
    until(lambda: work.left)
    assert engine.change("new").cancel()
    work.gate.release(1)
    (later,) = ask(engine, 1)
    work.gate.release(2)
    assert [t.future.result(WAIT) for t in (running, later)] == ["old", "old"]
    assert work.resets == 0


def test_the_end_is_told_to_whoever_waits(work: Counting, engine: ModelThread[int, str]) -> None:
    running, waiting = ask(engine, 9, 9), ask(engine, 9)
    until(lambda: len(work.left) == 2)
    work.gate.release(1)
    engine.stop()
    for ticket in running + waiting:
        with pytest.raises(WorkError, match="stopped"):
            ticket.future.result(WAIT)
    with pytest.raises(WorkError, match="stopped"):
        ask(engine, 1)
    with pytest.raises(WorkError, match="stopped"):
        engine.change("new")


def test_work_that_cannot_be_prepared_is_known(work: Counting) -> None:
    work.fail = DraftrecError("no memory")
    engine = ModelThread(work, 4)
    engine.start()
    until(lambda: engine.broken)
    assert not engine.ready.is_set()
    with pytest.raises(WorkError, match="stopped"):
        ask(engine, 1)


def test_retry_after_follows_the_recent_rate() -> None:
    speed = Throughput()
    assert speed.seconds_for(100, 50.0) == 1, "nothing is known"
    for i in range(100):
        speed.count(1, 40.0 + i / 10)  # ten a second
    assert speed.seconds_for(45, 50.0) == 5
    assert speed.seconds_for(10_000, 50.0) == 60
    assert speed.seconds_for(45, 1000.0) == 1, "too long ago to tell"


def test_who_is_refused_may_ask_while_answers_are_counted() -> None:
    speed, end = Throughput(), time.monotonic() + 0.5

    def count() -> None:
        while time.monotonic() < end:
            speed.count(1)

    counting = threading.Thread(target=count)
    counting.start()
    try:
        while time.monotonic() < end:
            assert 1 <= speed.seconds_for(10) <= 60
    finally:
        counting.join()
