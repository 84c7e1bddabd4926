"""How far to believe a head and a pool where both speak: weights for `engine.learned.growth`.

Fitted on texts that neither has learnt from. At every place of a text the pool draws its tree as it
would for a job, the head says what it thinks along the text, and each token that one of them
proposes either comes next or does not: a logistic regression for each level, and for each way of
being proposed. So estimates are calibrated where they meet, and nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from draftrec.core import BoolArray, DoubleArray, DraftTree, IntArray, Request, Verdict
from draftrec.engine.learned.drafter import BRANCHES
from draftrec.engine.learned.growth import DEFAULT, default_weights
from draftrec.engine.text.budget import log_odds
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.store import Pool
from draftrec.train.drafter.texts import TrainingText

#: Columns of a level's weights (`growth.WEIGHTS`) that each case has: proposed by both, by the head
#: alone, by the pool alone.
_CASES = (slice(0, 3), slice(3, 6), slice(6, 8))
# Nodes of the pool's trees, their levels, and the texts that are gone along.
_NODES, _DEPTH, _TEXTS = 16, 24, 48
# What the usual weights count for, in observations of probability one half.
_PRIOR = 16.0


@dataclass(frozen=True, slots=True)
class Said:
    """What was said of tokens at one level: `inputs` float64 `[n, 3]`, a case's columns (the rest
    zero), `cases` `[n]`, and whether the text went on so, bool `[n]`."""

    inputs: DoubleArray
    cases: IntArray
    came: BoolArray


def said_of(
    tree: DraftTree, probs: DoubleArray, tokens: IntArray, known: IntArray, text: IntArray
) -> list[Said]:
    """What a pool's `tree` and a head said of how a text goes on, level by level.

    `probs` float64 `[levels, V]`: the head's, along the text, over draft `tokens` int32 `[V]`;
    `known` int32 `[vocabulary]`: their numbers, -1 for others; `text` int32: what came.
    """
    found: list[Said] = []
    node = -1
    for level in range(min(len(probs), len(text))):
        below = np.flatnonzero(tree.parents == node) if node > -2 else np.empty(0, np.int64)
        over = float(tree.probs[node]) if node >= 0 else 1.0
        ids = tree.token_ids[below]
        given = tree.probs[below] / over
        numbers = np.where(ids < len(known), known[np.minimum(ids, len(known) - 1)], -1)
        both = numbers >= 0
        q = np.where(both, probs[level, np.maximum(numbers, 0)], 0.5)
        rows = [np.stack([np.ones(len(ids)), log_odds(given), np.where(both, log_odds(q), 0)], 1)]
        own = np.argpartition(-probs[level], min(BRANCHES, len(tokens)) - 1)[:BRANCHES]
        own = own[~np.isin(tokens[own], ids)]
        left = np.full(len(own), 1.0 - given.sum())
        rows.append(np.stack([np.ones(len(own)), log_odds(probs[level, own]), log_odds(left)], 1))
        cases = np.concatenate([np.where(both, 0, 2), np.ones(len(own), np.int64)])
        came = np.concatenate([ids, tokens[own]]) == text[level]
        found.append(Said(np.concatenate(rows), cases.astype(np.int32), came))
        on = below[ids == text[level]]
        node = int(on[0]) if len(on) else -2
    return found


def mixture_of(
    taught: Seq[TrainingText],
    held_out: Seq[tuple[TrainingText, Callable[[], DoubleArray]]],
    tokens: IntArray,
    levels: int,
) -> DoubleArray:
    """float64 `[levels, 8]` for a pool of the `taught` texts, from `held_out` ones and what
    the head says along each, float64 `[levels, n, V]`: row i of a level is about its token i."""
    pool = Pool("")
    pool.add((it.ids[it.first :], None) for it in taught)
    known = np.full(1 + max(int(tokens.max()), *(int(it.ids.max()) for it in taught)), -1, np.int32)
    known[tokens] = np.arange(len(tokens), dtype=np.int32)

    def said() -> Iterator[list[Said]]:
        for text, probs in held_out[:_TEXTS]:
            yield from _said_along(PoolDrafter(pool), text, probs(), tokens, known)

    return fit_mixture(said(), levels)


def _said_along(
    drafter: PoolDrafter, text: TrainingText, probs: DoubleArray, tokens: IntArray, known: IntArray
) -> Iterator[list[Said]]:
    """What is said after every token of a text but the last."""
    along = _Along(Request(text.entity_id, text.ids[: text.first]), text.ids)
    drafter.start(along)
    nothing = np.empty(0, np.int32)
    for at in range(text.first + 1, len(text.ids)):
        along.length = at
        drafter.observe([along], [Verdict(nothing, text.ids[at - 1 : at])])
        tree = drafter.draft([along], _NODES, _DEPTH)[0]
        first = at - text.first
        rows = [level[first + i] for i, level in enumerate(probs) if first + i < len(level)]
        yield said_of(tree, np.stack(rows), tokens, known, text.ids[at:])
    drafter.stop(along)


@dataclass(eq=False, slots=True)
class _Along:
    """A text under way as a drafter sees it: its first `length` tokens."""

    request: Request
    ids: IntArray
    length: int = 0
    slot: int = 0
    noise: int | None = None

    @property
    def context(self) -> IntArray:
        return self.ids[: self.length]

    @property
    def room(self) -> int:
        return len(self.ids) - self.length

    @property
    def computed(self) -> int:
        return self.length - 1


def fit_mixture(said: Iterable[list[Said]], levels: int) -> DoubleArray:
    """float64 `[levels, 8]` from what was said at many places."""
    by_level: list[list[Said]] = [[] for _ in range(levels)]
    for place in said:
        for level, found in enumerate(place[:levels]):
            by_level[level].append(found)
    weights = default_weights(levels)
    for level, found in enumerate(by_level):
        if not found:
            continue
        inputs = np.concatenate([s.inputs for s in found])
        cases, came = (np.concatenate([getattr(s, n) for s in found]) for n in ("cases", "came"))
        for case, columns in enumerate(_CASES):
            usual = DEFAULT[columns]
            chosen = inputs[cases == case][:, : len(usual)]
            weights[level, columns] = _regression(chosen, came[cases == case], usual)
    return weights


def _regression(inputs: DoubleArray, came: BoolArray, usual: DoubleArray) -> DoubleArray:
    """Logistic regression by Newton's method, drawn towards the `usual` weights."""
    weights = usual.copy()
    if not len(inputs):
        return weights
    prior = 0.25 * _PRIOR * np.eye(len(usual))

    def loss(w: DoubleArray) -> float:
        z = inputs @ w
        off = w - usual
        return float((np.logaddexp(0.0, z) - came * z).sum() + 0.5 * off @ prior @ off)

    here = loss(weights)
    for _ in range(100):
        p = 1.0 / (1.0 + np.exp(-(inputs @ weights)))
        slope = inputs.T @ (came - p) - prior @ (weights - usual)
        curve = (inputs * (p * (1 - p))[:, None]).T @ inputs + prior
        step = np.linalg.solve(curve, slope)
        while (there := loss(weights + step)) > here and np.abs(step).max() > 1e-9:
            step = step / 2  # far from the optimum, the parabola leads astray
        weights, gained, here = weights + step, here - there, there
        if gained < 1e-6 * max(1.0, here):
            break
    return weights
