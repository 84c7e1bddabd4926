"""Compiled kernel that draws draft trees: best first, from several indexes at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from draftrec.engine.noise import BELIEF, place_of, weigh
from draftrec.pool import ngrams, suffixes, views
from draftrec.pool.blend import PLACE, RANK, SPAN, TOP, blend, make_room
from draftrec.pool.ngrams import ORDER
from draftrec.pool.views import inlined, kernel

# Columns of a queued node: the place above it, its token, the source that said most.
_ABOVE, _TOKEN, _SOURCE = range(3)


#: How much of what estimates leave to tokens that they do not have counts beside the noise; chosen
#: with `noise.BELIEF`.
UNSEEN = 0.6


class _Queue(NamedTuple):
    """The best nodes not yet drawn, at most as many as the tree has room for.

    Entries `ends[0]` to `ends[1]` of `keys` float64 (path probabilities) and `slots` int32 are in
    use, the best one last. By slot: `nodes` int32 `[slots, 3]`, `leads` int32 `[slots, sources, 2]`
    as in `room.Room`; `free` int32: slots not in use, `ends[2]` of them.
    """

    keys: Any
    slots: Any
    free: Any
    ends: Any
    nodes: Any
    leads: Any


@njit(cache=True, nogil=True)
def draft(sources, noise, wanted, settings, out):
    """One tree per sequence, each from its own sources.

    `sources`: handles int64 `[b, s, FIELDS]`, weights float64 `[b, s]`, tails int32 `[b, s, t]` and
    their lengths int32 `[b, s]` (the last tokens are used), source ids uint8 `[b, s]`. `noise`:
    what each text is drawn by, uint64 `[b]`, and its next place, int64 `[b]`, -1 where it is not.
    `wanted` int64 `[2]`: nodes and levels. `settings` float64: least path probability, as how many
    observations a source counts at most, then the escape weight of each order from 0 on. `out`:
    tokens, parents, probs, source ids `[b, nodes]` and sizes `[b]`.
    """
    handles, weights, tails, lengths, names = sources
    tokens, parents, probs, origins, sizes = out
    limit, n = wanted[0], weights.shape[1]
    room, queue = make_room(n), _make_queue(limit, n)
    places, levels = np.empty((limit, n, PLACE), np.int32), np.empty(limit, np.int32)
    for b in range(len(handles)):
        for s in range(n):
            _first(handles[b], s, tails[b, s, : lengths[b, s]], places, room.ids)
        trees = tokens[b], parents[b], probs[b], origins[b]
        known = handles[b], weights[b], names[b], noise[0][b], noise[1][b]
        sizes[b] = _draw(known, wanted, settings, (room, queue, places, levels), trees)


@njit(cache=True, nogil=True)
def _make_queue(limit, n):
    return _Queue(
        np.empty(2 * limit + 2),
        np.empty(2 * limit + 2, np.int32),
        np.empty(limit + 1, np.int32),
        np.zeros(3, np.int64),
        np.empty((limit + 1, 3), np.int32),
        np.empty((limit + 1, n, 2), np.int32),
    )


@kernel
def _draw(sources, wanted, settings, work, out):
    """Best-first expansion of one tree; returns how many nodes it got."""
    handles, weights, names, drawn_by, start = sources
    room, queue, places, levels = work
    tokens, parents, probs, origins = out
    limit, depth = wanted[0], wanted[1]
    least, most, escape = settings[0], settings[1], settings[2:]
    n = len(weights)
    _empty(queue, limit)
    levels[0] = 0
    made, place, prob = 0, 0, 1.0
    while True:
        space = limit - made
        if levels[place] < depth:
            _shorten(queue, space)
            # A token that is unlikely by itself may be the one that is drawn.
            worth = max(least, _worst(queue, space)) if start < 0 else least
            limits = prob, worth, most
            found = blend(handles, weights, places, place, escape, limits, room)
            if start >= 0:
                probs_here = room.probs[:found]
                rest = UNSEEN * (1.0 - probs_here.sum())
                here = place_of(drawn_by, start + levels[place])
                weigh(probs_here, room.tokens, rest, here, BELIEF, 1.0)
            for i in range(found):
                p = prob * room.probs[i]
                if room.tokens[i] >= 0 and p >= least:
                    _push(queue, space, p, place, room, i)
        if queue.ends[0] == queue.ends[1]:
            return made
        queue.ends[1] -= 1
        slot = queue.slots[queue.ends[1]]
        above, token = queue.nodes[slot, _ABOVE], queue.nodes[slot, _TOKEN]
        prob = queue.keys[queue.ends[1]]
        tokens[made], parents[made] = token, above - 1
        probs[made], origins[made] = prob, names[queue.nodes[slot, _SOURCE]]
        made += 1
        if made == limit:
            return made
        place = made
        levels[place] = levels[above] + 1
        if levels[place] < depth:
            for s in range(n):
                _next(handles, s, places, (above, place), token, queue.leads, slot)
        queue.free[queue.ends[2]] = slot
        queue.ends[2] += 1


@kernel
def _first(handles, s, tail, places, ids):
    """Where a source stands at the root."""
    if handles[s, 0] == views.TRIE:
        top = ngrams.contexts(views.trie_of(handles[s]), tail, places[0, s])
        places[0, s, TOP] = top
        return
    places[0, s, RANK] = places[0, s, SPAN] = 0
    if handles[s, 0] == views.CLOSED:
        rank, length = suffixes.search(views.sorted_of(handles[s]), tail, ids)
        places[0, s, RANK], places[0, s, SPAN] = rank, length


@inlined
def _next(handles, s, places, edge, token, leads, slot):  # noqa: PLR0913
    """Where a source stands after one more token; `edge`: the places before and after it."""
    above, place = edge
    if handles[s, 0] == views.TRIE:
        top, longest = np.int64(0), min(ORDER - 1, np.int64(places[above, s, TOP]))
        places[place, s, 0] = 0
        for j in range(longest + 1):
            node = ngrams.find(views.trie_of(handles[s]), places[above, s, j], token)
            if node == -1:
                break  # a longer context cannot have been followed by it either
            top = j + 1
            places[place, s, top] = node
        places[place, s, TOP] = top
    elif handles[s, 0] == views.CLOSED and leads[slot, s, SPAN] == 0:
        rank, span = np.int64(places[above, s, RANK]), np.int64(places[above, s, SPAN])
        rank, span = suffixes.step(handles, s, rank, span, token)
        places[place, s, RANK], places[place, s, SPAN] = rank, span
    else:
        places[place, s, RANK], places[place, s, SPAN] = leads[slot, s, RANK], leads[slot, s, SPAN]


@inlined
def _empty(queue, limit):
    queue.ends[0] = queue.ends[1] = 0
    queue.ends[2] = limit + 1
    for i in range(limit + 1):
        queue.free[i] = i


@inlined
def _worst(queue, space):
    """The probability that a node must exceed to be among the best."""
    first, last = queue.ends[0], queue.ends[1]
    return queue.keys[first] if last - first == space else 0.0


@inlined
def _shorten(queue, space):
    """Drop what is worse than the best `space` nodes."""
    while queue.ends[1] - queue.ends[0] > space:
        queue.free[queue.ends[2]] = queue.slots[queue.ends[0]]
        queue.ends[2] += 1
        queue.ends[0] += 1


@inlined
def _push(queue, space, prob, place, room, i):
    """Enter a candidate among the `space` best; of two equally good ones the earlier is better."""
    keys, slots, ends = queue.keys, queue.slots, queue.ends
    first, last = ends[0], ends[1]
    if last - first == space:
        if prob <= keys[first]:
            return
        slot = slots[first]
        at = first
        while at + 1 < last and keys[at + 1] < prob:
            keys[at], slots[at] = keys[at + 1], slots[at + 1]
            at += 1
    else:
        ends[2] -= 1
        slot = queue.free[ends[2]]
        at = last
        while at > first and keys[at - 1] >= prob:
            keys[at], slots[at] = keys[at - 1], slots[at - 1]
            at -= 1
        ends[1] += 1
    keys[at], slots[at] = prob, slot
    queue.nodes[slot, _ABOVE], queue.nodes[slot, _TOKEN] = place, room.tokens[i]
    queue.nodes[slot, _SOURCE] = room.origin[i]
    for s in range(queue.leads.shape[1]):
        queue.leads[slot, s, RANK] = room.leads[i, s, RANK]
        queue.leads[slot, s, SPAN] = room.leads[i, s, SPAN]
