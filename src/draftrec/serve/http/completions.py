"""OpenAI's routes, `/v1/models`, `/v1/completions` and `/v1/chat/completions`, and how a request is
read before it is begun.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from draftrec.core import IntArray, Wishes
from draftrec.core import Request as TextRequest
from draftrec.jobs.knowledge.generator import Generator
from draftrec.jobs.knowledge.prompts import key_of, samples_of, unknown_token
from draftrec.models.prompting import PromptForm
from draftrec.serve.http import api
from draftrec.serve.http.completion_answers import Events, Job, TokenTexts
from draftrec.serve.http.completion_schemas import (
    ChatAnswer,
    ChatRequest,
    CompletionAnswer,
    CompletionRequest,
    ModelCard,
    ModelList,
    Sampled,
)
from draftrec.serve.http.schemas import ApiError
from draftrec.serve.model_thread import ModelThread
from draftrec.serve.service import Service
from draftrec.serve.work import KnowledgeWork, Wanted, Written


def router(
    service: Service, thread: ModelThread[Wanted, Written], work: KnowledgeWork
) -> APIRouter:
    """All three routes."""
    found = APIRouter(tags=["openai"])
    texts = TokenTexts(work.generator.tokenizer)
    card = ModelCard(
        id=service.model_name,
        created=service.began,
        max_model_len=min(
            work.generator.context_length,
            work.longest + work.generator.config.batch.max_new_tokens,
        ),
    )

    @found.get("/v1/models", response_model=ModelList, responses=api.errors(401, 429, 503))
    async def models() -> ModelList:
        """What `model` may name."""
        return ModelList(data=[card])

    @found.get(
        "/v1/models/{name:path}", response_model=ModelCard, responses=api.errors(401, 404, 429, 503)
    )
    async def model(name: str) -> ModelCard:
        """One of them."""
        _check_model(name, card.id)
        return card

    async def answer(body: CompletionRequest | ChatRequest, request: Request) -> Any:
        _check_model(body.model, card.id)
        job = await _job(body, service, texts)
        if body.stream:
            api.submit(thread, job.tickets)
            return Events(job, request)
        return job.whole(await api.ask(request, thread, job.tickets), request)

    @found.post("/v1/completions", response_model=CompletionAnswer, responses=_ASKING)
    async def complete(body: CompletionRequest, request: Request) -> Any:
        """Texts that go on from prompts; with `stream`, as server-sent events."""
        return await answer(body, request)

    @found.post("/v1/chat/completions", response_model=ChatAnswer, responses=_ASKING)
    async def chat(body: ChatRequest, request: Request) -> Any:
        """What comes next in a conversation; with `stream`, as server-sent events."""
        return await answer(body, request)

    return found


_ASKING = api.errors(400, 401, 404, 408, 413, 415, 429, 503)


def _check_model(name: str | None, own: str) -> None:
    if name not in (None, own):
        raise ApiError(
            404, "model_not_found", f"there is no model {name!r} here; {own!r} is", param="model"
        )


async def _job(body: CompletionRequest | ChatRequest, service: Service, texts: TokenTexts) -> Job:
    """A request with all that is known before it is begun. Raises ApiError, or DraftrecError, for
    one that cannot be answered."""
    work, limits = service.writing, service.settings.limits
    assert work
    generator, warmth = work.generator, work.generator.config.accept.temperature
    deadline = api.deadline_of(body.draftrec.deadline_ms or limits.deadline_ms)
    _check_limits(body, service, warmth)

    def prepare() -> tuple[list[IntArray], Any]:
        return _encoded(body, service, generator), work.rules(body.settings(warmth))

    ids, rules = await asyncio.get_running_loop().run_in_executor(service.tokenizing, prepare)
    for given in ids:
        if not 0 < len(given) <= work.longest:
            raise api.refused(
                f"the prompt has {len(given)} tokens; 1 to {work.longest} are possible", "prompt"
            )
        if reason := unknown_token(given, generator.vocabulary):
            raise api.refused(reason, "prompt")
    seed = secrets.randbits(53) if body.seed is None else body.seed
    wishes = Wishes(rules, seed, body.most_tokens, body.draftrec.draft, body.likeliest)
    job = Job(body, service, texts, seed, sum(map(len, ids)))
    for asked in _requests(body, ids, wishes):
        job.add(asked, deadline)
    return job


def _check_limits(
    body: CompletionRequest | ChatRequest, service: Service, temperature: float
) -> None:
    """Refuse more than there may be; `temperature`: the service's own."""
    assert service.writing
    n, most = body.n or 1, service.writing.generator.config.batch.max_new_tokens
    texts = n * (len(body.prompts) if isinstance(body, CompletionRequest) else 1)
    if texts > service.settings.limits.records:
        raise api.refused(f"n: at most {service.settings.limits.records} texts at once", "n")
    if (given := body.given_tokens) and given[1] > most:
        raise api.refused(f"{given[0]}: at most {most} here", given[0])
    warmth = temperature if body.temperature is None else body.temperature
    if n > 1 and warmth == 0:
        raise api.refused(
            f"n: the {n} texts would all be the same with temperature 0; set a temperature above "
            "0, such as 0.8, or leave n at 1",
            "n",
        )


def _encoded(
    body: CompletionRequest | ChatRequest, service: Service, generator: Generator
) -> list[IntArray]:
    if isinstance(body, ChatRequest):
        turns = [message.turn() for message in body.messages]
        _check_length(sum(len(turn["content"]) for turn in turns), service, "messages")
        values = body.chat_template_kwargs
        if values and not service.chat:
            raise api.refused(
                "chat_template_kwargs: this service uses no chat template", "chat_template_kwargs"
            )
        form = PromptForm(service.chat, values=values, special_tokens="split")
        return generator.encode([turns], form=form)
    found: list[IntArray] = []
    for prompt in body.prompts:
        if isinstance(prompt, str):
            _check_length(len(prompt), service, "prompt")
            found += generator.encode([prompt])
        else:
            found.append(np.array(prompt, np.int32))
    return found


def _check_length(characters: int, service: Service, param: str) -> None:
    most = api.most_chars(service.settings.limits)
    if characters > most:
        raise api.refused(
            f"the prompt has {characters} characters; at most {most} are possible", param
        )


def _requests(body: Sampled, ids: Seq[IntArray], wishes: Wishes) -> list[TextRequest]:
    """n of each prompt. What is drawn is up to the seed and to the entity, or to the prompt's place
    where none is named, as in `Generator.generate`."""
    entity, found = body.draftrec.entity_id, list[TextRequest]()
    for place, given in enumerate(ids):
        key = place if entity is None else key_of(entity)
        group = body.draftrec.group
        first = TextRequest(entity or str(place), given, group, key=key, wishes=wishes)
        found += samples_of(first, body.n or 1)
    return found
