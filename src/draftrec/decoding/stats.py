"""Counting and timing. Plain numbers; whoever wants rates derives them."""

from __future__ import annotations

import time
from collections.abc import Generator as Gen
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from draftrec.core import SOURCES, DraftTree, Verdict
from draftrec.decoding.batch import RunningSequence


@dataclass(slots=True)
class Timing:
    """Seconds spent since the start: drafting, verifying, computing prompts.

    A pass over prompt rows and draft rows at once is split by their numbers.
    """

    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    prefill_seconds: float = 0.0

    @contextmanager
    def drafting(self) -> Gen[None]:
        start = time.perf_counter()
        yield
        self.draft_seconds += time.perf_counter() - start

    @contextmanager
    def passing(self, prompt_share: float) -> Gen[None]:
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.prefill_seconds += seconds * prompt_share
        self.verify_seconds += seconds * (1.0 - prompt_share)


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step of the whole batch."""

    active: int
    waiting: int
    finished: int
    rows: int
    new_tokens: int
    target_calls: int
    drafted_tokens: int
    accepted_tokens: int


def record(sequence: RunningSequence, tree: DraftTree, verdict: Verdict) -> None:
    """Add one verified step to the sequence's counts (its target call is counted elsewhere)."""
    if not len(tree):
        return
    counts = sequence.counts
    counts.draft_calls += 1
    counts.drafted_tokens += len(tree)
    counts.accepted_tokens += len(verdict.path)
    counts.relaxed_tokens += verdict.relaxed
    if len(verdict.path):
        by_source = np.bincount(tree.sources[verdict.path], minlength=len(SOURCES))
        for i, n in enumerate(by_source.tolist()):
            counts.accepted_by_source[i] += n


def step_stats(
    active: Seq[RunningSequence],
    waiting: int,
    rows: int,
    trees: Seq[DraftTree],
    verdicts: Seq[Verdict],
) -> StepStats:
    """Sum up one step."""
    return StepStats(
        active=len(active),
        waiting=waiting,
        finished=sum(s.finish is not None for s in active),
        rows=rows,
        new_tokens=sum(len(v.token_ids) for v in verdicts),
        target_calls=len(active),
        drafted_tokens=sum(len(t) for t in trees),
        accepted_tokens=sum(len(v.path) for v in verdicts),
    )
