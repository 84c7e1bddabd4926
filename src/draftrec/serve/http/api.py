"""The routes: what is asked, what is checked, who answers; deadlines, full queues, and clients that
hang up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from draftrec.errors import DraftrecError
from draftrec.items.ids import Id, Ids, as_text, ids_array
from draftrec.jobs.knowledge.prompts import unknown_token
from draftrec.jobs.recommend.catalogue import Query
from draftrec.models.prompting import PromptForm
from draftrec.serve.http.errors import ApiError, ClientGoneError, retry
from draftrec.serve.http.schemas import (
    ErrorAnswer,
    KnowledgeAnswer,
    KnowledgeRequest,
    KnowledgeText,
    RecommendAnswer,
    RecommendedItem,
    RecommendRequest,
    ReloadAnswer,
    Status,
)
from draftrec.serve.logs import RequestNote
from draftrec.serve.model_thread import (
    Answer,
    ModelThread,
    Question,
    QueueFullError,
    Ticket,
    WorkError,
)
from draftrec.serve.service import Service
from draftrec.serve.settings import LimitSettings
from draftrec.serve.work import KnowledgeWork, RecommendWork, Wanted


def deadline_of(milliseconds: int | None) -> float | None:
    """The moment, of `time.monotonic()`, that lies so far ahead."""
    return None if milliseconds is None else time.monotonic() + milliseconds / 1e3


async def ask(
    request: Request,
    thread: ModelThread[Question, Answer],
    tickets: Seq[Ticket[Question, Answer]],
    late: Callable[[Question], Answer] | None = None,
) -> list[Answer]:
    """The answers to the tickets' questions, in their order.

    The thread looks at deadlines between two passes. Where `late` has an answer that needs no
    model, it is given at the very moment instead.

    Raises ApiError where the queue is full or the thread not there, ClientGoneError when the client
    hangs up first, whose questions then leave the batch, and DraftrecError for a question that
    cannot be answered.
    """
    note: RequestNote = request.state.note
    submit(thread, tickets)
    try:
        answers = await _answers(request, tickets, late)
    except WorkError as error:
        raise failed(error) from error
    finally:
        for ticket in tickets:
            ticket.future.cancel()  # of no effect on one that is answered
    note.queue_seconds = max(t.queue_seconds for t in tickets)
    note.passes = max(t.passes for t in tickets)
    return answers


def submit(thread: ModelThread[Question, Answer], tickets: Seq[Ticket[Question, Answer]]) -> None:
    """Let the tickets wait for the thread. Raises ApiError where they cannot."""
    if not thread.ready.is_set():
        raise ApiError(503, "starting", "the models are not ready yet; try again soon", retry(1))
    try:
        thread.submit(tickets)
    except QueueFullError as error:
        raise ApiError(429, "queue_full", str(error), retry(error.retry_after)) from error
    except WorkError as error:
        raise failed(error) from error


def failed(error: WorkError | DraftrecError) -> ApiError:
    """What a client is told of a question that failed."""
    if isinstance(error, WorkError):
        return ApiError(503, "engine_failed", f"{error}; try again", retry(1))
    return ApiError(422, "unusable", " ".join(str(error).split()))


async def _answers(
    request: Request,
    tickets: Seq[Ticket[Question, Answer]],
    late: Callable[[Question], Answer] | None,
) -> list[Answer]:
    """The thread's answers, or those of `late`, whichever come first."""
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


_USUAL_K = 10
#: More than tokens have of any text but long runs of one character.
_TOKEN_CHARS = 32
_MEANINGS = {
    400: "The body is not JSON.",
    401: "No API key, or a wrong one.",
    403: "The key may not do this.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    409: "Another reload is under way, or the new files cannot be used.",
    413: "The body is too large.",
    422: "The request cannot be answered; the message says why.",
    429: "Too many requests; Retry-After says when to come back.",
    503: "Starting, draining, or an engine has failed.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Of a route, for the OpenAPI document."""
    return {s: {"model": ErrorAnswer, "description": _MEANINGS[s]} for s in statuses}


_ASKING = errors(400, 401, 408, 413, 422, 429, 503)


def recommend_router(
    service: Service, thread: ModelThread[Query, Any], work: RecommendWork
) -> APIRouter:
    """`POST /v1/recommend`."""
    router, limits = APIRouter(tags=["recommend"]), service.settings.limits

    @router.post("/v1/recommend", response_model=RecommendAnswer, responses=_ASKING)
    async def recommend(body: RecommendRequest, request: Request) -> RecommendAnswer:
        """The k best items for a history: those that `draftrec genrec recommend -k K` gives."""
        recommender = work.recommender
        _check_lists(body, limits)
        query = _query(body, recommender.config.k)
        try:
            recommender.catalogue.sids.places(query.history)  # before it waits for its turn
        except DraftrecError as error:
            raise ApiError(422, "unknown_item", str(error)) from error
        ticket = Ticket[Query, Any](query, deadline_of(body.deadline_ms or limits.deadline_ms))
        found = (await ask(request, thread, [ticket], work.late))[0]
        answer = found.answer
        ids = _as_asked(answer.items, body, spelt=recommender.catalogue.sids.spelt)
        items = [
            RecommendedItem(item=item, score=score, sid=sid)
            for item, score, sid in zip(ids, answer.scores.tolist(), answer.sids, strict=True)
        ]
        request.state.note.partial = found.partial
        whole = RecommendAnswer(items=items, partial=found.partial)
        request.state.note.contents = {"asked": body.model_dump(), "told": whole.model_dump()}
        return whole

    return router


def knowledge_router(
    service: Service, thread: ModelThread[Wanted, Any], work: KnowledgeWork
) -> APIRouter:
    """`POST /v1/knowledge`."""
    router, limits = APIRouter(tags=["knowledge"]), service.settings.limits

    @router.post("/v1/knowledge", response_model=KnowledgeAnswer, responses=_ASKING)
    async def knowledge(body: KnowledgeRequest, request: Request) -> KnowledgeAnswer:
        """A text for each record: that which `draftrec generate` writes of its prompt."""
        deadline = deadline_of(body.deadline_ms or limits.deadline_ms)
        if len(body.records) > limits.records:
            raise refused(f"records: at most {limits.records} at once")
        prompts = [record.prompt for record in body.records]
        _check_prompts(body, limits)
        form = PromptForm(service.chat, special_tokens="split")
        encode = partial(work.generator.encode, prompts, form=form)
        encoded = await asyncio.get_running_loop().run_in_executor(service.tokenizing, encode)
        tickets: list[Ticket[Wanted, Any]] = []
        for record, ids in zip(body.records, encoded, strict=True):
            if not 0 < len(ids) <= work.longest:
                raise refused(
                    f"the prompt of {record.entity_id!r} has {len(ids)} tokens; 1 to "
                    f"{work.longest} are possible"
                )
            if reason := unknown_token(ids, work.generator.vocabulary):
                raise refused(f"{record.entity_id!r}: {reason}")
            tickets.append(Ticket(Wanted(record.entity_id, ids, record.group), deadline))
        found = await ask(request, thread, tickets)
        texts = [
            KnowledgeText(entity_id=t.entity_id, text=t.text, finish_reason=t.finish_reason)
            for t in found
        ]
        whole = KnowledgeAnswer(texts=texts)
        request.state.note.partial = any(t.finish_reason == "deadline" for t in texts)
        request.state.note.contents = {"asked": body.model_dump(), "told": whole.model_dump()}
        return whole

    return router


def admin_router(service: Service) -> APIRouter:
    """`POST /admin/reload`, for keys that may."""
    router = APIRouter(tags=["admin"])

    @router.post(
        "/admin/reload",
        response_model=ReloadAnswer,
        response_model_exclude_none=True,
        responses=errors(401, 403, 409, 429, 503),
    )
    async def reload(request: Request) -> ReloadAnswer:
        """Read the catalogue and the pool again; running requests are answered from the old."""
        key = getattr(request.state, "key", None)
        if key is None or not key.admin:
            raise ApiError(
                403,
                "forbidden",
                "only a key with `admin: true` in the settings may reload; send SIGHUP instead",
            )
        return ReloadAnswer(**await service.reload())

    return router


def health_router(service: Service) -> APIRouter:
    """`GET /healthz`, `/readyz` and `/metrics`."""
    router = APIRouter(tags=["health"])

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", response_model=Status, responses=errors(503))
    async def healthz() -> Status:
        """Is the process worth keeping? 503: an engine has failed for good."""
        if service.broken:
            raise ApiError(503, "broken", "an engine has failed; start the service again")
        return Status(status="ok")

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", response_model=Status, responses=errors(503))
    async def readyz() -> Status:
        """May requests be sent here? 503 while models are prepared, and from SIGTERM on."""
        if service.lifecycle.draining:
            raise ApiError(503, "draining", "the service is about to end")
        if not service.ready:
            raise ApiError(503, "starting", "the models are not ready yet", retry(1))
        return Status(status="ready")

    @router.head("/metrics", include_in_schema=False)
    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus' text format."""
        body, kind = service.metrics.render()
        return Response(body, headers={"content-type": kind})

    return router


def _query(body: RecommendRequest, most: int) -> Query:
    def items(ids: Seq[Id] | None) -> Any:
        return None if ids is None else ids_array(ids)

    k = min(_USUAL_K, most) if body.k is None else body.k
    if k > most:
        raise refused(f"k: this service gives at most {most} items")
    return Query(body.user, items(body.history), items(body.deny), items(body.allow), k)


def _as_asked(items: Ids, body: RecommendRequest, *, spelt: bool) -> list[Id]:
    """The items in the type of those that were asked with, else as the catalogue's file has them;
    texts that are no numbers stay what they are."""
    asked = body.history or body.allow or body.deny
    texts = isinstance(asked[0], str) if asked else spelt
    return (as_text(items) if texts else items).tolist()


def _check_lists(body: RecommendRequest, limits: LimitSettings) -> None:
    most = {"history": limits.history, "allow": limits.items, "deny": limits.items}
    for name, limit in most.items():
        if len(getattr(body, name) or ()) > limit:
            raise refused(f"{name}: at most {limit} items")


def _check_prompts(body: KnowledgeRequest, limits: LimitSettings) -> None:
    """Tokenising what is far too long would take as long as many requests do."""
    most = most_chars(limits)
    for record in body.records:
        if len(record.prompt) > most:
            raise refused(
                f"the prompt of {record.entity_id!r} has {len(record.prompt)} characters; at most "
                f"{most} are possible"
            )


def most_chars(limits: LimitSettings) -> int:
    """Of a prompt that is tokenised at all."""
    return limits.prompt_chars or _TOKEN_CHARS * limits.prompt_tokens


def refused(message: str, param: str | None = None) -> ApiError:
    """A request that asks for what cannot be; `param`: the field."""
    return ApiError(422, "invalid_request", message, param=param)
