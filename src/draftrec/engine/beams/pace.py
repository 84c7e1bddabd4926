"""How far ahead and how wide to draft: settings, or what pays by measured costs and acceptance."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from draftrec.core import DoubleArray, IntArray, LongArray
from draftrec.engine.beams.model import BeamModel
from draftrec.engine.beams.state import UserSearch
from draftrec.engine.costs import CostCurve, LearningCurve, PassCosts, smoothed
from draftrec.engine.packing import Segment
from draftrec.engine.tree import certain

# Rows of a user's tree that are timed, with all users at once; fewer users have a row each.
_ROWS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_REPEATS = 3


def measure_passes(
    model: BeamModel, users: int, prompt: int, most: int, seconds: float = 3.0
) -> CostCurve:
    """Seconds of a pass at growing numbers of rows: up to `users` trees of up to `most` nodes each
    behind `prompt` cached tokens. The shortest of three times, taken in turns, evened out where
    they fall with rows: what else the machine does adds time. Passes that take a tenth of `seconds`
    are made once, or they would leave none for the small ones; stops after `seconds`.
    """
    model.target.reserve(users, prompt + most)
    started = time.perf_counter()
    found: dict[int, float] = {}
    few = [(1 << i, 1) for i in range((users - 1).bit_length())]
    sizes = few + [(users, count) for count in sorted({min(r, most) for r in _ROWS})]
    _timed(model, users, prompt, 1)
    for _ in range(_REPEATS):
        for at_once, count in sizes:
            rows = at_once * count
            if found.get(rows, 0.0) > seconds / 10:
                continue
            if len(found) > 1 and time.perf_counter() - started > seconds:
                break
            took = _timed(model, at_once, prompt, count)
            found[rows] = min(took, found.get(rows, took))
    rows = sorted(found)
    return CostCurve(tuple(rows), tuple(smoothed([found[r] for r in rows]).tolist()))


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


# Ways to draft so many levels that are weighed against each other.
_CHOICES = 1000
# Passes between two plans, after the first few; and after which what passes cost is asked anew,
# which takes a while: then after twice as many, and so on.
_REPLAN, _RECOUNT = 8, 32
# Where drafting does not pay, tries may take this share of the time, and at most every 64th user.
# The first six come sooner, a try at a 64th, a 32nd, .. of the distance: until something was tried,
# what is expected of drafts is a guess.
_TRIES, _APART, _SOONER = 0.01, 64, 6
_FADE = 0.995


class Pace(Protocol):
    """Says how many nodes to draft for each level after the decided one; none: a plain step."""

    most: tuple[int, ...]
    """The widest that it ever asks of every level but the last."""
    rows: int
    """The most nodes that a draft of its widths may have."""

    def widths(self, search: UserSearch, users: int) -> Seq[int]:
        """Of a search that runs beside others, `users` in all."""
        ...

    def observe(self, running: Seq[UserSearch]) -> None: ...


class FixedPace:
    """`width` nodes (N) for `steps` levels (gamma), as far as there are levels to draft; or a width
    for each of them.

    The last of `depth` levels is never drafted: the pass that scores the level above it gives it.
    """

    def __init__(self, width: int | Seq[int], steps: int, depth: int) -> None:
        self.most = (width,) * (depth - 1) if isinstance(width, int) else tuple(width)
        self.rows, self.steps = sum(map(whole, self.most)), steps

    def widths(self, search: UserSearch, users: int) -> Seq[int]:
        return self.most[search.level :][: self.steps]

    def observe(self, running: Seq[UserSearch]) -> None:
        """Nothing to learn."""


def whole(width: int) -> int:
    """A level of at most so many continuations is drafted whole instead of `width` of them: the
    first level of an item trie, say, or the last ones, where prefixes hardly branch. Rows that are
    sure to be accepted are worth more than others."""
    return width * 5 // 2


def _still(curve: PassCosts) -> CostCurve:
    return curve.curve if isinstance(curve, LearningCurve) else curve


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a pass by its rows: the target's and the drafter's (None: drafts need no pass).

    At most `users` run at once, prompts have about `prompt` rows, `kept` beams (K) are scored in
    any case. `branching`: mean continuations of a prefix, by its level; `followed`: of those that
    beams have, which are the likely ones and branch more. `propose`: seconds of host work that
    drafting for one user takes. `extra`: rows that are added to every level of a draft, at most as
    many as it has.
    """

    target: PassCosts
    draft: PassCosts | None
    users: int
    prompt: int
    kept: int
    branching: tuple[float, ...] = ()
    propose: float = 0.0
    extra: int = 0
    followed: tuple[float, ...] = ()

    def now(self) -> Costs:
        """By curves that stay as they are now."""
        return replace(self, target=_still(self.target), draft=self.draft and _still(self.draft))

    def passes(self, level: int, widths: Seq[int], users: int | None = None) -> float:
        """Seconds of drafting `widths` after `level` and verifying, per user of `users` (None: as
        many as may run)."""
        return float(self.choices(level, [widths], users or self.users)[0])

    def choices(self, level: int, choices: Seq[Seq[int]], users: int) -> DoubleArray:
        """float64: `passes` of several widths, equally many of each."""
        steps = len(choices[0])
        first = self.prompt if level == 0 else self.kept
        rows = np.array([self.rows(level, widths) for widths in choices]).reshape(
            len(choices), steps
        )
        seconds = self.target(users * (first + self._verified(rows)))
        if self.draft is not None and steps:
            seconds = seconds + float(self.draft(users * first))
            seconds = seconds + self.draft(users * rows[:, :-1]).sum(1)
        return seconds / users + (self.propose if steps else 0.0)

    def alone(self, widths: Seq[int], users: int | None = None) -> float:
        """Seconds more that the first pass takes because one user drafts `widths` in it."""
        plain, rows = float((users or self.users) * self.prompt), self.rows(0, widths)
        verified = float(self._verified(np.array(rows)))
        seconds = float(self.target(plain + verified) - self.target(plain)) + self.propose
        if self.draft is not None:
            seconds += sum(float(self.draft(r)) for r in (self.prompt, *rows[:-1]))
        return seconds

    def _verified(self, rows: DoubleArray) -> DoubleArray:
        """Rows that the target gets for drafts of so many nodes by level, `[..., steps]`."""
        return (rows + np.minimum(rows, self.extra)).sum(-1)

    def rows(self, level: int, widths: Seq[int]) -> list[float]:
        """Nodes that drafts of `widths` have, with levels drafted whole where they may be."""
        found: list[float] = []
        above = min(self.all_of(level), float(self.kept))
        followed = self.followed or self.branching
        for place, width in enumerate(widths, level):
            every = min(above * followed[place], self.all_of(place + 1)) if followed else math.inf
            above = every if every <= whole(width) else float(width)
            found.append(above)
        return found

    def all_of(self, level: int) -> float:
        """Prefixes of a level, 1 for the first one."""
        return math.prod(self.branching[:level]) if self.branching or not level else math.inf


@dataclass(frozen=True, eq=False, slots=True)
class Choices:
    """Ways to draft equally many levels after one: `widths`, their places int64 `[c, steps]` in the
    levels' grids, and float64 `[c]` seconds of drafting and verifying."""

    widths: list[tuple[int, ...]]
    places: LongArray
    seconds: DoubleArray


class AutoPace:
    """The widths, level by level, that finish a search soonest, by costs and by what was accepted
    lately.

    For every level it counts, width by width, how often all beams that the target kept were among
    the first so many drafted ones; a level that was verified with a wide draft says what narrower
    ones would have done. Plans come from the end backwards: after `t` levels, drafting some levels
    costs their passes and leads to t + 1 .. levels with the estimated probabilities, from where the
    best plan goes on. They are made for as many users as run, up to the next power of two. Where
    the best plan is plain, a few users get a wide draft to begin with all the same, so that a
    change is noticed: as many as a hundredth of the time allows (at first more, while hardly
    anything was seen), and none if even drafts that are always right would lose. Curves that learn
    from a run's passes are asked again after 32, 64, 128, .. of them, and so is how many
    continuations beams have.

    `most`: the widest that all levels, or each of them, may be; a draft has at most `rows` nodes.
    """

    def __init__(
        self, most: int | Seq[int], depth: int, costs: Costs, rows: int | None = None
    ) -> None:
        self.most = (most,) * (depth - 1) if isinstance(most, int) else tuple(most)
        self.depth, self._costs = depth, costs
        self.costs = costs.now()
        none: list[int] = []  # nothing is drafted before the first level
        self.grid = [none, *(self._grid(level) for level in range(1, depth))]
        self.rows = min(rows or self._most_nodes(self.most), self._most_nodes(self.most))
        # Two tries to begin with, so that nothing is certain before it was seen; wide drafts are
        # expected to hold more.
        size = max(map(len, self.grid), default=0)
        self.tried = np.full((depth, size), 2.0)
        self.held = np.zeros_like(self.tried)
        for level, grid in enumerate(self.grid[1:], 1):
            self.held[level, : len(grid)] = 2.0 * np.linspace(0.4, 0.8, len(grid))
            if whole(grid[-1]) >= costs.all_of(level):
                self.held[level, len(grid) - 1] = 2.0
        # Beams, and what could follow them where all of that was drafted, by level.
        self._beams = np.full(depth, 2.0)
        self._below = 2.0 * np.array((costs.followed or costs.branching)[:depth])
        self._choices: dict[tuple[int, int], list[Choices]] = {}
        self._plans: dict[int, list[tuple[int, ...]]] = {}
        self._apart: dict[int, int | None] = {}
        # Passes and drafts seen; tries, and plain users since the latest.
        self._passes = self._seen = self._tries = self._plain = 0

    def widths(self, search: UserSearch, users: int) -> Seq[int]:
        users = min(self.costs.users, 1 << (users - 1).bit_length())
        plan = self.plans(users)[search.level]
        if plan or search.level:
            return plan
        if users not in self._apart:
            self._apart[users] = self._users_between_tries(users)
        if apart := self._apart[users]:
            self._plain += 1
            known = max(self._tries, self._seen)
            if self._plain >= apart >> max(0, _SOONER - known):
                self._plain = 0
                self._tries += 1
                return self._widest()
        return plan

    def plans(self, users: int) -> list[tuple[int, ...]]:
        """The best widths after 0, 1, ... levels, with so many users at once."""
        if users not in self._plans:
            self._plans[users] = self._plan(self.held / self.tried, users)
        return self._plans[users]

    def observe(self, running: Seq[UserSearch]) -> None:
        """Count at which width every verified level would have been accepted."""
        self.tried *= _FADE
        self.held *= _FADE
        self._seen += sum(bool(s.levels) for s in running)
        for s in running:
            before = s.level - len(s.trail)
            self._count_below(before, s)
            levels = zip(s.levels, s.complete, s.trail, strict=False)
            for step, (drafted, complete, kept) in enumerate(levels, 1):
                needed = _needed(drafted, kept)
                self._count(before + step, len(drafted), needed, complete=complete)
        self._passes += 1
        if self._passes < 4 or self._passes % _REPLAN == 0:
            self._plans.clear()
        if self._passes % _RECOUNT == 0 and self._passes.bit_count() == 1:
            self.costs = replace(self._costs.now(), followed=self._followed())
            self._choices.clear()
            self._apart.clear()

    def _count_below(self, level: int, search: UserSearch) -> None:
        """How many nodes levels have that were drafted whole after `level`, by beams above."""
        above = min(self.costs.all_of(level), self.costs.kept)
        for place, (drafted, complete) in enumerate(
            zip(search.levels, search.complete, strict=False), level
        ):
            if complete and len(self._below):
                self._beams[place] = _FADE * self._beams[place] + above
                self._below[place] = _FADE * self._below[place] + len(drafted)
            above = len(drafted)

    def _followed(self) -> tuple[float, ...]:
        return tuple((self._below / self._beams).tolist()) if len(self._below) else ()

    def _count(self, level: int, drafted: int, needed: int | None, *, complete: bool) -> None:
        if level >= self.depth:
            return
        for place, width in enumerate(self.grid[level]):
            if (needed is not None and needed <= width) or (complete and drafted <= whole(width)):
                self.held[level, place] += 1
            elif width > max(drafted, self.grid[level][0]):
                continue  # a wider draft might have had them
            self.tried[level, place] += 1

    def _grid(self, level: int) -> list[int]:
        """Widths to consider of a level, by halves, as what a row more costs and gives is felt most
        where there are few; none beyond the first with which it is drafted whole."""
        least, most = self.costs.kept, self.most[level - 1]
        halves = [most >> i for i in range(most.bit_length())]
        grid = sorted({width for width in halves if width > least} | {min(least, most)})
        every = self.costs.all_of(level)
        enough = next((i for i, width in enumerate(grid, 1) if whole(width) >= every), None)
        return grid[:enough]

    def _most_nodes(self, widths: Seq[int], level: int = 0) -> int:
        """What a draft of `widths` after `level` may have, every level whole where it can be."""
        levels = range(level + 1, self.depth)
        most = (min(whole(w), self.costs.all_of(i)) for i, w in zip(levels, widths, strict=False))
        return round(sum(most))

    def _widest(self) -> tuple[int, ...]:
        """Of the longest drafts, the one of most nodes."""
        longest = self._choices_after(0, self.costs.users)[-1]
        return max(longest.widths, key=self._most_nodes)

    def _users_between_tries(self, users: int) -> int | None:
        """Plain users for each that tries a draft; None if no draft can ever pay."""
        if not any(self._plan(np.ones_like(self.held), users)):
            return None
        plain = sum(self.costs.passes(level, [], users) for level in range(self.depth))
        return max(_APART, math.ceil(self.costs.alone(self._widest(), users) / (_TRIES * plain)))

    def _plan(self, shares: DoubleArray, users: int) -> list[tuple[int, ...]]:
        """The best widths after 0, 1, ... levels, if of a level's drafts such `shares` hold all
        kept beams, by width."""
        left = np.zeros(self.depth + 1)
        plans: list[tuple[int, ...]] = [()] * self.depth
        for level in range(self.depth - 1, -1, -1):
            left[level] = self.costs.passes(level, [], users) + left[level + 1]
            for choices in self._choices_after(level, users):
                drafted = np.arange(len(choices.widths[0])) + level + 1
                held = shares[drafted, choices.places]
                seconds = choices.seconds + _expected(held, left[level:])
                best = int(seconds.argmin())
                if seconds[best] < left[level]:
                    left[level], plans[level] = seconds[best], choices.widths[best]
        return plans

    def _choices_after(self, level: int, users: int) -> list[Choices]:
        """Every way to draft 1, 2, ... levels of at most `rows` nodes; where there are many, of
        fewer widths."""
        if (level, users) in self._choices:
            return self._choices[level, users]
        found: list[Choices] = []
        for steps in range(1, self.depth - level):
            few = max(1, math.floor(_CHOICES ** (1 / steps)))
            grids = self.grid[level + 1 : level + steps + 1]
            some = [_spread(len(grid), few) for grid in grids]
            widths = [
                (tuple(grid[i] for grid, i in zip(grids, places, strict=True)), places)
                for places in itertools.product(*some)
            ]
            fitting = [pair for pair in widths if self._most_nodes(pair[0], level) <= self.rows]
            if fitting:
                chosen = [pair[0] for pair in fitting]
                places = np.array([pair[1] for pair in fitting], np.int64)
                seconds = self.costs.choices(level, chosen, users)
                found.append(Choices(chosen, places, seconds))
        self._choices[level, users] = found
        return found


def _spread(size: int, most: int) -> list[int]:
    """At most `most` of `size` places, the last one among them, evenly spread."""
    return sorted({size - 1 - i * size // min(most, size) for i in range(min(most, size))})


def _expected(shares: DoubleArray, left: DoubleArray) -> DoubleArray:
    """float64 `[c]`: seconds expected after passes over drafts that hold all kept beams of their
    levels with probabilities `shares` `[c, steps]`; `left`: seconds once 0, 1, ... levels more are
    decided."""
    steps = shares.shape[1]
    reached = np.cumprod(shares, axis=1)
    before = np.concatenate((np.ones((len(shares), 1)), reached[:, :-1]), axis=1)
    return (before - reached) @ left[1 : steps + 1] + reached[:, -1] * left[steps + 1]


def _needed(drafted: IntArray, kept: IntArray) -> int | None:
    """How many drafted nodes, in their order, hold all kept ones; None if not even all do."""
    places = np.flatnonzero(np.isin(drafted, kept))
    return int(places[-1]) + 1 if len(places) == len(kept) and len(places) else None
