"""From a request to an engine and back: deadlines, full queues, and clients that hang up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq

from fastapi import Request

from draftrec.serve.engine import EngineThread
from draftrec.serve.http.errors import ApiError, ClientGoneError, retry
from draftrec.serve.http.tickets import Answer, EngineError, Question, QueueFullError, Ticket
from draftrec.serve.logs import RequestNote


def deadline_of(milliseconds: int | None) -> float | None:
    """The moment, of `time.monotonic()`, that lies so far ahead."""
    return None if milliseconds is None else time.monotonic() + milliseconds / 1e3


async def ask(
    request: Request,
    engine: EngineThread[Question, Answer],
    tickets: Seq[Ticket[Question, Answer]],
    late: Callable[[Question], Answer] | None = None,
) -> list[Answer]:
    """The answers to the tickets' questions, in their order.

    The engine looks at deadlines between two passes. Where `late` has an answer that needs no
    engine, it is given at the very moment instead.

    Raises ApiError where the queue is full or the engine not there, ClientGoneError when the client
    hangs up first, whose questions then leave the batch, and DraftrecError for a question that
    cannot be answered.
    """
    note: RequestNote = request.state.note
    if not engine.ready.is_set():
        raise ApiError(503, "starting", "the models are not ready yet; try again soon", retry(1))
    try:
        engine.submit(tickets)
        answers = await _answers(request, tickets, late)
    except QueueFullError as error:
        raise ApiError(429, "queue_full", str(error), retry(error.retry_after)) from error
    except EngineError as error:
        raise ApiError(503, "engine_failed", f"{error}; try again", retry(1)) from error
    finally:
        for ticket in tickets:
            ticket.future.cancel()  # of no effect on one that is answered
    note.queue_seconds = max(t.queue_seconds for t in tickets)
    note.passes = max(t.passes for t in tickets)
    return answers


async def _answers(
    request: Request,
    tickets: Seq[Ticket[Question, Answer]],
    late: Callable[[Question], Answer] | None,
) -> list[Answer]:
    """The engine's answers, or those of `late`, whichever come first."""
    answers = asyncio.gather(*(asyncio.wrap_future(t.future) for t in tickets))
    gone = asyncio.create_task(_hung_up(request))
    deadline = tickets[0].deadline if late else None
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    try:
        await asyncio.wait({answers, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if answers.done():
            return list(answers.result())
        if gone.done() or late is None:
            raise ClientGoneError
        return [late(t.question) for t in tickets]
    finally:
        for waiting in (answers, gone):
            waiting.cancel()
        await asyncio.gather(answers, gone, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
