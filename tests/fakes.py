"""Stand-ins for slow parts, with answers that a test can predict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from draftrec.core import Counts, Generation, IntArray, Request
from draftrec.engine.costs import CostCurve
from draftrec.engine.text.stats import StepStats, Timing
from draftrec.errors import Interrupted
from draftrec.jobs.knowledge.manifest import Facts
from draftrec.models.prompting import ChatTemplate, PromptForm

EOS = 0


class Killed(BaseException):
    """What kill -9 looks like from inside: nothing gets to clean up after it."""


@dataclass
class FakePool:
    """Remembers the texts it was given, as a pool folder does on disk."""

    texts: list[tuple[list[int], str | None]] = field(default_factory=list)
    full: bool = False

    def __len__(self) -> int:
        return len(self.texts)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text(json.dumps(self.texts))

    @classmethod
    def load(cls, folder: Path) -> FakePool:
        texts = json.loads((folder / "manifest.json").read_text())
        return cls([(ids, group) for ids, group in texts])


@dataclass
class FakeGenerator:
    """Writes a few letters that depend on the prompt alone, or, relaxed, on the pool as well. A
    record's texts after its first depend on their keys.

    Prompts are encoded byte by byte. `on_request` is called with the number of requests decoded
    so far, before each of them: the place to kill or to interrupt.
    """

    relaxed: bool = False
    context_length: int = 200
    vocabulary: int = 1 << 30
    max_new_tokens: int = 8
    has_chat_template: bool = False
    chat_template: ChatTemplate | None = None
    pool: FakePool | None = field(default_factory=FakePool)
    on_request: Callable[[int], None] | None = None
    fingerprint: dict[str, str] = field(
        default_factory=lambda: {"model": "fake", "tokenizer": "bytes"}
    )
    device: str = "cpu"
    dtype: str = "float32"
    cost_state: dict[str, Any] | None = None
    timing: Timing = field(default_factory=Timing)
    threads: int = 1
    exact: bool = False
    decoded: int = 0
    largest_run: int = 0

    @property
    def facts(self) -> Facts:
        return Facts(
            self.fingerprint,
            self.device,
            self.dtype,
            self.has_chat_template,
            self.chat_template,
            self.cost_state,
            self.threads,
            self.exact,
        )

    def render(self, prompts: list[str], form: PromptForm) -> list[str]:
        day = f"{form.now:%Y-%m-%d} " if self.chat_template and self.chat_template.dated else ""
        return [f"{day}<user>{p}</user>" if form.chat else p for p in prompts]

    def slots(self, longest: int) -> int:
        return 2

    def cost_curve(self, longest: int, texts: int | None = None) -> CostCurve:
        return CostCurve((1, 100), (1.0, 2.0))

    def encode(self, prompts: list[str], *, form: PromptForm) -> list[IntArray]:
        if not prompts:
            raise IndexError("as tokenizers do")
        texts = self.render(prompts, form)
        return [np.frombuffer(t.encode(), np.uint8).astype(np.int32) + 1 for t in texts]

    def decode(self, token_ids: IntArray) -> str:
        return "".join(chr(i) for i in token_ids.tolist() if i != EOS)

    def run(
        self,
        requests: Seq[Request],
        *,
        on_step: Callable[[StepStats], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        on_text: Callable[[Request, Generation], None] | None = None,
    ) -> list[Generation]:
        self.largest_run = max(self.largest_run, len(requests))
        done = []
        for request in requests:
            if should_stop and should_stop():
                raise Interrupted
            if self.on_request:
                self.on_request(self.decoded)
            self.decoded += 1
            done.append(self._write(request))
            self.timing.verify_seconds += 0.001
            if on_text:
                on_text(request, done[-1])
            if on_step:
                on_step(_one_step(done[-1], len(requests) - len(done)))
        return done

    def commit(self, texts: Seq[tuple[IntArray, str | None]]) -> None:
        if self.pool is not None:
            self.pool.texts.extend((ids.tolist(), group) for ids, group in texts)

    def _write(self, request: Request) -> Generation:
        seen = json.dumps(self.pool.texts) if self.relaxed and self.pool else ""
        seen += str(request.key) if request.sample else ""
        prompt = request.prompt_ids.tobytes()
        digest = hashlib.sha256(prompt + str(request.group).encode() + seen.encode()).digest()
        length = 1 + digest[0] % self.max_new_tokens
        ids = np.array([ord("a") + b % 26 for b in digest[1 : 1 + length]], np.int32)
        ended = length < self.max_new_tokens
        if ended:
            ids = np.append(ids, np.int32(EOS))
        accepted = int(digest[-1] % length)
        counts = Counts(
            target_calls=len(ids) - accepted,
            draft_calls=1,
            drafted_tokens=8,
            accepted_tokens=accepted,
            accepted_by_source=[accepted, 0, 0, 0, 0],
        )
        reason = "eos" if ended else "length"
        return Generation(request.entity_id, ids, reason, len(request.prompt_ids), counts)


def _one_step(done: Generation, waiting: int) -> StepStats:
    return StepStats(
        active=1,
        waiting=waiting,
        finished=1,
        rows=1 + done.counts.drafted_tokens,
        new_tokens=len(done.token_ids),
        target_calls=done.counts.target_calls,
        drafted_tokens=done.counts.drafted_tokens,
        accepted_tokens=done.counts.accepted_tokens,
        scored=1,
    )
