"""One tree from two opinions: a head's tokens and another drafter's compete in compiled loops.

Trees of a batch grow together in flat arrays. A node that the head has looked at gets its children
from both: what both propose becomes one node, whose probability given its parent is a logistic
mixture of the two estimates, with weights that were fitted to what texts did
(`models.drafters`). Adding or averaging would count the same evidence twice, or half. Where texts
are sampled, the noise that the target draws by then says which of its children comes
(`engine.noise`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from draftrec.core import DoubleArray
from draftrec.engine.noise import place_of, weigh

#: Columns of the weights of a level. Proposed by both: constant, other's log-odds, head's. By the
#: head alone: constant, its log-odds, and those of what the other has left over. By the other
#: alone, a token that the head does not know: constant, its log-odds.
WEIGHTS = 8
DEFAULT = np.array([0.0, 0.5, 0.7, 0.0, 1.0, 0.35, -1.0, 0.8])
#: How far the noise is believed, as `noise.BELIEF` for a pool alone.
BELIEF = 0.8


class Drawn(NamedTuple):
    """What the texts of `B` sequences are drawn by: `noise` uint64 `[B]`, and `start` int64 `[B]`,
    the place in its text of the next token. Both empty where texts are not drawn."""

    noise: Any
    start: Any


NOT_DRAWN = Drawn(np.empty(0, np.uint64), np.empty(0, np.int64))


class Growth(NamedTuple):
    """Trees of `B` sequences with room for `M` nodes each, parents before children.

    int32 `[B, M]`: `tokens`, `parents` (-1: the root), `looked` (the how manieth node that the head
    looked at, -1: not yet), `sources`, as in `DraftTree`, `depths`, `levels` (that at which the
    head proposed it, -1: it did not). float64 `[B, M]`: `blind`, the
    probability given the parent for those who do not see the noise, `given`, the same for those who
    do, `probs`, that of the path. int32 `[B]`: `sizes`, `seen` (nodes
    looked at), `others` (first nodes, the other drafter's).
    """

    tokens: Any
    parents: Any
    looked: Any
    sources: Any
    depths: Any
    levels: Any
    blind: Any
    given: Any
    probs: Any
    sizes: Any
    seen: Any
    others: Any

    @classmethod
    def room(cls, sequences: int, nodes: int) -> Growth:
        marks = np.full((6, sequences, nodes), -1, np.int32)
        probs, counts = np.zeros((3, sequences, nodes)), np.zeros((3, sequences), np.int32)
        return cls(*marks, *probs, *counts)


@njit(cache=True, nogil=True)
def plant(  # noqa: PLR0913
    growth: Any, b: int, tokens: Any, parents: Any, probs: Any, sources: Any, drawn: Any
) -> None:
    """Begin tree `b` with the other drafter's, as in `DraftTree`, drawn without the noise."""
    for i in range(len(tokens)):
        above = parents[i]
        growth.tokens[b, i], growth.parents[b, i] = tokens[i], above
        growth.sources[b, i], growth.looked[b, i] = sources[i], -1
        growth.depths[b, i] = growth.depths[b, above] + 1 if above >= 0 else 0
        over = probs[above] if above >= 0 else 1.0
        growth.blind[b, i] = growth.given[b, i] = probs[i] / over if over > 0.0 else 0.0
    growth.sizes[b] = growth.others[b] = len(tokens)
    growth.seen[b] = 0
    if len(drawn.noise):
        for node in range(-1, len(tokens)):
            _weigh(growth, b, node, drawn)
    _follow(growth, b)


@njit(cache=True, nogil=True)
def questions(growth: Any, rows: Any, known: Any) -> Any:
    """What to ask of the head's logits beside its own best: int64 `[q, 2]`, row and draft token of
    the other's nodes below the `rows` int64 `[n, 2]` (sequence, node or -1) that the head knows.
    `known` int32 `[vocabulary]`: a token's number among the head's, -1 for none."""
    found = np.empty((growth.tokens.shape[1] * len(rows), 2), np.int64)
    count = 0
    for row in range(len(rows)):
        b, node = rows[row]
        for i in range(max(node, 0), growth.others[b]):
            if growth.parents[b, i] == node and known[growth.tokens[b, i]] >= 0:
                found[count, 0], found[count, 1] = row, known[growth.tokens[b, i]]
                count += 1
    return found[:count]


@njit(cache=True, nogil=True)
def join(  # noqa: PLR0913
    growth: Any, rows: Any, known: Any, tokens: Any, best: Any, asked: Any, weights: Any,
    mark: Any, drawn: Any,
) -> None:  # fmt: skip
    """Give the nodes of `rows` their children.

    `tokens` int32 `[n, k]` and `best` float64 `[n, k]`: the head's likeliest tokens and their
    probabilities; `asked` float64 `[q]`: those of `questions`; `weights` float64 `[levels,
    WEIGHTS]`; `mark`: the head's number among sources, and that of this look.
    """
    answer = 0
    for row in range(len(rows)):
        b, node = rows[row]
        depth = growth.depths[b, node] + 1 if node >= 0 else 0
        mixture = weights[min(depth, len(weights) - 1)]
        left = 1.0
        for i in range(max(node, 0), growth.others[b]):
            if growth.parents[b, i] == node:
                left -= growth.blind[b, i]
        for i in range(max(node, 0), growth.others[b]):
            if growth.parents[b, i] == node:
                its = known[growth.tokens[b, i]] >= 0
                said = asked[answer] if its else -1.0
                answer += 1 if its else 0
                growth.blind[b, i] = _mixed(mixture, growth.blind[b, i], said)
        for j in range(tokens.shape[1]):
            i = growth.sizes[b]
            if i < growth.tokens.shape[1] and not _has(growth, b, node, tokens[row, j]):
                growth.tokens[b, i], growth.parents[b, i] = tokens[row, j], node
                growth.depths[b, i], growth.looked[b, i] = depth, -1
                growth.sources[b, i], growth.levels[b, i] = mark
                growth.blind[b, i] = _alone(mixture, best[row, j], left)
                growth.sizes[b] += 1
        _weigh(growth, b, node, drawn)
    for b in range(len(growth.sizes)):
        _follow(growth, b)


@njit(cache=True, nogil=True, inline="always")
def _mixed(mixture: Any, other: float, said: float) -> float:
    """The probability of a token that the other drafter estimates so, and the head so (negative:
    it does not know the token)."""
    if said < 0.0:
        return _sigmoid(mixture[6] + mixture[7] * _log_odds(other))
    return _sigmoid(mixture[0] + mixture[1] * _log_odds(other) + mixture[2] * _log_odds(said))


@njit(cache=True, nogil=True, inline="always")
def _alone(mixture: Any, said: float, left: float) -> float:
    """The same of a token that the head alone proposes, where the other has so much left over."""
    return _sigmoid(mixture[3] + mixture[4] * _log_odds(said) + mixture[5] * _log_odds(left))


@njit(cache=True, nogil=True)
def _weigh(growth: Any, b: int, node: int, drawn: Any) -> None:
    """What the children of a node are given: 1 together at most, the noise considered."""
    children = np.empty(growth.tokens.shape[1], np.int64)
    count, total = 0, 0.0
    for i in range(max(node, 0), growth.sizes[b]):
        if growth.parents[b, i] == node:
            children[count] = i
            count += 1
            total += growth.blind[b, i]
    given, tokens = np.empty(count), np.empty(count, np.int64)
    for c in range(count):
        given[c] = growth.blind[b, children[c]] / max(total, 1.0)
        tokens[c] = growth.tokens[b, children[c]]
    if len(drawn.noise):
        depth = growth.depths[b, node] + 1 if node >= 0 else 0
        place = place_of(drawn.noise[b], drawn.start[b] + depth)
        weigh(given, tokens, 1.0 - total, place, BELIEF, 1.0)
    for c in range(count):
        growth.given[b, children[c]] = given[c]


@njit(cache=True, nogil=True)
def _follow(growth: Any, b: int) -> None:
    """What paths are given, from what their nodes are."""
    for i in range(growth.sizes[b]):
        above = growth.parents[b, i]
        over = growth.probs[b, above] if above >= 0 else 1.0
        growth.probs[b, i] = over * growth.given[b, i]


@njit(cache=True, nogil=True)
def chosen(growth: Any, b: int, most: int, limit: int, depth: int) -> Any:
    """int64 `[c]`: at most `most` nodes that the head should look at next, the likeliest whose
    parents it has looked at and that would be among the `limit` best, above `depth`. They are
    numbered as looked at."""
    size = growth.sizes[b]
    order = np.argsort(-growth.probs[b, :size], kind="mergesort")
    found = np.empty(most, np.int64)
    count = 0
    for i in order[:limit]:
        above = growth.parents[b, i]
        ready = growth.looked[b, i] < 0 and (above < 0 or growth.looked[b, above] >= 0)
        if ready and growth.depths[b, i] + 1 < depth:
            found[count] = i
            count += 1
            if count == most:
                break
    found = np.sort(found[:count])
    for i in found:
        growth.looked[b, i] = growth.seen[b]
        growth.seen[b] += 1
    return found


@njit(cache=True, nogil=True)
def best(growth: Any, b: int, limit: int) -> Any:
    """int64 `[n]`: the `limit` likeliest nodes, in order; with each its ancestors, which are never
    less likely and come before."""
    size = growth.sizes[b]
    order = np.argsort(-growth.probs[b, :size], kind="mergesort")
    return np.sort(order[:limit])


@njit(cache=True, nogil=True, inline="always")
def _has(growth: Any, b: int, node: int, token: int) -> bool:
    for i in range(max(node, 0), growth.sizes[b]):
        if growth.parents[b, i] == node and growth.tokens[b, i] == token:
            return True
    return False


@njit(cache=True, nogil=True, inline="always")
def _log_odds(p: float) -> float:
    p = min(max(p, 1e-4), 1.0 - 1e-4)
    return np.log(p / (1.0 - p))


@njit(cache=True, nogil=True, inline="always")
def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + np.exp(-x))


def default_weights(levels: int) -> DoubleArray:
    """float64 `[levels, WEIGHTS]` where none were fitted."""
    return np.tile(DEFAULT, (levels, 1))
