"""How far ahead and how wide to draft: settings, or what pays by measured costs and acceptance."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from draftrec.engine.beams.model import BeamModel
from draftrec.engine.beams.state import UserSearch
from draftrec.engine.costs import CostCurve, smoothed
from draftrec.engine.packing import Segment
from draftrec.engine.tree import certain

_ROWS = (1, 4, 8, 16, 32, 64, 128, 256, 512)
_REPEATS = 3


def measure_passes(
    model: BeamModel, users: int, prompt: int, most: int, seconds: float = 3.0
) -> CostCurve:
    """Seconds of a pass at growing numbers of rows: `users` trees of up to `most` nodes each behind
    `prompt` cached tokens. The shortest of three times, taken in turns, evened out where they fall
    with rows: what else the machine does adds time. Stops after `seconds`.
    """
    model.target.reserve(users, prompt + most)
    started = time.perf_counter()
    found: dict[int, float] = {}
    _timed(model, users, prompt, 1)
    for _ in range(_REPEATS):
        for count in sorted({min(r, most) for r in _ROWS}):
            if len(found) > 1 and time.perf_counter() - started > seconds:
                break
            took = _timed(model, users, prompt, count)
            found[count] = min(took, found.get(count, took))
    rows = sorted(found)
    heights = smoothed([found[r] for r in rows]).tolist()
    return CostCurve(tuple(users * r for r in rows), tuple(heights))


def _timed(model: BeamModel, users: int, prompt: int, rows: int) -> float:
    siblings = certain(np.ones(rows, np.int32), np.full(rows, -1, np.int32))
    pending = np.empty(0, np.int32)
    segments = [Segment(i, prompt, pending, siblings) for i in range(users)]
    start = time.perf_counter()
    logits = model.target.score(segments).logits
    logits.float().logsumexp(-1).cpu()
    if model.target.device.type == "cuda":
        torch.cuda.synchronize(model.target.device)
    return time.perf_counter() - start


#: Widths that are considered, as shares of the widest.
_SHARES = (0.25, 0.5, 0.75, 1.0)
# Passes between two plans, after the first few.
_REPLAN = 8
# Where drafting does not pay, tries may take this share of the time, and at most every 64th user.
_TRIES, _APART = 0.01, 64
_FADE = 0.995


class Pace(Protocol):
    """Says how many nodes to draft for each level after the decided one; none: a plain step."""

    most: int
    """The widest level that it ever asks for."""

    def widths(self, search: UserSearch) -> list[int]: ...

    def observe(self, running: Seq[UserSearch]) -> None: ...


class FixedPace:
    """`width` nodes (N) for `steps` levels (gamma), as far as there are levels to draft.

    The last of `depth` levels is never drafted: the pass that scores the level above it gives it.
    """

    def __init__(self, width: int, steps: int, depth: int) -> None:
        self.most, self.steps, self.depth = width, steps, depth

    def widths(self, search: UserSearch) -> list[int]:
        return [self.most] * max(0, min(self.steps, self.depth - 1 - search.level))

    def observe(self, running: Seq[UserSearch]) -> None:
        """Nothing to learn."""


def whole(width: int) -> int:
    """A level of at most so many continuations is drafted whole instead of `width` of them: the
    first level of an item trie, say, or the last ones, where prefixes hardly branch. Rows that are
    sure to be accepted are worth more than others."""
    return width * 5 // 2


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a pass by its rows: the target's and the drafter's (None: drafts need no pass).

    `users` run at once, prompts have about `prompt` rows, `kept` beams (K) are scored in any case.
    `branching`: mean continuations of a prefix, by its level. `propose`: seconds of host work that
    drafting for one user takes.
    """

    target: CostCurve
    draft: CostCurve | None
    users: int
    prompt: int
    kept: int
    branching: tuple[float, ...] = ()
    propose: float = 0.0

    def passes(self, level: int, widths: Seq[int]) -> float:
        """Seconds of drafting `widths` after `level` and verifying, per user."""
        first = self.prompt if level == 0 else self.kept
        rows = self.rows(level, widths)
        seconds = float(self.target(self.users * (first + sum(rows))))
        if self.draft is not None and widths:
            seconds += sum(float(self.draft(self.users * r)) for r in (first, *rows[:-1]))
        return seconds / self.users + (self.propose if widths else 0.0)

    def alone(self, widths: Seq[int]) -> float:
        """Seconds more that the first pass takes because one user drafts `widths` in it."""
        plain, rows = float(self.users * self.prompt), self.rows(0, widths)
        seconds = float(self.target(plain + sum(rows)) - self.target(plain)) + self.propose
        if self.draft is not None:
            seconds += sum(float(self.draft(r)) for r in (self.prompt, *rows[:-1]))
        return seconds

    def rows(self, level: int, widths: Seq[int]) -> list[float]:
        """Nodes that drafts of `widths` have, with levels drafted whole where they may be."""
        found: list[float] = []
        above = 1.0 if level == 0 else float(self.kept)
        for step, width in enumerate(widths):
            every = above * self.branching[level + step] if self.branching else float("inf")
            above = every if every <= whole(width) else float(width)
            found.append(above)
        return found


class AutoPace:
    """The widths that finish a search soonest, by costs and by what was accepted lately.

    For every level it counts, width by width, how often all beams that the target kept were among
    the first so many drafted ones; a level that was verified with a wide draft says what narrower
    ones would have done. Plans come from the end backwards: after `t` levels, drafting some levels
    costs their passes and leads to t + 1 .. levels with the estimated probabilities, from where the
    best plan goes on. Where the best plan is plain, a few users get a wide draft to begin with all
    the same, so that a change is noticed: as many as a hundredth of the time allows, and none if
    even drafts that are always right would lose. All clocks are the cost curves', so that a run
    repeats its decisions.
    """

    def __init__(self, most: int, depth: int, costs: Costs) -> None:
        self.most, self.depth, self.costs = most, depth, costs
        least = costs.kept
        self.grid = sorted({max(least, round(most * s)) for s in _SHARES} | {min(least, most)})
        # Two tries to begin with, so that nothing is certain before it was seen; wide drafts are
        # expected to hold more.
        self.tried = np.full((depth, len(self.grid)), 2.0)
        self.held = self.tried * np.linspace(0.4, 0.8, len(self.grid))
        self.plans = self._plan(self.held / self.tried)
        self._passes = self._plain = 0
        self._apart = self._users_between_tries()

    def widths(self, search: UserSearch) -> list[int]:
        plan = self.plans[search.level]
        if not plan and search.level == 0 and self._apart:
            self._plain += 1
            if self._plain % self._apart == 0:
                return self._widest()
        return plan

    def observe(self, running: Seq[UserSearch]) -> None:
        """Count at which width every verified level would have been accepted."""
        self.tried *= _FADE
        self.held *= _FADE
        for search in running:
            before = search.level - len(search.trail)
            for i, (drafted, kept) in enumerate(zip(search.levels, search.trail, strict=False)):
                self._count(before + i + 1, len(drafted), _needed(drafted, kept))
        self._passes += 1
        if self._passes < 4 or self._passes % _REPLAN == 0:
            self.plans = self._plan(self.held / self.tried)

    def _count(self, level: int, drafted: int, needed: int | None) -> None:
        if level >= self.depth:
            return
        for place, width in enumerate(self.grid):
            if needed is not None and needed <= width:
                self.held[level, place] += 1
            elif width > max(drafted, self.grid[0]):
                continue  # a wider draft might have had them
            self.tried[level, place] += 1

    def _widest(self) -> list[int]:
        return [self.most] * (self.depth - 1)

    def _users_between_tries(self) -> int | None:
        """Plain users for each that tries a draft; None if no draft can ever pay."""
        if not any(self._plan(np.ones_like(self.held))):
            return None
        plain = sum(self.costs.passes(level, []) for level in range(self.depth))
        return max(_APART, math.ceil(self.costs.alone(self._widest()) / (_TRIES * plain)))

    def _plan(self, shares: np.ndarray) -> list[list[int]]:
        """The best widths after 0, 1, ... levels, if of a level's drafts such `shares` hold all
        kept beams, by width."""
        left = [0.0] * (self.depth + 1)
        plans: list[list[int]] = [[] for _ in range(self.depth)]
        for level in range(self.depth - 1, -1, -1):
            left[level] = self.costs.passes(level, []) + left[level + 1]
            for steps in range(1, self.depth - level):
                for place, width in enumerate(self.grid):
                    widths = [width] * steps
                    later = _expected(shares[level + 1 : level + steps + 1, place], left[level:])
                    seconds = self.costs.passes(level, widths) + later
                    if seconds < left[level]:
                        left[level], plans[level] = seconds, widths
        return plans


def _expected(shares: np.ndarray, left: Seq[float]) -> float:
    """Seconds expected after a pass over drafts that hold all kept beams of their levels with
    probabilities `shares`; `left`: seconds once 0, 1, ... levels more are decided."""
    reached, seconds = 1.0, 0.0
    for step, share in enumerate(shares.tolist(), 1):
        seconds += reached * (1 - share) * left[step]
        reached *= share
    return seconds + reached * left[len(shares) + 1]


def _needed(drafted: np.ndarray, kept: np.ndarray) -> int | None:
    """How many drafted nodes, in their order, hold all kept ones; None if not even all do."""
    places = np.flatnonzero(np.isin(drafted, kept))
    return int(places[-1]) + 1 if len(places) == len(kept) and len(places) else None
