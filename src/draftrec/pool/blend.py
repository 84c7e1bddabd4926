"""Compiled kernel that estimates the next token at one place of a draft tree.

Orders are interpolated from long to short, each with escape mass in proportion to the number of
different continuations seen (method C of prediction by partial matching, as a blend over all
sources at once). Orders that occurred at the same places say the same thing, so they are dealt with
in one step: the work follows the number of different runs of places, not the order.

A tree of 64 nodes comes here 63 times, so nothing is allocated and everything is written into one
loop.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from draftrec.pool import ngrams, suffixes, views
from draftrec.pool.ngrams import ORDER
from draftrec.pool.suffix_states import FIRST, FOLLOWS, KINDS, LENGTH, MANY, PARENT, REACH
from draftrec.pool.suffixes import WALK, WINDOW
from draftrec.pool.views import inlined, kernel

#: Most candidates per place.
CANDIDATES = 32

#: Columns of a place in a trie are its contexts by order, then the longest order there is; of one
#: in a closed source: rank and length of its context.
TOP = ORDER + 1
RANK, SPAN = range(2)
PLACE = ORDER + 2

#: Columns of `Room.source`, one row per source: the longest order it knows; how often anything
#: followed at the present order, and how many tokens; the state (closed) or node (trie) that says
#: so; the order from which states speak; neighbours counted (-1: a state speaks), different tokens
#: among them. Then those of a walk to neighbours, see `suffixes`.
LONGEST, TOTAL, DIFFERENT, STATE, FLOOR, USED, TOKENS = range(WALK, WALK + 7)

#: Candidates are found by a hash of their token: cells, bits by which a product is moved to one,
#: and bits by which a round's number is moved.
CELLS = 128
SHIFT = 57
BITS = 5


class Room(NamedTuple):
    """Room to work in, for all trees of a call.

    Candidates for the next token: `tokens`, `origin` int32 `[CANDIDATES]`, `probs`, `share` float64
    `[CANDIDATES]` (share: the most that one source said at once), `leads` int32 `[CANDIDATES,
    sources, 2]`: rank and length (0: unknown) of the context each ends in its closed source;
    `cells` int64 `[CELLS]`: round and number of a candidate; `round` int64 `[1]`.

    `ids` int32 `[REACH]` serves the search for the root's context.

    Sources: `source` int32 `[sources, WALK + 7]`, `voice` float64 `[sources]` (what an observation
    counts at the present order), `counted` int32 `[sources, WINDOW, 4]` (token, count, rank,
    length).
    """

    tokens: Any
    origin: Any
    probs: Any
    share: Any
    leads: Any
    cells: Any
    round: Any
    ids: Any
    source: Any
    voice: Any
    counted: Any


@njit(cache=True, nogil=True)
def make_room(sources):
    """Room for trees from at most so many sources."""
    return Room(
        np.empty(CANDIDATES, np.int32),
        np.empty(CANDIDATES, np.int32),
        np.empty(CANDIDATES),
        np.empty(CANDIDATES),
        np.empty((CANDIDATES, sources, 2), np.int32),
        np.full(CELLS, -1, np.int64),
        np.zeros(1, np.int64),
        np.empty(REACH, np.int32),
        np.empty((sources, WALK + 7), np.int32),
        np.empty(sources),
        np.empty((sources, WINDOW, 4), np.int32),
    )


# Continuations read per context of a trie, most frequent first.
_FANOUT = 12
# What the shorter orders may still say when they are left out.
_REST = 0.01


@inlined
def blend(handles, weights, places, place, escape, limits, room):  # noqa: PLR0913
    """Fill the candidates in `room` for one place of the tree; returns how many.

    `places` int32 `[nodes, sources, PLACE]`. `escape` float64 `[REACH + 1]`. `limits`: the path's
    probability, the least worth having, and as how many observations a source counts at most.
    """
    source = room.source
    order = np.int64(0)
    for s in range(len(weights)):
        order = max(order, _begin(handles, s, places, place, room))
    room.round[0] += 1
    found = 0
    residual = 1.0
    while order > 0 and residual > _REST and residual * limits[0] > limits[1]:
        total, kinds, heard, below = 0.0, 0.0, 0.0, np.int64(0)
        for s in range(len(weights)):
            until = np.int64(source[s, LONGEST])
            room.voice[s] = 0.0
            if until >= order:
                until = _look(handles, s, places, place, order, room)
                count = source[s, TOTAL]
                total += weights[s] * count
                kinds += weights[s] * source[s, DIFFERENT]
                if count > 0:
                    room.voice[s] = weights[s] * min(1.0, limits[2] / count)
                    heard += room.voice[s] * count
            below = max(below, until)
        if total > 0.0:
            rest = _escaped(escape, total, kinds, below, order)
            for s in range(len(weights)):
                if room.voice[s] > 0.0:
                    gain = residual * (1.0 - rest) * room.voice[s] / heard
                    found = _add(handles, s, gain, found, room)
            residual *= rest
        order = below
    if order == 0 and residual > _REST and residual * limits[0] > limits[1]:
        found = _frequent(handles, weights, residual, escape[0], limits, found, room)
    return found


@inlined
def _frequent(handles, weights, residual, escape, limits, found, room):  # noqa: PLR0913
    """Where no context goes on: the most frequent tokens; returns how many candidates there are."""
    total, kinds = 0.0, 0.0
    for s in range(len(weights)):
        count, different = np.int64(0), np.int64(0)
        if handles[s, 0] == views.TRIE:
            count, different = ngrams.totals(views.trie_of(handles[s]))
        elif handles[s, 0] == views.CLOSED:
            count, different = views.totals_of(handles, s)
        total += weights[s] * count
        kinds += weights[s] * different
    for s in range(len(weights)):
        gain = residual * weights[s] / (total + escape * kinds) if total > 0.0 else 0.0
        if handles[s, 0] == views.TRIE:
            room.source[s, STATE] = 0
            found = _add(handles, s, gain, found, room)
        elif handles[s, 0] == views.CLOSED:
            common = views.common_of(handles, s)
            for i in range(len(common)):
                share = gain * common[i, 1]
                if share * limits[0] <= limits[1]:
                    break
                found = _credit(room, found, common[i, 0], share, s, (common[i, 2], 1))
    return found


@inlined
def _begin(handles, s, places, place, room):
    """Prepare a source; returns the longest order it knows."""
    source = room.source
    top = np.int64(0)
    if handles[s, 0] == views.TRIE:
        top = np.int64(places[place, s, TOP])
    elif handles[s, 0] == views.CLOSED and places[place, s, SPAN] > 0:
        top = np.int64(places[place, s, SPAN])
        rank = np.int64(places[place, s, RANK])
        states = views.states_of(handles, s)
        state = suffixes.outwards(states, suffixes.innermost(handles, s, rank), top)
        floor = min(np.int64(states[state, LENGTH]), top) if state >= 0 else 0
        source[s, STATE], source[s, FLOOR], source[s, USED] = state, floor, -1
        if floor < top:
            suffixes.begin_walk(handles, s, rank, top, source)
            source[s, USED] = source[s, TOTAL] = source[s, TOKENS] = 0
    source[s, LONGEST] = top
    return top


@inlined
def _escaped(escape, total, kinds, below, order):
    """The probability that none of the orders from `order` down to `below`, that excluded, speaks;
    all of them have seen the same."""
    rest = 1.0
    weight, factor = -1.0, 1.0
    for j in range(below + 1, order + 1):
        if escape[j] != weight:
            weight = escape[j]
            factor = weight * kinds / (total + weight * kinds)
        rest *= factor
    return rest


@inlined
def _look(handles, s, places, place, order, room):
    """What a source counted at an order; returns the next shorter one that may say otherwise."""
    source = room.source
    if handles[s, 0] == views.TRIE:
        return _look_trie(handles, s, places, place, order, source)
    if order > source[s, FLOOR]:
        return _look_near(handles, s, order, room)
    states = views.states_of(handles, s)
    state = np.int64(source[s, STATE])
    outer = np.int64(states[state, PARENT])
    below = np.int64(0)
    while outer >= 0:
        below = np.int64(states[outer, LENGTH])
        if below < order:
            break
        state = outer
        outer = np.int64(states[outer, PARENT])
    source[s, STATE], source[s, USED] = state, -1
    source[s, TOTAL], source[s, DIFFERENT] = states[state, FOLLOWS], states[state, KINDS]
    return below if outer >= 0 else np.int64(0)


@inlined
def _look_trie(handles, s, places, place, order, source):
    nodes, text = views.nodes_of(handles, s), views.text_of(handles, s)
    context = np.int64(places[place, s, order])
    total, kinds = ngrams.said(nodes, text, context)
    source[s, STATE], source[s, TOTAL], source[s, DIFFERENT] = context, total, kinds
    below = order - 1
    while below > 0:
        outer = ngrams.said(nodes, text, np.int64(places[place, s, below]))
        if outer[0] != total or outer[1] != kinds:
            break
        below -= 1
    return below


@inlined
def _look_near(handles, s, order, room):
    """Count the neighbours that share at least `order` tokens, on top of those that share more."""
    source, counted = room.source, room.counted
    shared, follows = views.shared_of(handles, s), views.follows_of(handles, s)
    floor = np.int64(source[s, FLOOR])
    used, tokens, total = source[s, USED], source[s, TOKENS], source[s, TOTAL]
    common = suffixes.nearest(source, s)
    while used < WINDOW and common > floor and common >= order:
        rank = suffixes.walk(shared, source, s)
        token, onward = follows[rank, 0], follows[rank, 1]
        if onward >= 0:
            i = 0
            while i < tokens and counted[s, i, 0] != token:
                i += 1
            if i == tokens:
                counted[s, i, 0], counted[s, i, 1], counted[s, i, 2] = token, 0, onward
                counted[s, i, 3] = min(common + 1, REACH)
                tokens += 1
            counted[s, i, 1] += 1
            total += 1
        used += 1
        common = suffixes.nearest(source, s)
    source[s, USED], source[s, TOKENS], source[s, TOTAL] = used, tokens, total
    source[s, DIFFERENT] = tokens
    return common if used < WINDOW and common > floor else floor


@inlined
def _add(handles, s, gain, found, room):
    """Give a source's continuations their shares; returns how many candidates there are now."""
    source = room.source
    if handles[s, 0] == views.TRIE:
        nodes = views.nodes_of(handles, s)
        child, looked = ngrams.place_of(nodes, np.int64(source[s, STATE])), 0
        if child < -1:  # it occurred once: the text says how it goes on
            token = ngrams.next_token(views.text_of(handles, s), child)
            found = _credit(room, found, token, gain, s, (0, 0))
        while child >= 0 and looked < _FANOUT:
            share = gain * nodes[child, ngrams.COUNT]
            found = _credit(room, found, nodes[child, ngrams.TOKEN], share, s, (0, 0))
            child = np.int64(nodes[child, ngrams.AFTER])
            looked += 1
    elif source[s, USED] >= 0:
        counted = room.counted
        for i in range(source[s, TOKENS]):
            lead = counted[s, i, 2], counted[s, i, 3]
            found = _credit(room, found, counted[s, i, 0], gain * counted[s, i, 1], s, lead)
    else:
        states, children = views.states_of(handles, s), views.children_of(handles, s)
        state = source[s, STATE]
        # A context shorter than its state's is known to share its own tokens only.
        length = min(np.int64(states[state, LENGTH]), np.int64(source[s, FLOOR])) + 1
        length = min(length, REACH)
        first = np.int64(states[state, FIRST])
        for i in range(first, first + states[state, MANY]):
            lead = children[i, 2], length
            found = _credit(room, found, children[i, 0], gain * children[i, 1], s, lead)
    return found


@kernel
def _credit(room, found, token, share, s, lead):
    """Add to a candidate's probability; the longest context that knew it says where it leads."""
    cells, stamp = room.cells, room.round[0]
    # The upper bits of a product are the well mixed ones.
    cell = np.int64((np.uint64(token) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(SHIFT))
    i = -1
    while cells[cell] >> BITS == stamp:
        known = cells[cell] & (CANDIDATES - 1)
        if room.tokens[known] == token:
            i = known
            break
        cell = (cell + 1) & (CELLS - 1)
    if i < 0:
        if found == CANDIDATES:
            return found
        i = found
        cells[cell] = (stamp << BITS) | i
        room.tokens[i] = token
        room.probs[i] = room.share[i] = 0.0
        for other in range(room.leads.shape[1]):
            room.leads[i, other, SPAN] = 0
        found += 1
    room.probs[i] += share
    if share > room.share[i]:
        room.share[i], room.origin[i] = share, s
    if lead[1] > room.leads[i, s, SPAN]:
        room.leads[i, s, RANK], room.leads[i, s, SPAN] = lead
    return found
