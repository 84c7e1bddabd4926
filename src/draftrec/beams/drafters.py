"""Who drafts beams: nobody, or a smaller model (`items` has the drafters that need none).

A drafter writes `search.levels`: for each level after the one decided, nodes of the user's tree in
the order in which a narrower draft would have had them.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

import numpy as np

from draftrec.beams import select
from draftrec.beams.model import BeamModel
from draftrec.beams.pace import Pace, whole
from draftrec.beams.scored import Scored
from draftrec.beams.state import Kept, Spread, UserSearch, grown, plain
from draftrec.core import IntArray


class BeamDrafter(Protocol):
    """The lifecycle of a search is start, (draft, observe)*, stop."""

    @property
    def most_rows(self) -> int:
        """Most rows that one draft adds to the target's pass, for one user."""
        ...

    def reserve(self, slots: int, longest: int) -> None:
        """Make room for `slots` users whose prompts have at most `longest` tokens."""
        ...

    def start(self, search: UserSearch) -> None: ...

    def draft(self, running: Seq[UserSearch]) -> None:
        """Set `levels` of every search."""
        ...

    def observe(self, running: Seq[UserSearch]) -> None:
        """The target has decided: `level` and `kept` are new, `levels` still what was drafted."""
        ...

    def stop(self, search: UserSearch) -> None: ...


class NoBeamDrafter:
    """Drafts nothing: plain beam search."""

    most_rows = 0

    def reserve(self, slots: int, longest: int) -> None:
        """Nothing to make room for."""

    def start(self, search: UserSearch) -> None:
        """Nothing to prepare."""

    def draft(self, running: Seq[UserSearch]) -> None:
        """No levels."""

    def observe(self, running: Seq[UserSearch]) -> None:
        """Nothing to learn."""

    def stop(self, search: UserSearch) -> None:
        """Nothing to forget."""


class ModelDrafter:
    """A smaller model of the same vocabulary runs its own, wider beam search from the target's
    beams on (AtSpeed's N-to-K drafts).

    Its `kept` best beams (K) are always among those drafted, so that a draft model that agrees with
    the target is always accepted: the N best alone need not hold the ancestors of the K best. A
    level of few enough continuations is drafted whole.
    """

    def __init__(self, model: BeamModel, kept: int, pace: Pace, spread: Spread = plain) -> None:
        self.model, self.kept, self.pace, self.spread = model, kept, pace, spread
        self._users: dict[int, Scored] = {}

    @property
    def most_rows(self) -> int:
        return self.model.constraint.levels * whole(self.pace.most)

    def reserve(self, slots: int, longest: int) -> None:
        rows = self.model.constraint.levels * (self.kept + whole(self.pace.most))
        self.model.target.reserve(slots, longest + rows)

    def start(self, search: UserSearch) -> None:
        self._users[search.order] = Scored(search.target.slot, search.request, search.tree)

    def draft(self, running: Seq[UserSearch]) -> None:
        """Level by level, one pass of the draft model over all users for each."""
        self._drop_rows(running)
        plans = {s.order: self.pace.widths(s) for s in running}
        ahead = {s.order: (s.kept, len(s.kept.nodes)) for s in running}
        for s in running:
            s.levels = []
        for step in range(max(map(len, plans.values()), default=0)):
            active = [s for s in running if len(plans[s.order]) > step]
            self._rate(active, {s.order: ahead[s.order][0].nodes for s in active})
            for s in active:
                wide, inner = self._widened(s, *ahead[s.order], plans[s.order][step])
                ahead[s.order] = wide, inner
                s.levels.append(wide.nodes)

    def observe(self, running: Seq[UserSearch]) -> None:
        self.pace.observe(running)

    def stop(self, search: UserSearch) -> None:
        del self._users[search.order]

    def _rate(self, active: Seq[UserSearch], nodes: dict[int, IntArray]) -> None:
        work: list[tuple[Scored, IntArray]] = []
        for s in active:
            scored, frontier = self._users[s.order], nodes[s.order]
            self.model.learn_forced(scored, frontier[frontier >= 0])
            missing = scored.missing(frontier)
            if len(missing) or not scored.started:
                work.append((scored, missing))
                s.draft_calls += 1
        self.model.rate(work)

    def _widened(self, s: UserSearch, kept: Kept, inner: int, width: int) -> tuple[Kept, int]:
        """The next level, and how many of its first nodes are the draft model's own K beams."""
        scored = self._users[s.order]
        spans, scores, noise = self.spread(scored, kept)
        if len(scores) <= whole(width):
            width = len(scores)
        wide = select.best(spans, kept.ranks, scored.tokens, noise, width)
        own = select.best(spans[:inner], kept.ranks, scored.tokens, noise, min(self.kept, width))
        others = wide[~np.isin(wide[:, 1], own[:, 1])]
        chosen = np.concatenate((own, others))[:width]
        return grown(scored, kept, chosen, (scores, noise)), len(own)

    def _drop_rows(self, running: Seq[UserSearch]) -> None:
        """Cached rows of beams that the target did not keep make room for new ones."""
        moves: list[tuple[int, int, int]] = []
        for s in running:
            if s.level:
                moves += self._users[s.order].forget(s.tree.closure(s.kept.nodes))
        self.model.move(moves)
