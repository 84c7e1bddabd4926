"""The routes: what is asked, what is checked, who answers; deadlines, full queues, and clients that
hang up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from draftrec.errors import DraftrecError
from draftrec.items.ids import Id, Ids, as_text
from draftrec.jobs.knowledge.prompts import unknown_token
from draftrec.jobs.recommend.catalogue import Query
from draftrec.jobs.recommend.recommender import ItemRecommender
from draftrec.models.prompting import PromptForm
from draftrec.serve.http.schemas import (
    ApiError,
    ClientGoneError,
    ErrorAnswer,
    KnowledgeAnswer,
    KnowledgeRequest,
    KnowledgeText,
    RecommendAnswer,
    RecommendBody,
    RecommendedItem,
    RecommendRequest,
    RecommendUsersAnswer,
    ReloadAnswer,
    Status,
    UserAnswer,
    rate_limited,
    retry,
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
from draftrec.serve.work import KnowledgeWork, Recommended, RecommendWork, Wanted


def deadline_of(milliseconds: int | None) -> float | None:
    """The moment, of `time.monotonic()`, that lies so far ahead."""
    return None if milliseconds is None else time.monotonic() + milliseconds / 1e3


async def ask(
    request: Request,
    thread: ModelThread[Question, Answer],
    tickets: Seq[Ticket[Question, Answer]],
    late: Callable[[Question], Answer] | None = None,
    places: Seq[str] = (),
) -> list[Answer]:
    """The answers to the tickets' questions, in their order.

    The thread looks at deadlines between two passes. Where `late` has an answer that needs no
    model, it is given at the very moment instead, to those whose deadline it is. `places`: of the
    questions in the request, which errors name.

    Raises ApiError where the queue is full or the thread not there, ClientGoneError when the client
    hangs up first, whose questions then leave the batch, and DraftrecError for a question that
    cannot be answered.
    """
    note: RequestNote = request.state.note
    submit(thread, tickets)
    try:
        answers = await _answers(request, tickets, late, places)
    except WorkError as error:
        raise failed(error) from error
    finally:
        for ticket in tickets:
            ticket.future.cancel()  # of no effect on one that is answered
    note.waits = [t.queue_seconds for t in tickets]
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
    places: Seq[str],
) -> list[Answer]:
    named = places or [""] * len(tickets)
    answers = asyncio.gather(
        *(_answer(t, late, place) for t, place in zip(tickets, named, strict=True))
    )
    gone = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({answers, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            raise ClientGoneError
        return list(answers.result())
    finally:
        for waiting in (answers, gone):
            waiting.cancel()
        await asyncio.gather(answers, gone, return_exceptions=True)


async def _answer(
    ticket: Ticket[Question, Answer], late: Callable[[Question], Answer] | None, place: str
) -> Answer:
    """The thread's answer, or that of `late`, whichever comes first: one of them is made."""
    waiting = asyncio.wrap_future(ticket.future)
    try:
        if late is None or ticket.deadline is None:
            return await waiting
        await asyncio.wait({waiting}, timeout=max(0.0, ticket.deadline - time.monotonic()))
        if not ticket.future.cancel():
            return await waiting  # it is there, or is being made
        return late(ticket.question)
    except DraftrecError as error:
        raise DraftrecError(f"{place}: {error}" if place else str(error)) from error


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
    415: "The body is packed.",
    422: "The request cannot be answered; the message says why.",
    429: "Too many requests; Retry-After says when to come back.",
    503: "Starting, draining, or an engine has failed.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Of a route, for the OpenAPI document."""
    return {s: {"model": ErrorAnswer, "description": _MEANINGS[s]} for s in statuses}


_ASKING = errors(400, 401, 408, 413, 415, 422, 429, 503)


def recommend_router(
    service: Service, thread: ModelThread[Query, Any], work: RecommendWork
) -> APIRouter:
    """`POST /v1/recommend`."""
    router, limits = APIRouter(tags=["recommend"]), service.settings.limits

    @router.post(
        "/v1/recommend",
        response_model=RecommendAnswer | RecommendUsersAnswer,
        response_model_exclude_none=True,
        responses=_ASKING,
    )
    async def recommend(body: RecommendBody, request: Request) -> Any:
        """The k best items for a history: those that `draftrec genrec recommend -k K` gives. With
        `users`, the same for each of them."""
        alone, note = isinstance(body, RecommendRequest), request.state.note
        users = [body] if isinstance(body, RecommendRequest) else body.each()
        places = [""] if alone else [f"users.{i}" for i in range(len(users))]
        _admit(len(users), service, note)
        recommender = work.recommender
        queries, skipped = _queries(users, places, recommender, limits)
        tickets = [
            Ticket[Query, Any](query, deadline_of(user.deadline_ms or limits.deadline_ms))
            for query, user in zip(queries, users, strict=True)
        ]
        found = await ask(request, thread, tickets, work.late, places)
        spelt = recommender.catalogue.sids.spelt
        answers = [_told(*of, spelt=spelt) for of in zip(found, users, skipped, strict=True)]
        note.partial = any(answer.partial for answer in answers)
        whole = answers[0] if alone else _of_users(users, answers)
        note.contents = {
            "asked": body.model_dump(),
            "told": whole.model_dump(exclude_none=True),
        }
        return whole

    return router


def _admit(users: int, service: Service, note: RequestNote) -> None:
    """Raise ApiError where so many users are too many at once, or too many for their caller's rate,
    of which the gate has taken one already."""
    note.users, rate = users, service.settings.rate
    most = service.settings.limits.most_users
    if users > most:
        raise refused(f"users: at most {most} at once")
    if users == 1 or rate is None or service.buckets is None:
        return
    if users > rate.burst:
        raise refused(f"users: at most {rate.burst} at once, as many as the rate allows")
    if seconds := service.buckets.take(note.caller, count=users, paid=1):
        raise rate_limited(seconds)


def _queries(
    users: Seq[RecommendRequest],
    places: Seq[str],
    recommender: ItemRecommender,
    limits: LimitSettings,
) -> tuple[list[Query], list[list[Id]]]:
    """What the users ask, and what was left out of their histories. Raises ApiError for the first
    impossible question, and otherwise names all unknown items of all histories."""
    queries: list[Query] = []
    skipped: list[list[Id]] = []
    unknown: list[str] = []
    for user, place in zip(users, places, strict=True):
        prefix = f"{place}." if place else ""
        _check_lists(user, limits, prefix)
        query = _query(user, recommender.config.k, prefix)
        missing = recommender.catalogue.sids.find(query.history) < 0
        absent = dict.fromkeys(query.history[missing].tolist())
        if absent and not user.skip_unknown:
            unknown.append(f"{place + ': ' if place else ''}{_unknown_items(list(absent))}")
        queries.append(replace(query, history=query.history[~missing]))
        skipped.append(list(absent))
    if unknown:
        raise ApiError(
            422,
            "unknown_item",
            f"{'; '.join(unknown)}; add what is missing to the semantic ids, leave it out, or "
            "say skip_unknown",
        )
    return queries, skipped


def _unknown_items(items: Seq[Id]) -> str:
    named = ", ".join(f"item {item}" for item in items)
    return f"{named} {'have' if len(items) > 1 else 'has'} no semantic id"


def _told(
    found: Recommended, user: RecommendRequest, skipped: list[Id], *, spelt: bool
) -> RecommendAnswer:
    answer = found.answer
    items = [
        RecommendedItem(item=item, score=score, sid=sid)
        for item, score, sid in zip(
            _as_asked(answer.items, user, spelt=spelt),
            answer.scores.tolist(),
            answer.sids,
            strict=True,
        )
    ]
    left_out = skipped if user.skip_unknown else None
    return RecommendAnswer(items=items, partial=found.partial, skipped=left_out)


def _of_users(users: Seq[RecommendRequest], answers: Seq[RecommendAnswer]) -> RecommendUsersAnswer:
    told = [
        UserAnswer(user=user.user if "user" in user.model_fields_set else None, **dict(answer))
        for user, answer in zip(users, answers, strict=True)
    ]
    return RecommendUsersAnswer(users=told)


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


def _query(body: RecommendRequest, most: int, prefix: str) -> Query:
    k = min(_USUAL_K, most) if body.k is None else body.k
    if k > most:
        raise refused(f"{prefix}k: this service gives at most {most} items")
    return Query(body.user, body.history, body.deny, body.allow, k)


def _as_asked(items: Ids, body: RecommendRequest, *, spelt: bool) -> list[Id]:
    """The items in the type of those that were asked with, else as the catalogue's file has them;
    texts that are no numbers stay what they are."""
    asked = body.history or body.allow or body.deny
    texts = isinstance(asked[0], str) if asked else spelt
    return (as_text(items) if texts else items).tolist()


def _check_lists(body: RecommendRequest, limits: LimitSettings, prefix: str) -> None:
    most = {"history": limits.history, "allow": limits.items, "deny": limits.items}
    for name, limit in most.items():
        if len(getattr(body, name) or ()) > limit:
            raise refused(f"{prefix}{name}: at most {limit} items")


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
