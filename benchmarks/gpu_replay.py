"""Replaying recorded texts on a model of given size: plain against drafted, strict."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import note, spread
from recorded import Trace
from replay import ReplayRule

from draftrec.config import AcceptConfig
from draftrec.core import Generation, Request
from draftrec.engine.costs import CostCurve
from draftrec.engine.target import Target
from draftrec.engine.text import loop
from draftrec.engine.text.budget import AutoBudget, FixedBudget
from draftrec.engine.text.drafters import NoDrafter
from draftrec.engine.text.stats import StepStats
from draftrec.pool.drafter import PoolDrafter

TEXTS_ALONE = 3
LONGEST = 512
MOST_NODES = 64


@dataclass(frozen=True)
class Run:
    """One engine over some texts."""

    seconds: float
    tokens: int
    calls: int
    steps: int
    drafted: int
    accepted: int
    draft_seconds: float
    prefill_seconds: float

    @property
    def decode_seconds(self) -> float:
        return self.seconds - self.prefill_seconds


@dataclass(frozen=True)
class Cell:
    """One source at one batch size."""

    target: Target
    trace: Trace
    batch: int
    cost: CostCurve
    eos: int

    def requests(self) -> list[Request]:
        return self.trace.requests[: TEXTS_ALONE if self.batch == 1 else self.batch]

    def run(self, requests: list[Request], longest: int, *, drafts: bool) -> Run:
        """Write `requests` up to `longest` tokens each; checks that the recording came out."""
        engine = loop.Engine(
            target=self.target,
            drafter=PoolDrafter(self.trace.pool) if drafts else NoDrafter(),
            rule=ReplayRule(self.trace.texts),
            budget=AutoBudget(self.cost, MOST_NODES) if drafts else FixedBudget(0),
            accept=AcceptConfig(),
            eos_ids=frozenset([self.eos]),
            slots=self.batch,
            max_new_tokens=longest,
        )
        # One slab that fits every run, so that no figure contains its allocation.
        prompt = max(len(r.prompt_ids) for r in self.trace.requests)
        self.target.reserve(self.batch, prompt + LONGEST + MOST_NODES + 2)
        steps: list[StepStats] = []
        start = time.perf_counter()
        done = loop.generate(engine, requests, steps.append)
        seconds = time.perf_counter() - start
        self._check(done, longest)
        return Run(
            seconds,
            sum(len(g.token_ids) for g in done),
            sum(g.counts.target_calls for g in done),
            len(steps),
            sum(g.counts.drafted_tokens for g in done),
            sum(g.counts.accepted_tokens for g in done),
            engine.timing.draft_seconds,
            engine.timing.prefill_seconds,
        )

    def _check(self, done: list[Generation], longest: int) -> None:
        for generation in done:
            recorded = self.trace.texts[generation.entity_id][:longest]
            if not np.array_equal(generation.token_ids, recorded):
                raise RuntimeError(f"the replay of {generation.entity_id!r} is not its recording")

    def measure(self, longest: int) -> dict[str, Any]:
        """Plain and drafted over the same texts: at batch 1 text by text, else all at once."""
        requests = self.requests()
        slices = [[r] for r in requests] if self.batch == 1 else [requests]
        pairs: list[tuple[Run, Run]] = []
        for turn, part in enumerate(slices):
            order = (False, True) if turn % 2 == 0 else (True, False)
            runs = {drafts: self.run(part, longest, drafts=drafts) for drafts in order}
            pairs.append((runs[False], runs[True]))
        report = summarise(pairs)
        report |= {"texts": len(requests), "longest": longest}
        note(
            f"  {self.trace.name} batch {self.batch}: {report['speedup_of_sums']}x, "
            f"{report['drafted']['tokens_per_call']} tokens per call"
        )
        return report


def summarise(pairs: list[tuple[Run, Run]]) -> dict[str, Any]:
    """Rates of both sides and their ratios; `speedup` is walltime, prompt and drafting included."""
    sides = {"plain": [p for p, _ in pairs], "drafted": [d for _, d in pairs]}
    report: dict[str, Any] = {name: _rates(runs) for name, runs in sides.items()}

    def ratio(what: str) -> float:
        plain, drafted = (sum(getattr(r, what) for r in runs) for runs in sides.values())
        return round(plain / drafted, 3)

    report["speedup"] = spread([p.seconds / d.seconds for p, d in pairs])
    report["speedup_of_sums"] = ratio("seconds")
    report["decode_speedup_of_sums"] = ratio("decode_seconds")
    return report


def _rates(runs: list[Run]) -> dict[str, float]:
    seconds, calls = sum(r.seconds for r in runs), sum(r.calls for r in runs)
    tokens, drafted = sum(r.tokens for r in runs), sum(r.drafted for r in runs)
    return {
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 2),
        "tokens_per_call": round(tokens / calls, 3),
        "ms_per_step": round(1e3 * seconds / sum(r.steps for r in runs), 3),
        "drafted_per_call": round(drafted / calls, 2),
        "acceptance_rate": round(sum(r.accepted for r in runs) / max(drafted, 1), 4),
        "draft_share_of_time": round(sum(r.draft_seconds for r in runs) / seconds, 4),
        "prefill_share_of_time": round(sum(r.prefill_seconds for r in runs) / seconds, 4),
    }


def longest_for(seconds: float, step: float, batch: int) -> int:
    """New tokens per text that keep the plain run of a cell within `seconds`."""
    in_turn = TEXTS_ALONE if batch == 1 else 1
    return max(16, min(LONGEST, int(seconds / step / in_turn)))
