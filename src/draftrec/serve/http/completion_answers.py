"""How requests on OpenAI's routes are answered, whole or as events.

Every text is one question to the model's thread, in the batch of all clients. Events hold what is
certain: no half characters, and nothing that may become a stop string.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from draftrec.core import Counts, IntArray, TokenScore
from draftrec.core import Request as TextRequest
from draftrec.engine.text.stop_strings import GrowingText
from draftrec.errors import DraftrecError
from draftrec.serve.http import api
from draftrec.serve.http.completion_schemas import ChatRequest, CompletionRequest
from draftrec.serve.http.gate import HUNG_UP
from draftrec.serve.model_thread import Ticket, WorkError
from draftrec.serve.service import Service
from draftrec.serve.work import Wanted, Written

_REASONS = {"eos": "stop", "stop": "stop", "length": "length", "deadline": "length"}
#: Stands for minus infinity, which JSON does not have.
_LEAST = -9999.0
#: What decoders write for bytes that are no whole character.
_CUT = "\ufffd"

Event = tuple[IntArray, Seq[TokenScore]] | Future[Written]


class Job:
    """One request under way: its `tickets`, one for each text, and how its answer looks."""

    def __init__(
        self,
        body: CompletionRequest | ChatRequest,
        service: Service,
        texts: TokenTexts,
        seed: int,
        prompt_tokens: int,
    ) -> None:
        assert service.writing
        self.body, self.chat, self.seed = body, isinstance(body, ChatRequest), seed
        self.generator = service.writing.generator
        self.texts, self.prompt_tokens = texts, prompt_tokens
        self.tickets: list[Ticket[Wanted, Written]] = []
        self.events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.readers: list[Reader] = []
        kind = "chat.completion" if self.chat else "text_completion"
        if self.chat and body.stream:
            kind += ".chunk"
        self.head = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": service.model_name,
        }

    def add(self, asked: TextRequest, deadline: float | None) -> None:
        """One more text."""
        index, loop = len(self.tickets), asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the service has ended
                loop.call_soon_threadsafe(self.events.put_nowait, (index, event))

        wanted = Wanted(
            asked.entity_id,
            asked.prompt_ids,
            asked.group,
            f"/v1/{'chat/' if self.chat else ''}completions",
            key=asked.key,
            wishes=asked.wishes,
            on_tokens=(lambda tokens, scores: tell((tokens, scores))) if self.body.stream else None,
        )
        ticket = Ticket[Wanted, Written](wanted, deadline)
        if self.body.stream:
            ticket.future.add_done_callback(tell)
        rules = asked.wishes.rules
        stops = rules.stops if rules else self.generator.stops
        self.readers.append(Reader(GrowingText(self.generator.tokenizer, stops)))
        if self.body.likeliest is not None:
            self.readers[-1].offsets = GrowingText(self.generator.tokenizer)
        self.tickets.append(ticket)

    def whole(self, written: Seq[Written], request: Request) -> dict[str, Any]:
        """The answer in one piece."""
        choices = []
        for index, (reader, text) in enumerate(zip(self.readers, written, strict=True)):
            read = reader.finish(text)
            choices.append(self.choice(index, read, _REASONS[text.finish_reason]))
        self.note(written, request)
        return {
            **self.head,
            "choices": choices,
            "usage": self.usage(written),
            "draftrec": self.facts(list(enumerate(written))),
        }

    def note(self, written: Seq[Written], request: Request) -> None:
        """What the log says of it."""
        note = request.state.note
        note.partial = any(text.finish_reason == "deadline" for text in written)
        told = [text.text for text in written]
        note.contents = {"asked": self.body.model_dump(mode="json"), "told": told}

    def usage(self, written: Seq[Written]) -> dict[str, int]:
        """Tokens; of a prompt once, however many texts there are of it."""
        new = sum(len(text.token_ids) for text in written)
        known = self.prompt_tokens
        return {"prompt_tokens": known, "completion_tokens": new, "total_tokens": known + new}

    def facts(self, written: Seq[tuple[int, Written]]) -> dict[str, Any]:
        """Our part of an answer."""
        texts = [
            {"index": index, "finish_reason": text.finish_reason, **_costs(text.counts)}
            for index, text in written
        ]
        return {"seed": self.seed, "texts": texts}

    def choice(self, index: int, read: Read, reason: str | None, **more: Any) -> dict[str, Any]:
        """A choice, or what an event adds to one."""
        found: dict[str, Any] = {"index": index}
        if not self.chat:
            found["text"] = read.text
        elif self.body.stream:
            found["delta"] = {**more, **({"content": read.text} if read.text or more else {})}
        else:
            found["message"] = {"role": "assistant", "content": read.text, "refusal": None}
        return found | {"logprobs": self._log_probs(read), "finish_reason": reason}

    def _log_probs(self, read: Read) -> dict[str, Any] | None:
        if self.body.likeliest is None or not (read.scores or not self.body.stream):
            return None
        if self.chat:
            tokens = [
                {
                    **self.texts.entry(score.token_id, score.log_prob),
                    "top_logprobs": [self.texts.entry(*pair) for pair in score.likeliest],
                }
                for _, score in read.scores
            ]
            return {"content": tokens, "refusal": None}
        return {
            "text_offset": [offset for offset, _ in read.scores],
            "tokens": [self.texts.name(score.token_id) for _, score in read.scores],
            "token_logprobs": [max(score.log_prob, _LEAST) for _, score in read.scores],
            "top_logprobs": [self.texts.by_name(score.likeliest) for _, score in read.scores],
        }

    async def stream(self, request: Request) -> AsyncIterator[bytes]:
        """Events, in the order in which texts grow."""
        for index in range(len(self.tickets) if self.chat else 0):
            opening = self.choice(index, Read("", []), None, role="assistant")
            yield self._event([opening])
        done: dict[int, Written] = {}
        try:
            while len(done) < len(self.tickets):
                index, event = await self.events.get()
                if not isinstance(event, Future):
                    read = self.readers[index].add(*event)
                    if read.text or read.scores:
                        yield self._event([self.choice(index, read, None)])
                    continue
                text = done[index] = event.result()
                read = self.readers[index].finish(text)
                last = self.choice(index, read, _REASONS[text.finish_reason])
                yield self._event([last], draftrec=self.facts([(index, text)]))
        except (WorkError, DraftrecError) as error:
            failed, note = api.failed(error), request.state.note
            note.error = failed.code
            note.status, told = failed.answer(note.route)  # what it would have been, had it begun
            yield b"data: " + told + b"\n\n"
            return
        written = [done[index] for index in range(len(self.tickets))]
        self.note(written, request)
        if self._tells_usage:
            yield self._event([], usage=self.usage(written))
        yield b"data: [DONE]\n\n"

    @property
    def _tells_usage(self) -> bool:
        return bool(self.body.stream_options and self.body.stream_options.include_usage)

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        if self._tells_usage:
            more.setdefault("usage", None)
        return b"data: " + json.dumps({**self.head, "choices": choices, **more}).encode() + b"\n\n"


class Events(StreamingResponse):
    """A job's events. However it ends, nothing of the job stays in the batch."""

    def __init__(self, job: Job, request: Request) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(job.stream(request), headers=headers, media_type="text/event-stream")
        self.job, self.note = job, request.state.note

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        tickets = self.job.tickets
        try:
            await super().__call__(scope, receive, send)
        finally:
            if not all(ticket.future.done() for ticket in tickets) and not self.note.error:
                self.note.status = HUNG_UP
            for ticket in tickets:
                ticket.future.cancel()
            self.note.waits = [t.queue_seconds for t in tickets]
            self.note.passes = max(t.passes for t in tickets)


@dataclass(frozen=True, slots=True)
class Read:
    """A piece of a text, and the scores of the tokens that write it, each with its token's place
    in the text."""

    text: str
    scores: list[tuple[int, TokenScore]]


class Reader:
    """One text as a client reads it. `offsets`: finds the places of tokens, where scores are
    wanted."""

    def __init__(self, growing: GrowingText) -> None:
        self.growing = growing
        self.offsets: GrowingText | None = None
        self._tokens = 0
        self._waiting: list[tuple[int, TokenScore]] = []

    def add(self, tokens: IntArray, scores: Seq[TokenScore]) -> Read:
        """What new tokens bring."""
        text = self.growing.add(tokens)
        self._place(tokens, scores)
        self._tokens += len(tokens)
        return Read(text, self._due(self.growing.sent))

    def finish(self, written: Written) -> Read:
        """What is left of the whole. Tokens of the end, and of what a stop string has cut off, are
        no part of the text."""
        tokens = written.token_ids[: len(written.token_ids) - (written.finish_reason == "eos")]
        self._place(tokens[self._tokens :], written.scores[self._tokens :])
        return Read(self.growing.finish(written.text), self._due(len(written.text)))

    def _place(self, tokens: IntArray, scores: Seq[TokenScore]) -> None:
        if self.offsets is not None:
            for i in range(len(tokens)):
                self._waiting.append((self.offsets.sent, scores[i]))
                self.offsets.add(tokens[i : i + 1])

    def _due(self, end: int) -> list[tuple[int, TokenScore]]:
        due = [pair for pair in self._waiting if pair[0] < end]
        self._waiting = self._waiting[len(due) :]
        return due


class TokenTexts:
    """Texts and bytes of single tokens, of a transformers tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int] | None]] = {}

    def name(self, token_id: int) -> str:
        """As it would stand in the middle of a text; of a token that is no whole character its
        bytes, as OpenAI writes them: `bytes:\\xe2\\x80`. Such tokens would all be called alike."""
        text, own = self._look_up(token_id)
        if _CUT not in text or own is None:
            return text
        return "bytes:" + repr(bytes(own))[2:-1]

    def by_name(self, likeliest: Seq[tuple[int, float]]) -> dict[str, float]:
        """Log-probabilities of tokens, best first, as completions have them. Where two have one
        name, as a letter and the byte that it is in UTF-8, the likelier one has it."""
        found: dict[str, float] = {}
        for token, value in likeliest:
            found.setdefault(self.name(token), max(value, _LEAST))
        return found

    def entry(self, token_id: int, log_prob: float) -> dict[str, Any]:
        """As log-probabilities of chats have it; `bytes` None where a token has none of its own."""
        text, own = self._look_up(token_id)
        return {"token": text, "logprob": max(log_prob, _LEAST), "bytes": own}

    def _look_up(self, token_id: int) -> tuple[str, list[int] | None]:
        if token_id not in self._known:
            pair = self._tokenizer.decode([*self._lead[0], token_id], skip_special_tokens=False)
            text = pair.removeprefix(self._lead[1])
            whole = _CUT not in text
            self._known[token_id] = text, list(text.encode()) if whole else self._bytes(token_id)
        return self._known[token_id]

    @cached_property
    def _lead(self) -> tuple[list[int], str]:
        """Tokens before a token, some of which have another text at the start."""
        ids = self._tokenizer("a", add_special_tokens=False).input_ids
        return ids, self._tokenizer.decode(ids)

    def _bytes(self, token_id: int) -> list[int] | None:
        """Of a token that is no whole character."""
        piece = str(self._tokenizer.convert_ids_to_tokens(token_id))
        if match := re.fullmatch("<0x([0-9A-Fa-f]{2})>", piece):
            return [int(match[1], 16)]
        if all(character in self._byte_of for character in piece):
            return [self._byte_of[character] for character in piece]
        return None

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """Bytes by the characters that byte-level vocabularies spell them with."""
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        return {character: byte for byte, character in bytes_to_unicode().items()}


def _costs(counts: Counts) -> dict[str, int]:
    names = ("target_calls", "drafted_tokens", "accepted_tokens", "relaxed_tokens")
    return {name: getattr(counts, name) for name in names}
