"""Compiled kernel that estimates the next token at one place of a draft tree.

Orders are interpolated from long to short, each with escape mass in proportion to the number of
different continuations seen (method C of prediction by partial matching, as a blend over all
sources at once). Orders that occurred at the same places say the same thing, so they are dealt with
in one step: the work follows the number of different runs of places, not the order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from draftrec.pool import contexts, ngrams, views
from draftrec.pool.ngrams import ORDER
from draftrec.pool.suffix_sort import REACH
from draftrec.pool.suffix_states import FIRST, FOLLOWS, KINDS, LENGTH, MANY, PARENT

#: Most candidates per place.
CANDIDATES = 32
# Continuations read per context of a trie, most frequent first.
_FANOUT = 12
# What the shorter orders may still say when they are left out.
_REST = 0.01

# Columns of `Scratch.source`, one row per source: the longest order it knows and the order down to
# which that was counted; how often anything followed, and how many tokens; the state (closed) or
# node (trie) that says so, -1 for neighbours; the order from which states speak; neighbours found,
# neighbours counted, and different tokens among them.
_TOP, _TOTAL, _KINDS, _STATE, _FLOOR, _FOUND, _USED, _TOKENS = range(8)


class Candidates(NamedTuple):
    """Next tokens: `tokens`, `origin` int32 `[CANDIDATES]`, `probs`, `share` float64 (share: the
    most that one source said at once), `at` int32 `[CANDIDATES, sources, 2]`: rank and length of
    the context each ends in its closed source, length 0 where unknown.
    """

    tokens: Any
    origin: Any
    probs: Any
    share: Any
    at: Any


class Scratch(NamedTuple):
    """Room to work in: `source` int32 `[sources, 8]`, `near` int32 `[sources, WINDOW, 2]` (rank,
    tokens shared), `counted` int32 `[sources, WINDOW, 4]` (token, count, rank, length).
    """

    source: Any
    near: Any
    counted: Any


@njit(cache=True, nogil=True)
def blend(handles, weights, place, escape, limits, candidates, scratch):  # noqa: PLR0913
    """Fill `candidates` for one place of the tree; returns how many.

    `place` int32 `[sources, ORDER + 1]`: a trie's nodes by order, or rank and length. `escape`
    float64 `[REACH + 1]`. `limits`: the path's probability, and the least worth having.
    """
    source = scratch.source
    order = 0
    for s in range(len(weights)):
        source[s, _TOP] = _begin(handles[s], place[s], source[s], scratch.near[s])
        order = max(order, source[s, _TOP])
    found = 0
    residual = 1.0
    while order > 0 and residual > _REST and residual * limits[0] > limits[1]:
        total, kinds, below = 0.0, 0.0, 0
        for s in range(len(weights)):
            until = _look(handles[s], place[s], order, source[s], scratch.near[s],
                          scratch.counted[s])  # fmt: skip
            below = max(below, until)
            total += weights[s] * source[s, _TOTAL]
            kinds += weights[s] * source[s, _KINDS]
        if total > 0.0:
            rest = 1.0
            for j in range(below + 1, order + 1):
                rest *= escape[j] * kinds / (total + escape[j] * kinds)
            for s in range(len(weights)):
                if source[s, _TOTAL] > 0:
                    gain = residual * (1.0 - rest) * weights[s] / total
                    found = _add(handles[s], s, gain, found, candidates, source[s],
                                 scratch.counted[s])  # fmt: skip
            residual *= rest
        order = below
    return found


@njit(cache=True, nogil=True, inline="always")
def _begin(handle, place, source, near):
    """Prepare a source; returns the longest order it knows."""
    if handle[0] == views.TRIE:
        order = ORDER
        while order > 0 and place[order] < 0:
            order -= 1
        return order
    if handle[0] != views.CLOSED or place[1] == 0:
        return 0
    index = views.sorted_of(handle)
    rank, length = np.int64(place[0]), np.int64(place[1])
    state = contexts.state_of(index, rank, length)
    floor = min(np.int64(index.states[state, LENGTH]), length) if state >= 0 else 0
    source[_STATE], source[_FLOOR] = state, floor
    source[_USED], source[_TOKENS], source[_FOUND] = 0, 0, 0
    if floor < length:
        source[_FOUND] = contexts.neighbours(index, rank, length, floor, near)
        source[_TOTAL] = source[_KINDS] = 0
    return length


@njit(cache=True, nogil=True, inline="always")
def _look(handle, place, order, source, near, counted):
    """What a source counted at an order; returns the next shorter one that may say otherwise."""
    if order > source[_TOP]:
        source[_TOTAL] = source[_KINDS] = 0
        return np.int64(source[_TOP])
    if handle[0] == views.TRIE:
        return _look_trie(views.trie_of(handle), place, order, source)
    index = views.sorted_of(handle)
    if order > source[_FLOOR]:
        return _look_near(index, order, source, near, counted)
    state = source[_STATE]
    outer = index.states[state, PARENT]
    while outer >= 0 and index.states[outer, LENGTH] >= order:
        state, outer = outer, index.states[outer, PARENT]
    source[_STATE] = state
    source[_FOUND] = -1
    source[_TOTAL] = index.states[state, FOLLOWS]
    source[_KINDS] = index.states[state, KINDS]
    return np.int64(index.states[outer, LENGTH]) if outer >= 0 else 0


@njit(cache=True, nogil=True)
def _look_trie(index, place, order, source):
    node = place[order]
    source[_STATE] = node
    source[_TOTAL] = index.nodes[node, ngrams.FOLLOWS]
    source[_KINDS] = index.nodes[node, ngrams.KINDS]
    below = order - 1
    while (
        below > 0
        and index.nodes[place[below], ngrams.FOLLOWS] == source[_TOTAL]
        and index.nodes[place[below], ngrams.KINDS] == source[_KINDS]
    ):
        below -= 1
    return below


@njit(cache=True, nogil=True)
def _look_near(index, order, source, near, counted):
    """Count the neighbours that share at least `order` tokens, on top of those that share more."""
    used, tokens = source[_USED], source[_TOKENS]
    while used < source[_FOUND] and near[used, 1] >= order:
        rank = near[used, 0]
        token, onward = index.follows[rank, 0], index.follows[rank, 1]
        if onward >= 0:
            i = 0
            while i < tokens and counted[i, 0] != token:
                i += 1
            if i == tokens:
                counted[i, 0], counted[i, 1], counted[i, 2] = token, 0, onward
                counted[i, 3] = min(near[used, 1] + 1, REACH)
                tokens += 1
            counted[i, 1] += 1
            source[_TOTAL] += 1
        used += 1
    source[_USED], source[_TOKENS], source[_KINDS] = used, tokens, tokens
    return np.int64(near[used, 1] if used < source[_FOUND] else source[_FLOOR])


@njit(cache=True, nogil=True, inline="always")
def _add(handle, s, gain, found, candidates, source, counted):  # noqa: PLR0913
    """Give a source's continuations their shares; returns how many candidates there are now."""
    if handle[0] == views.TRIE:
        nodes = views.trie_of(handle).nodes
        child = nodes[source[_STATE], ngrams.CHILD]
        looked = 0
        while child >= 0 and looked < _FANOUT:
            share = gain * nodes[child, ngrams.COUNT]
            found = _credit(candidates, found, nodes[child, ngrams.TOKEN], share, s, 0, 0)
            child = nodes[child, ngrams.AFTER]
            looked += 1
        return found
    if source[_FOUND] >= 0:
        for i in range(source[_TOKENS]):
            token, rank, length = counted[i, 0], counted[i, 2], counted[i, 3]
            share = gain * counted[i, 1]
            found = _credit(candidates, found, token, share, s, rank, length)
        return found
    index = views.sorted_of(handle)
    state = source[_STATE]
    # A context shorter than its state's is known to share its own tokens only.
    length = min(index.states[state, LENGTH], source[_FLOOR]) + 1
    length = min(length, REACH)
    first = index.states[state, FIRST]
    for i in range(first, first + index.states[state, MANY]):
        token, rank = index.children[i, 0], index.children[i, 2]
        share = gain * index.children[i, 1]
        found = _credit(candidates, found, token, share, s, rank, length)
    return found


@njit(cache=True, nogil=True)
def _credit(candidates, found, token, share, s, rank, length):  # noqa: PLR0913
    """Add to a candidate's probability; the longest context that knew it says where it leads."""
    i = 0
    while i < found and candidates.tokens[i] != token:
        i += 1
    if i == found:
        if found == CANDIDATES:
            return found
        candidates.tokens[i] = token
        candidates.probs[i] = candidates.share[i] = 0.0
        for other in range(candidates.at.shape[1]):
            candidates.at[i, other, 1] = 0
        found += 1
    candidates.probs[i] += share
    if share > candidates.share[i]:
        candidates.share[i] = share
        candidates.origin[i] = s
    if length > candidates.at[i, s, 1]:
        candidates.at[i, s, 0], candidates.at[i, s, 1] = rank, length
    return found
