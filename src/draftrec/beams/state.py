"""One user's search under way: the beams the target has kept, and what was drafted below them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from draftrec.beams import select
from draftrec.beams.scored import Scored
from draftrec.beams.tree import BeamTree
from draftrec.beams.values import BeamRequest, Beams
from draftrec.core import DoubleArray, IntArray, LongArray


@dataclass(frozen=True, eq=False, slots=True)
class Kept:
    """Beams of one level, best first: `nodes` int32 `[k]`, `scores` float64 `[k]`, `ranks` int64
    `[k]` (their order by token path, which settles ties), `noise` float64 `[k]`: the perturbed
    scores of a sampled search, the scores themselves otherwise.
    """

    nodes: IntArray
    scores: DoubleArray
    ranks: LongArray
    noise: DoubleArray


ROOT = Kept(np.array([-1], np.int32), np.zeros(1), np.zeros(1, np.int64), np.zeros(1))

#: Scores what follows beams: (who rates, the beams) -> spans int64 `[b, 2]` of the candidates, then
#: of all candidates one after another float64 scores and what they are chosen by.
Spread = Callable[[Scored, Kept], tuple[LongArray, DoubleArray, DoubleArray]]


@dataclass(eq=False, slots=True)
class UserSearch:
    """`level` levels are decided; `kept` are the target's own beams there.

    `levels` holds what was drafted for the levels after it, in the order in which a narrower draft
    would have had them; `trail` the beams that the target kept at these levels, as far as the last
    pass went. `began` is the clock's reading when the user got a slot.
    """

    order: int
    request: BeamRequest
    tree: BeamTree
    target: Scored
    kept: Kept = ROOT
    level: int = 0
    levels: list[IntArray] = field(default_factory=list[IntArray])
    trail: list[IntArray] = field(default_factory=list[IntArray])
    target_calls: int = 0
    draft_calls: int = 0
    drafted: int = 0
    accepted_steps: int = 0
    began: float = field(default_factory=time.perf_counter)

    @property
    def done(self) -> bool:
        """Are all levels decided, or is nothing legal?"""
        return self.level == self.tree.paths.shape[1] or not len(self.kept.nodes)

    def settle(self, kept: Kept) -> None:
        """Decide the next level."""
        self.kept = kept
        self.trail.append(kept.nodes)
        self.level += 1

    def result(self) -> Beams:
        """The kept beams as an answer, best first."""
        order = np.lexsort((self.kept.ranks, -self.kept.scores))
        nodes = self.kept.nodes[order]
        return Beams(
            self.request.key,
            self.tree.token_paths(nodes),
            self.tree.places[nodes],
            self.kept.scores[order],
            self.target_calls,
            self.accepted_steps,
            self.draft_calls,
            self.drafted,
        )


def plain(scored: Scored, kept: Kept) -> tuple[LongArray, DoubleArray, DoubleArray]:
    """Summed log-probabilities, by which beam search chooses."""
    spans = scored.spans_of(kept.nodes)
    scores = scored.summed(spans, kept.scores)
    return spans, scores, scores


def pick(spread: Spread, scored: Scored, kept: Kept, most: int) -> Kept:
    """The `most` best continuations of `kept`: one step of beam search."""
    spans, scores, noise = spread(scored, kept)
    chosen = select.best(spans, kept.ranks, scored.tokens, noise, most)
    return grown(scored, kept, chosen, (scores, noise))


def grown(
    scored: Scored, kept: Kept, chosen: LongArray, values: tuple[DoubleArray, DoubleArray]
) -> Kept:
    """The chosen continuations (see `select.best`) as nodes of the tree, with their scores and
    noise out of those of all candidates."""
    beams, candidates, at = chosen.T
    tokens = scored.tokens[candidates]
    nodes = scored.tree.add(kept.nodes[beams], tokens, scored.places[candidates])
    ranks = np.empty(len(nodes), np.int64)
    ranks[np.lexsort((tokens, kept.ranks[beams]))] = np.arange(len(nodes))
    return Kept(nodes, values[0][at], ranks, values[1][at])
