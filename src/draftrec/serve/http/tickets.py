"""Questions on their way through an engine, and what can go wrong with them."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")

_WINDOW = 30.0


class QueueFullError(Exception):
    """Too many wait already; `retry_after` seconds from now there should be room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests wait; try again in {retry_after} s")
        self.retry_after = retry_after


class EngineError(Exception):
    """The engine failed while it worked on a question, or is not there to take it."""


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
        recent = [t for t in self._times if t > now - _WINDOW]
        if len(recent) < 2 or now <= recent[0]:
            return 1
        rate = len(recent) / (now - recent[0])
        return min(60, max(1, round(questions / rate + 0.5)))
