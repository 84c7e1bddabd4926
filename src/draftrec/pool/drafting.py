"""Compiled kernel that draws draft trees: best first, from several indexes at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from draftrec.pool import contexts, ngrams, views
from draftrec.pool.blend import CANDIDATES, Candidates, Scratch, blend
from draftrec.pool.contexts import WINDOW
from draftrec.pool.ngrams import ORDER


class _Queue(NamedTuple):
    """The best nodes not yet drawn, at most as many as the tree has room for.

    `ranked` int32: slots, best first; `size` int64 `[1]`. By slot: `probs` float64, `nodes` int32
    `[slots, 3]` (place above, token, source), `at` int32 `[slots, sources, 2]`.
    """

    ranked: Any
    size: Any
    probs: Any
    nodes: Any
    at: Any


@njit(cache=True, nogil=True)
def draft(sources, wanted, settings, out):
    """One tree per sequence, each from its own sources.

    `sources`: handles int64 `[b, s, FIELDS]`, weights float64 `[b, s]`, tails int32 `[b, s, t]` and
    their lengths int32 `[b, s]` (the last tokens are used), source ids uint8 `[b, s]`. `wanted`
    int64 `[2]`: nodes and levels. `settings` float64: least path probability, then the escape
    weight of each order from 0 on. `out`: tokens, parents, probs, source ids `[b, nodes]` and
    sizes `[b]`.
    """
    handles, weights, tails, lengths, names = sources
    tokens, parents, probs, origins, sizes = out
    for b in range(len(handles)):
        trees = tokens[b], parents[b], probs[b], origins[b]
        sources_here = handles[b], weights[b], tails[b], lengths[b], names[b]
        sizes[b] = _draw(sources_here, wanted, settings, trees)


@njit(cache=True, nogil=True)
def _draw(sources, wanted, settings, out):
    """Best-first expansion of one tree; returns how many nodes it got."""
    handles, weights, tails, lengths, names = sources
    tokens, parents, probs, origins = out
    limit, depth = wanted[0], wanted[1]
    least, escape = settings[0], settings[1:]
    n = len(weights)
    places = np.empty((limit, n, ORDER + 1), np.int32)
    levels = np.empty(limit, np.int32)
    queue = _Queue(
        np.arange(limit + 1, dtype=np.int32),
        np.zeros(1, np.int64),
        np.empty(limit + 1),
        np.empty((limit + 1, 3), np.int32),
        np.empty((limit + 1, n, 2), np.int32),
    )
    candidates = Candidates(
        np.empty(CANDIDATES, np.int32),
        np.empty(CANDIDATES, np.int32),
        np.empty(CANDIDATES),
        np.empty(CANDIDATES),
        np.empty((CANDIDATES, n, 2), np.int32),
    )
    scratch = Scratch(
        np.empty((n, 8), np.int32),
        np.empty((n, WINDOW, 2), np.int32),
        np.empty((n, WINDOW, 4), np.int32),
    )
    for s in range(n):
        _first(handles[s], tails[s, : lengths[s]], places[0, s])
    levels[0] = 0
    made, place, prob = 0, 0, 1.0
    while True:
        room = limit - made
        if levels[place] < depth:
            worst = queue.probs[queue.ranked[room - 1]] if queue.size[0] == room else least
            limits = prob, max(least, worst)
            found = blend(handles, weights, places[place], escape, limits, candidates, scratch)
            for i in range(found):
                p = prob * candidates.probs[i]
                if candidates.tokens[i] >= 0 and p >= least:
                    _push(queue, room, p, place, candidates, i)
        if queue.size[0] == 0:
            return made
        top = _pop(queue)
        tokens[made], parents[made] = queue.nodes[top, 1], queue.nodes[top, 0] - 1
        probs[made], origins[made] = queue.probs[top], names[queue.nodes[top, 2]]
        made += 1
        if made == limit:
            return made
        above, place, prob = queue.nodes[top, 0], made, queue.probs[top]
        levels[place] = levels[above] + 1
        if levels[place] < depth:
            for s in range(n):
                _next(handles[s], places[above, s], queue.nodes[top, 1], queue.at[top, s],
                      places[place, s])  # fmt: skip


@njit(cache=True, nogil=True)
def _first(handle, tail, place):
    """Where a source stands at the root."""
    place[:] = -1
    if handle[0] == views.TRIE:
        ngrams.contexts(views.trie_of(handle), tail, place)
    else:
        place[1] = 0
        if handle[0] == views.CLOSED:
            place[0], place[1] = contexts.search(views.sorted_of(handle), tail)


@njit(cache=True, nogil=True)
def _next(handle, above, token, known, place):
    """Where a source stands after one more token."""
    if handle[0] == views.TRIE:
        index = views.trie_of(handle)
        for j in range(1, ORDER + 1):
            place[j] = -1
        place[0] = 0
        for j in range(ORDER):
            node = ngrams.find(index, above[j], token) if above[j] >= 0 else -1
            if node < 0:
                return  # a longer context cannot have been followed by it either
            place[j + 1] = node
        return
    place[0], place[1] = known[0], known[1]
    if handle[0] == views.CLOSED and known[1] == 0:
        index = views.sorted_of(handle)
        place[0], place[1] = contexts.step(index, np.int64(above[0]), np.int64(above[1]), token)


@njit(cache=True, nogil=True)
def _push(queue, room, prob, place, candidates, i):
    """Enter a candidate among the `room` best; of two equally good ones the earlier is better."""
    ranked, probs = queue.ranked, queue.probs
    size = min(queue.size[0], room)
    if size == room:
        if prob <= probs[ranked[size - 1]]:
            queue.size[0] = size
            return
        size -= 1
    slot = ranked[size]
    at = size
    while at > 0 and probs[ranked[at - 1]] < prob:
        ranked[at] = ranked[at - 1]
        at -= 1
    ranked[at] = slot
    probs[slot] = prob
    queue.nodes[slot, 0] = place
    queue.nodes[slot, 1], queue.nodes[slot, 2] = candidates.tokens[i], candidates.origin[i]
    for s in range(queue.at.shape[1]):
        queue.at[slot, s, 0], queue.at[slot, s, 1] = candidates.at[i, s, 0], candidates.at[i, s, 1]
    queue.size[0] = size + 1


@njit(cache=True, nogil=True)
def _pop(queue):
    """Take the best slot out; its content stays until the next push."""
    top = queue.ranked[0]
    size = queue.size[0] - 1
    for i in range(size):
        queue.ranked[i] = queue.ranked[i + 1]
    queue.ranked[size] = top
    queue.size[0] = size
    return top
