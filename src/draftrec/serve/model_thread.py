"""The thread that owns a model: questions of many clients enter its batch pass by pass.

Only this thread touches the model, so there is nothing to lock but the queue. Between two passes
it lets go of whoever has hung up, answers those whose deadline is over with what there is, lets
waiting questions into free places, and changes what it works with.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch

from draftrec.errors import DraftrecError

Question = TypeVar("Question")
Answer = TypeVar("Answer")

_WINDOW = 30.0


class QueueFullError(Exception):
    """Too many wait already; `retry_after` seconds from now there should be room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests wait; try again in {retry_after} s")
        self.retry_after = retry_after


class WorkError(Exception):
    """The work failed on a question, or its thread is not there to take it."""


@dataclass(eq=False, slots=True)
class Ticket(Generic[Question, Answer]):
    """One question and the place for its answer.

    `deadline`: of `time.monotonic()`, None for someone who waits as long as it takes. Whoever
    asked says that nobody waits any more by cancelling `future`. `admitted`: when it left the
    queue; `passes`: forward passes it took part in.
    """

    question: Question
    deadline: float | None = None
    future: Future[Answer] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    admitted: float | None = None
    passes: int = 0

    @property
    def gone(self) -> bool:
        """Does nobody wait for the answer any more?"""
        return self.future.cancelled()

    @property
    def queue_seconds(self) -> float:
        """How long it waited, or has waited so far."""
        return (time.monotonic() if self.admitted is None else self.admitted) - self.arrived

    def late(self, now: float) -> bool:
        """Is its deadline over?"""
        return self.deadline is not None and now >= self.deadline

    def claim(self) -> bool:
        """Say once that an answer is being made: `future` cannot be cancelled from here on. False
        where nobody waits for one any more."""
        return self.future.set_running_or_notify_cancel()

    def settle(self, answer: Answer) -> None:
        """Hand the answer over, unless nobody waits for it any more."""
        try:
            self.future.set_result(answer)
        except InvalidStateError:
            return  # cancelled in this very moment

    def fail(self, error: Exception) -> None:
        """Hand an error over instead."""
        try:
            self.future.set_exception(error)
        except InvalidStateError:
            return


class Throughput:
    """How many questions were answered lately, for an honest Retry-After."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=1024)

    def count(self, answers: int, now: float | None = None) -> None:
        """So many more were answered."""
        self._times.extend([time.monotonic() if now is None else now] * answers)

    def seconds_for(self, questions: int, now: float | None = None) -> int:
        """Whole seconds in which so many should be answered: 1 to 60, 1 where nothing is known."""
        now = time.monotonic() if now is None else now
        # A copy, as the model's thread goes on counting while that of a client looks.
        recent = [t for t in self._times.copy() if t > now - _WINDOW]
        if len(recent) < 2 or now <= recent[0]:
            return 1
        rate = len(recent) / (now - recent[0])
        return min(60, max(1, round(questions / rate + 0.5)))


#: Engines measure what passes cost while they prepare; another one at work would be measured too.
_PREPARING = threading.Lock()

Q = TypeVar("Q", contravariant=True)
A = TypeVar("A", covariant=True)


class Work(Protocol[Q, A]):
    """A running batch. Questions are known by numbers that are never used twice."""

    def prepare(self) -> None:
        """Whatever has to be ready before the first question."""
        ...

    def room(self) -> int:
        """Questions that could be let in now."""
        ...

    def begin(self, number: int, question: Q) -> A | None:
        """Let a question in; the answer, if it needs no pass. Raises DraftrecError for one that
        cannot be answered."""
        ...

    def turn(self) -> Mapping[int, A | DraftrecError]:
        """One pass; what it finished, and what failed alone."""
        ...

    def stop(self, number: int) -> None:
        """Forget a running question."""
        ...

    def cut(self, number: int) -> A:
        """Forget a running question, and answer it with what there is."""
        ...

    def late(self, question: Q) -> A:
        """The answer to a question that was never let in. Raises DraftrecError as `begin` does."""
        ...

    def may_change(self) -> bool:
        """Can something else be worked with at once, or has what is running to finish first?"""
        ...

    def change(self, new: Any) -> None:
        """Work with something else from here on."""
        ...

    def reset(self) -> None:
        """Begin anew with nothing running, after an error."""
        ...


class ModelThread(Generic[Question, Answer]):
    """Runs a `Work`, with at most `most` questions waiting.

    `on_queue` is told how many wait, `on_error` of errors that nobody expected, `on_idle` that
    nothing runs or waits. `threads`: torch's,
    for this thread (None: as many as it likes).
    """

    def __init__(
        self,
        work: Work[Question, Answer],
        most: int,
        *,
        threads: int | None = None,
        on_queue: Callable[[int], None] = lambda waiting: None,
        on_error: Callable[[Exception], None] = lambda error: None,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self.work, self.most, self.threads = work, most, threads
        self.ready = threading.Event()
        self.broken: Exception | None = None
        self._on_queue, self._on_error, self._on_idle = on_queue, on_error, on_idle
        self._changed = threading.Condition()
        self._waiting: deque[Ticket[Question, Answer]] = deque()
        self._running: dict[int, Ticket[Question, Answer]] = {}
        self._next: tuple[Any, Future[None]] | None = None
        self._number = 0
        self._stopping = False
        self._speed = Throughput()
        self._thread = threading.Thread(target=self._run, name=type(work).__name__, daemon=True)

    def start(self) -> None:
        """Begin to prepare; `ready` is set when questions can be answered."""
        self._thread.start()

    def submit(self, tickets: Seq[Ticket[Question, Answer]]) -> None:
        """Let all of the tickets wait, or none.

        Raises QueueFullError where there is no room, WorkError for a thread that has stopped.
        """
        with self._changed:
            if self._stopping or self.broken:
                raise WorkError("the engine has stopped")
            if len(self._waiting) + len(tickets) > self.most:
                raise QueueFullError(self._speed.seconds_for(len(self._waiting)))
            self._waiting.extend(tickets)
            self._changed.notify()

    def change(self, new: Any) -> Future[None]:
        """Work with something else as soon as nothing depends on the old; done when that is so."""
        done: Future[None] = Future()
        with self._changed:
            if self._stopping or self.broken:
                raise WorkError("the engine has stopped")
            if self._next is not None:
                raise WorkError("another change is under way")
            self._next = new, done
            self._changed.notify()
        return done

    def stop(self, seconds: float = 10.0) -> None:
        """End the thread after the pass under way; whoever still waits gets a WorkError."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            if self.threads:
                torch.set_num_threads(self.threads)  # a setting of each thread
            with _PREPARING:
                self.work.prepare()
            self.ready.set()
            while self._something_to_do():
                self._safely(self._between_passes)
                if self._running:
                    self._safely(self._pass)
        except Exception as error:  # noqa: BLE001 - the main thread has to hear of it
            self.broken = error
        finally:
            self.ready.clear()
            self._give_up()

    def _something_to_do(self) -> bool:
        """Wait for work; False when it is time to end."""
        with self._changed:
            while not (self._stopping or self._waiting or self._running or self._next):
                self._on_idle()
                self._changed.wait()
            return not self._stopping

    def _between_passes(self) -> None:
        self._let_go()
        self._change()
        if self._next is None:
            self._let_in()
        self._on_queue(len(self._waiting))

    def _let_go(self) -> None:
        """Those who hung up, and those who cannot wait any longer."""
        now = time.monotonic()
        for number, ticket in list(self._running.items()):
            if not (ticket.gone or ticket.late(now)):
                continue
            del self._running[number]
            if ticket.claim():  # else whoever asked has an answer already, and it is counted
                self._answer(ticket, partial(self.work.cut, number))
            else:
                self.work.stop(number)
        with self._changed:
            ended = [t for t in self._waiting if t.gone or t.late(now)]
            if ended:
                self._waiting = deque(t for t in self._waiting if not (t.gone or t.late(now)))
        for ticket in ended:
            if ticket.claim():
                self._answer(ticket, partial(self.work.late, ticket.question))

    def _let_in(self) -> None:
        while self.work.room() > 0:
            with self._changed:
                if not self._waiting:
                    return
                ticket = self._waiting.popleft()
            ticket.admitted = time.monotonic()
            self._answer(ticket, partial(self._begin, ticket))

    def _begin(self, ticket: Ticket[Question, Answer]) -> Answer | None:
        self._number += 1
        answer = self.work.begin(self._number, ticket.question)
        if answer is None:
            self._running[self._number] = ticket
        return answer

    def _answer(self, ticket: Ticket[Question, Answer], ask: Callable[[], Answer | None]) -> None:
        """Hand over what `ask` says. What is wrong with one question is no concern of others."""
        try:
            answer = ask()
        except DraftrecError as error:
            ticket.fail(error)
        except Exception as error:  # noqa: BLE001 - the thread must outlive any question
            self._on_error(error)
            ticket.fail(WorkError("the engine failed on this question"))
        else:
            if answer is not None:
                ticket.settle(answer)
                self._speed.count(1)

    def _pass(self) -> None:
        finished = self.work.turn()
        for ticket in self._running.values():
            ticket.passes += 1
        for number, answer in finished.items():
            if ticket := self._running.pop(number, None):
                if isinstance(answer, DraftrecError):
                    ticket.fail(answer)
                else:
                    ticket.settle(answer)
        self._speed.count(len(finished))

    def _change(self) -> None:
        if self._next is None:
            return
        new, done = self._next
        if self._running and not done.cancelled() and not self.work.may_change():
            return
        try:
            if done.set_running_or_notify_cancel():  # or nobody wants it any more
                self.work.change(new)
                done.set_result(None)
        except Exception as error:  # noqa: BLE001 - whoever asked for it has to hear of it
            done.set_exception(error)
        finally:
            self._next = None

    def _safely(self, part: Callable[[], None]) -> None:
        """An error in a pass costs those who take part in it, not the service."""
        try:
            part()
        except Exception as error:  # noqa: BLE001 - the thread must outlive any pass
            self._on_error(error)
            for ticket in self._running.values():
                ticket.fail(WorkError("the engine failed; the others of this pass failed too"))
            self._running.clear()
            self.work.reset()

    def _give_up(self) -> None:
        with self._changed:
            self._stopping = True
            left = [*self._running.values(), *self._waiting]
            self._running.clear()
            self._waiting.clear()
            waiting_change, self._next = self._next, None
        for ticket in left:
            ticket.fail(WorkError("the engine has stopped"))
        if waiting_change and waiting_change[1].set_running_or_notify_cancel():
            waiting_change[1].set_exception(WorkError("the engine has stopped"))
