"""Counting and timing. Plain numbers; whoever wants rates derives them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from collections.abc import Generator as Gen
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

from draftrec.core import COUNTED, SOURCES, DraftTree, Verdict
from draftrec.engine.text.batch import RunningSequence

_SUMS = ("finished", "scored", "rows", "new_tokens", *COUNTED, "cut", "empty", "looping")


@dataclass(slots=True)
class Timing:
    """Seconds spent since the start: drafting, verifying, computing prompts.

    A pass over prompt rows and draft rows at once is split by their numbers.
    """

    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    prefill_seconds: float = 0.0
    clock: Callable[[], float] = time.perf_counter

    @property
    def spent(self) -> Spent:
        """A reading of the clocks; the difference of two is what lies between them."""
        return Spent(self.draft_seconds, self.verify_seconds, self.prefill_seconds)

    @contextmanager
    def drafting(self) -> Gen[None]:
        start = self.clock()
        yield
        self.draft_seconds += self.clock() - start

    @contextmanager
    def passing(self, prompt_share: float) -> Gen[None]:
        start = self.clock()
        yield
        seconds = self.clock() - start
        self.prefill_seconds += seconds * prompt_share
        self.verify_seconds += seconds * (1.0 - prompt_share)


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds: of drafting, verifying and computing prompts, as measured; of the verifying passes
    by the cost curve, and of those that would have written the same tokens without drafts."""

    draft: float = 0.0
    verify: float = 0.0
    prefill: float = 0.0
    passes: float = 0.0
    plain: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f) + getattr(other, f) for f in _SPENT))

    def __sub__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, f) - getattr(other, f) for f in _SPENT))

    @property
    def times_plain(self) -> float | None:
        """How many times as long the same texts would have taken without drafts; None where nothing
        is known. The curve says how passes compare, the clock how long they take here."""
        if not self.passes:
            return None
        plain = self.prefill + self.verify * self.plain / self.passes
        return plain / (self.prefill + self.verify + self.draft)


_SPENT = ("draft", "verify", "prefill", "passes", "plain")


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step of the whole batch.

    `scored`: sequences whose scores were asked for, one row and their draft's each; other `rows`
    are those of prompts. `draft_calls`: drafts that were not empty. `accepted_by_source` follows
    `core.SOURCES`; `accepted_by_depth[d]`: accepted tokens that lay `d` below the draft's first;
    `by_group`: drafted and accepted tokens by group, "" for texts without one. `kv_tokens`: rows
    that the running texts hold in the KV slab. A job adds what the step took (`spent`) and how its
    `finished` texts ended: `cut` at their limit, `empty`, `looping`.
    """

    active: int
    waiting: int
    finished: int
    rows: int
    new_tokens: int
    target_calls: int
    drafted_tokens: int
    accepted_tokens: int
    draft_calls: int = 0
    relaxed_tokens: int = 0
    kv_tokens: int = 0
    scored: int = 0
    accepted_by_source: tuple[int, ...] = (0,) * len(SOURCES)
    accepted_by_depth: tuple[int, ...] = ()
    by_group: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    spent: Spent = Spent()
    cut: int = 0
    empty: int = 0
    looping: int = 0


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
        sources = tree.sources[verdict.path]
        sequence.note_sources(sources)
        for source in sources.tolist():
            counts.accepted_by_source[source] += 1


def step_stats(
    active: Seq[RunningSequence],
    scored: Seq[RunningSequence],
    waiting: int,
    rows: int,
    trees: Seq[DraftTree],
    verdicts: Seq[Verdict],
) -> StepStats:
    """Sum up one step. `trees` and `verdicts` are those of the active sequences that were `scored`:
    all but the ones whose prompt is not done yet, or whose rows are computed anew since the text
    has outgrown a limit."""
    drafted, accepted = [len(t) for t in trees], [len(v.path) for v in verdicts]
    # A path goes down from the root, so its i-th node lies at depth i.
    longest = max(accepted, default=0)
    return StepStats(
        active=len(active),
        waiting=waiting,
        finished=sum(s.finish is not None for s in active),
        rows=rows,
        new_tokens=sum(len(v.token_ids) for v in verdicts),
        target_calls=len(active),
        drafted_tokens=sum(drafted),
        accepted_tokens=sum(accepted),
        draft_calls=sum(n > 0 for n in drafted),
        relaxed_tokens=sum(v.relaxed for v in verdicts),
        kv_tokens=sum(s.computed for s in active),
        scored=len(scored),
        accepted_by_source=_by_source(trees, verdicts),
        accepted_by_depth=tuple(sum(n > d for n in accepted) for d in range(longest)),
        by_group=_by_group(scored, drafted, accepted),
    )


def summed(steps: Seq[StepStats]) -> StepStats:
    """Several steps as one; `active`, `waiting` and `kv_tokens` are those of the last."""
    last = steps[-1]
    sources = zip(*(s.accepted_by_source for s in steps), strict=True)
    depths = zip_longest(*(s.accepted_by_depth for s in steps), fillvalue=0)
    return StepStats(
        active=last.active,
        waiting=last.waiting,
        kv_tokens=last.kv_tokens,
        **{name: sum(getattr(s, name) for s in steps) for name in _SUMS},
        accepted_by_source=tuple(map(sum, sources)),
        accepted_by_depth=tuple(map(sum, depths)),
        by_group=_summed_groups(steps),
        spent=sum((s.spent for s in steps), Spent()),
    )


def _summed_groups(steps: Seq[StepStats]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for step in steps:
        for group, (drafted, accepted) in step.by_group.items():
            before = found.get(group, (0, 0))
            found[group] = (before[0] + drafted, before[1] + accepted)
    return found


def _by_source(trees: Seq[DraftTree], verdicts: Seq[Verdict]) -> tuple[int, ...]:
    kept = [t.sources[v.path] for t, v in zip(trees, verdicts, strict=True) if len(v.path)]
    if not kept:
        return (0,) * len(SOURCES)
    return tuple(np.bincount(np.concatenate(kept), minlength=len(SOURCES)).tolist())


def _by_group(
    scored: Seq[RunningSequence], drafted: Seq[int], accepted: Seq[int]
) -> dict[str, tuple[int, int]]:
    """Drafted and accepted tokens by group."""
    found: dict[str, tuple[int, int]] = {}
    for sequence, more, kept in zip(scored, drafted, accepted, strict=True):
        if more:
            group = sequence.request.group or ""
            before = found.get(group, (0, 0))
            found[group] = (before[0] + more, before[1] + kept)
    return found
