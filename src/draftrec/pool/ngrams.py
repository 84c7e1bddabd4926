"""Compiled kernels of the n-gram index: a suffix trie of bounded depth in flat arrays.

Node 0 is the root. A node stands for the n-gram on its path and holds how often it occurred, how
often anything followed it, and its children as a linked list kept roughly in order of count. A hash
table maps (node, token) to the child. All functions work on an `Arrays` tuple and allocate nothing
of the index's size, release the GIL, and take time bounded by the depth and the budget, never by
the number of texts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

#: Longest context that predicts a next token.
ORDER = 8
#: Stands before the first token of every text: what texts begin with is learned like the rest.
START = -2
# Children looked at per context, most frequent first; and most candidates per draft node.
_FANOUT = 12
_CANDIDATES = 32

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Arrays(NamedTuple):
    """The index. Node arrays int32 `[capacity]`; `keys` int64 and `places` int32 `[2**k]`.

    `size` int64 `[1]`: nodes in use.
    """

    token: Ints
    count: Ints  # pyright: ignore[reportIncompatibleMethodOverride] - tuple.count is not needed
    follows: Ints
    kinds: Ints
    child: Ints
    after: Ints
    before: Ints
    keys: Longs
    places: Ints
    size: Longs


@njit(cache=True, nogil=True, inline="always")
def _slot(keys, parent, token):
    key = (np.int64(parent) << 32) | np.int64(np.uint32(token))
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mask = np.uint64(len(keys) - 1)
    place = mixed & mask
    while keys[place] != -1 and keys[place] != key:
        place = (place + np.uint64(1)) & mask
    return place, key


@njit(cache=True, nogil=True)
def find(index, parent, token):
    """The child of `parent` for `token`, or -1."""
    place, key = _slot(index.keys, parent, token)
    return index.places[place] if index.keys[place] == key else -1


@njit(cache=True, nogil=True)
def _increment(index, parent, token, weight):
    """Count `token` after `parent`; returns the child's node."""
    place, key = _slot(index.keys, parent, token)
    if index.keys[place] == key:
        node = index.places[place]
    else:
        node = np.int32(index.size[0])
        index.size[0] += 1
        index.keys[place] = key
        index.places[place] = node
        index.token[node] = token
        index.count[node] = 0
        index.follows[node] = 0
        index.kinds[node] = 0
        index.child[node] = -1
        head = index.child[parent]
        # A newcomer goes behind the head: what is frequent stays near the front.
        if head < 0:
            index.child[parent] = node
            index.after[node] = -1
            index.before[node] = -1
        else:
            index.after[node] = index.after[head]
            index.before[node] = head
            if index.after[head] >= 0:
                index.before[index.after[head]] = node
            index.after[head] = node
        index.kinds[parent] += 1
    index.count[node] += weight
    index.follows[parent] += weight
    ahead = index.before[node]
    if ahead >= 0 and index.count[node] > index.count[ahead]:
        _swap(index, parent, ahead, node)
    return node


@njit(cache=True, nogil=True)
def _swap(index, parent, ahead, node):
    """Exchange two neighbours in the list of children, `node` right behind `ahead`."""
    left, right = index.before[ahead], index.after[node]
    index.before[node], index.after[node] = left, ahead
    index.before[ahead], index.after[ahead] = node, right
    if left >= 0:
        index.after[left] = node
    else:
        index.child[parent] = node
    if right >= 0:
        index.before[right] = ahead


@njit(cache=True, nogil=True)
def insert(index, tokens, active, weight):
    """Append `tokens` to a text whose last contexts are `active` int32 `[ORDER + 1]` (-1: none).

    `active[j]` is the node of the last j tokens; updated in place, so a text may grow piecewise.
    """
    for t in range(len(tokens)):
        for j in range(ORDER, -1, -1):
            if active[j] >= 0:
                node = _increment(index, active[j], tokens[t], weight)
                if j < ORDER:
                    active[j + 1] = node
        active[0] = 0


@njit(cache=True, nogil=True)
def _contexts(index, tail, out):
    """Nodes of the last 1 .. ORDER tokens of `tail` into `out` `[ORDER + 1]`; -1 where unseen."""
    out[:] = -1
    out[0] = 0
    for j in range(1, min(ORDER, len(tail)) + 1):
        node = 0
        for k in range(len(tail) - j, len(tail)):
            node = find(index, node, tail[k])
            if node < 0:
                break
        if node < 0:
            break  # a longer suffix cannot have been seen either
        out[j] = node


@njit(cache=True, nogil=True)
def _candidates(  # noqa: C901, PLR0913 - one kernel: calls and tuples cost time here
    sources, weights, contexts, escape, tokens, probs, origin
):
    """Blended next-token estimates at one node: fills `tokens`, `probs`, `origin`, returns a count.

    Orders are interpolated from short to long, each with escape mass in proportion to the number
    of different continuations seen (method C of prediction by partial matching, as a blend).
    """
    found = 0
    share = np.zeros(_CANDIDATES)
    for j in range(1, ORDER + 1):
        total, kinds = 0.0, 0.0
        for s in range(len(sources)):
            node = contexts[s, j]
            if node >= 0 and sources[s].follows[node] > 0:
                total += weights[s] * sources[s].follows[node]
                kinds += weights[s] * sources[s].kinds[node]
        if total <= 0.0:
            continue
        rest = escape * kinds / (total + escape * kinds)
        for i in range(found):
            probs[i] *= rest
            share[i] *= rest
        for s in range(len(sources)):
            node = contexts[s, j]
            if node < 0:
                continue
            child = sources[s].child[node]
            looked = 0
            while child >= 0 and looked < _FANOUT:
                gain = weights[s] * sources[s].count[child] / (total + escape * kinds)
                token = sources[s].token[child]
                i = 0
                while i < found and tokens[i] != token:
                    i += 1
                if i == found and found < _CANDIDATES:
                    tokens[i], probs[i], share[i] = token, 0.0, 0.0
                    found += 1
                if i < found:
                    probs[i] += gain
                    if gain > share[i]:
                        share[i] = gain
                        origin[i] = s
                child = sources[s].after[child]
                looked += 1
    return found


@njit(cache=True, nogil=True)
def draft(  # noqa: PLR0913 - one kernel: calls and tuples cost time here
    sources, weights, tails, limit, depth, settings, out
):
    """Best-first expansion of the blended estimates to at most `limit` nodes; returns how many.

    `sources`: tuple of Arrays; `tails`: tuple of int32 contexts, one per source; `settings`
    float64 `[2]`: escape weight, least path probability. `out`: tokens, parents, probs, sources.
    """
    escape, least = settings[0], settings[1]
    out_tokens, out_parents, out_probs, out_sources = out
    n_sources = len(sources)
    contexts = np.full((limit + 1, n_sources, ORDER + 1), -1, np.int32)
    level = np.zeros(limit + 1, np.int32)
    for s in range(n_sources):
        _contexts(sources[s], tails[s], contexts[0, s])
    heap_p = np.empty(limit * _CANDIDATES + _CANDIDATES)
    heap_from = np.empty(len(heap_p), np.int32)
    heap_token = np.empty(len(heap_p), np.int32)
    heap_origin = np.empty(len(heap_p), np.int32)
    tokens = np.empty(_CANDIDATES, np.int32)
    probs = np.empty(_CANDIDATES)
    origin = np.zeros(_CANDIDATES, np.int32)
    order = np.empty(len(heap_p), np.int32)
    size, made, used = 0, 0, 0
    place, path_prob = 0, 1.0
    while True:
        if level[place] < depth:
            found = _candidates(sources, weights, contexts[place], escape, tokens, probs, origin)
            for i in range(found):
                p = path_prob * probs[i]
                if tokens[i] < 0 or p < least:
                    continue
                heap_p[used], heap_from[used] = p, place
                heap_token[used], heap_origin[used] = tokens[i], origin[i]
                order[size] = used
                _sift_up(order, heap_p, size)
                used += 1
                size += 1
        if size == 0 or made == limit:
            return made
        top = order[0]
        size -= 1
        order[0] = order[size]
        _sift_down(order, heap_p, size)
        out_tokens[made] = heap_token[top]
        out_parents[made] = heap_from[top] - 1
        out_probs[made] = heap_p[top]
        out_sources[made] = heap_origin[top]
        made += 1
        above, place, path_prob = heap_from[top], made, heap_p[top]
        level[place] = level[above] + 1
        for s in range(n_sources):
            contexts[place, s, 0] = 0
            for j in range(ORDER):
                node = contexts[above, s, j]
                if node >= 0:
                    contexts[place, s, j + 1] = find(sources[s], node, heap_token[top])


@njit(cache=True, nogil=True)
def _sift_up(order, value, i):
    while i > 0:
        parent = (i - 1) // 2
        if value[order[i]] <= value[order[parent]]:
            return
        order[i], order[parent] = order[parent], order[i]
        i = parent


@njit(cache=True, nogil=True)
def _sift_down(order, value, size):
    i = 0
    while True:
        best = i
        for child in (2 * i + 1, 2 * i + 2):
            if child < size and value[order[child]] > value[order[best]]:
                best = child
        if best == i:
            return
        order[i], order[best] = order[best], order[i]
        i = best


@njit(cache=True, nogil=True)
def rehash(keys, places, old_keys, old_places):
    """Enter all old pairs into an empty, larger table."""
    for i in range(len(old_keys)):
        parent = old_keys[i] >> 32
        token = np.int32(np.uint32(old_keys[i] & 0xFFFFFFFF))
        place, key = _slot(keys, parent, token)
        keys[place] = key
        places[place] = old_places[i]
