"""Replaying texts on a model of given size: plain, strict and relaxed, and what Hugging Face takes
for as many tokens after the same prompts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import note, spread
from gpu_steps import hf_seconds
from gpu_texts import Replayed
from replay import ReplayRule

from draftrec.config import AcceptConfig
from draftrec.core import DraftTree, Generation, IntArray, Request, Verdict
from draftrec.engine.costs import CostCurve
from draftrec.engine.target import Target
from draftrec.engine.text import loop
from draftrec.engine.text.accept import AcceptanceRule, make_rule
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.text.budget import AutoBudget, FixedBudget
from draftrec.engine.text.loop import NoDrafter
from draftrec.engine.text.stats import StepStats
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.store import Pool

TEXTS_ALONE = 3
LONGEST = 192
MOST_NODES = 64
PLAIN, STRICT, RELAXED = "plain", "strict", "relaxed"


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


class LiveRule:
    """Lets a rule decide, for what that takes, and the replay have the last word."""

    def __init__(self, live: AcceptanceRule, replay: ReplayRule) -> None:
        self.live, self.replay = live, replay

    def accept(
        self, batch: list[RunningSequence], trees: list[DraftTree], logits: torch.Tensor
    ) -> list[Verdict]:
        """The replay's verdicts."""
        self.live.accept(batch, trees, logits)
        return self.replay.follow(batch, trees)


@dataclass(frozen=True)
class Cell:
    """One source at one batch size."""

    target: Target
    source: Replayed
    pool: Pool
    batch: int
    cost: CostCurve

    def requests(self) -> list[Request]:
        return self.source.requests[: TEXTS_ALONE if self.batch == 1 else self.batch]

    @property
    def modes(self) -> tuple[str, ...]:
        return (PLAIN, STRICT) if self.source.relaxed is None else (PLAIN, STRICT, RELAXED)

    def run(self, requests: list[Request], longest: int, mode: str) -> Run:
        """Write `requests` up to `longest` tokens each; checks that the texts came out."""
        texts, rule = self._written(mode)
        drafts = mode != PLAIN
        engine = loop.Engine(
            target=self.target,
            drafter=PoolDrafter(self.pool) if drafts else NoDrafter(),
            rule=rule,
            budget=AutoBudget(self.cost, MOST_NODES) if drafts else FixedBudget(0),
            accept=AcceptConfig(),
            eos_ids=frozenset([self.source.eos]),
            slots=self.batch,
            max_new_tokens=longest,
        )
        # One slab that fits every run, so that no figure contains its allocation.
        prompt = max(len(r.prompt_ids) for r in self.source.requests)
        self.target.reserve(self.batch, prompt + LONGEST + MOST_NODES + 2)
        steps: list[StepStats] = []
        start = time.perf_counter()
        done = loop.generate(engine, requests, steps.append)
        seconds = time.perf_counter() - start
        _check(done, texts, longest)
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

    def _written(self, mode: str) -> tuple[Mapping[str, IntArray], Any]:
        """The texts, and the rule that writes them."""
        if mode != RELAXED:
            return self.source.texts, ReplayRule(self.source.texts)
        assert self.source.relaxed is not None
        live = make_rule(AcceptConfig(accept="relaxed"), frozenset([self.source.eos]))
        return self.source.relaxed, LiveRule(live, ReplayRule(self.source.relaxed))

    def measure(self, longest: int) -> dict[str, Any]:
        """All modes over the same prompts: at batch 1 text by text, else all at once; then Hugging
        Face, whose batch runs until its longest text is done."""
        requests = self.requests()
        slices = [[r] for r in requests] if self.batch == 1 else [requests]
        runs: dict[str, list[Run]] = {mode: [] for mode in self.modes}
        theirs: list[float] = []
        for turn, part in enumerate(slices):
            first = turn % len(self.modes)
            for mode in self.modes[first:] + self.modes[:first]:
                runs[mode].append(self.run(part, longest, mode))
            most = max(min(len(self.source.texts[r.entity_id]), longest) for r in part)
            self.target.slab = None  # there may not be room for two caches
            theirs.append(hf_seconds(self.target.model, [r.prompt_ids for r in part], most))
        report = summarise(runs, theirs) | {"texts": len(requests), "longest": longest}
        said = ", ".join(f"{mode} {report[mode]['over_plain']}x" for mode in self.modes[1:])
        note(f"  {self.source.name} batch {self.batch}: {said}")
        return report


def _check(done: list[Generation], texts: Mapping[str, IntArray], longest: int) -> None:
    for generation in done:
        written = texts[generation.entity_id][:longest]
        if not np.array_equal(generation.token_ids, written):
            raise RuntimeError(f"the replay of {generation.entity_id!r} is not its recording")


def summarise(runs: Mapping[str, list[Run]], theirs: list[float]) -> dict[str, Any]:
    """Rates of all modes, and how many times as fast as plain and as Hugging Face they are, by
    tokens per second: prompts and drafting included."""
    report: dict[str, Any] = {mode: _rates(found) for mode, found in runs.items()}
    tokens, seconds = sum(r.tokens for r in runs[PLAIN]), sum(theirs)
    report["hf_generate"] = {"tokens_per_second": round(tokens / seconds, 2)}
    plain, hf = (report[name]["tokens_per_second"] for name in (PLAIN, "hf_generate"))
    for mode, found in runs.items():
        rate = report[mode]["tokens_per_second"]
        pairs = zip(runs[PLAIN], found, strict=True)
        report[mode] |= {
            "over_plain": round(rate / plain, 3),
            "over_plain_by_text": spread(
                [(m.tokens / m.seconds) / (p.tokens / p.seconds) for p, m in pairs]
            ),
            "over_hf_generate": round(rate / hf, 3),
        }
    return report


def _rates(runs: list[Run]) -> dict[str, Any]:
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
