"""Compiled kernels that sort the places of a text by what stands before them.

Texts are one int32 array of dense ids `[n]`: 0 marks the beginning of each text, tokens are 1 and
up. The context of a place is read backwards, from the token there to the mark of its text; two
contexts share as many tokens as agree from the right, the mark included, and at most `REACH`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

#: Tokens of context by which places are told apart: one, then two with every round of sorting.
REACH = 25


@njit(cache=True, nogil=True)
def sort_contexts(tokens, kinds):
    """Places in the order of their contexts, and what neighbours share.

    `tokens` int32 `[n]`, ids below `kinds`. Returns `order` int32 `[n]`, `shared` uint8 `[n]`
    (tokens that the contexts of ranks i - 1 and i have in common) and `starts` int32 `[kinds + 1]`
    (first rank whose last token is that id).
    """
    n = len(tokens)
    order, starts = _by_last_token(tokens, kinds)
    shared = np.zeros(n, np.uint8)
    tied = np.zeros(n, np.bool_)  # not told apart from the rank before so far
    for kind in range(kinds):
        for i in range(starts[kind] + 1, starts[kind + 1]):
            shared[i] = 1
            tied[i] = kind > 0
    keys = np.empty(n, np.uint64)
    for depth in range(1, REACH, 2):
        end = 0
        ties = 0
        for i in range(1, n + 1):
            if i < n and tied[i]:
                continue
            if i - end > 1:
                _refine(tokens, depth, (order, keys, shared, tied), end, i)
                ties += 1
            end = i
        if ties == 0:
            break
    return order, shared, starts


@njit(cache=True, nogil=True)
def _by_last_token(tokens, kinds):
    """Counting sort of all places by their token."""
    starts = np.zeros(kinds + 1, np.int32)
    for token in tokens:
        starts[token + 1] += 1
    for kind in range(kinds):
        starts[kind + 1] += starts[kind]
    ends = starts[:-1].copy()
    order = np.empty(len(tokens), np.int32)
    for place in range(len(tokens)):
        token = tokens[place]
        order[ends[token]] = place
        ends[token] += 1
    return order, starts


@njit(cache=True, nogil=True)
def _refine(tokens, depth, arrays, low, high):
    """Sort ranks `low` .. `high`, whose contexts agree in `depth` tokens, by the next two."""
    order, keys, shared, tied = arrays
    for i in range(low, high):
        place = order[i] - depth
        key = np.uint64(0)  # the mark, behind which nothing is compared
        if tokens[place] > 0:
            key = (np.uint64(tokens[place]) << np.uint64(32)) | np.uint64(tokens[place - 1])
        keys[i] = key
    _sort_pairs(keys, order, low, high)
    half = np.uint64(32)
    for i in range(low + 1, high):
        before, here = keys[i - 1], keys[i]
        if before != here:
            shared[i] = depth + (1 if before >> half == here >> half else 0)
            tied[i] = False
        elif here == 0:
            shared[i] = depth + 1
            tied[i] = False
        else:
            shared[i] = depth + 2
            tied[i] = (here & np.uint64(0xFFFFFFFF)) > 0


@njit(cache=True, nogil=True)
def _sort_pairs(keys, order, low, high):
    """Sort `keys[low:high]` upwards and `order` along with it (three-way quicksort)."""
    stack = np.empty((64, 2), np.int64)
    stack[0] = low, high
    size = 1
    while size:
        size -= 1
        low, high = stack[size]
        while high - low > 16:
            less, more = _partition(keys, order, low, high)
            # The longer side waits, so that the stack stays as short as log2(n).
            if less - low > high - more:
                stack[size] = low, less
                low = more
            else:
                stack[size] = more, high
                high = less
            size += 1
        for i in range(low + 1, high):
            key, place = keys[i], order[i]
            j = i
            while j > low and keys[j - 1] > key:
                keys[j], order[j] = keys[j - 1], order[j - 1]
                j -= 1
            keys[j], order[j] = key, place


@njit(cache=True, nogil=True)
def _partition(keys, order, low, high):
    """Split around a sampled key; returns where the keys equal to it begin and end."""
    middle, step = (low + high) // 2, (high - low) // 8
    pivot = _middle(
        _middle(keys[low], keys[low + step], keys[low + 2 * step]),
        _middle(keys[middle - step], keys[middle], keys[middle + step]),
        _middle(keys[high - 1 - 2 * step], keys[high - 1 - step], keys[high - 1]),
    )
    less, i, more = low, low, high
    while i < more:
        if keys[i] < pivot:
            keys[i], keys[less] = keys[less], keys[i]
            order[i], order[less] = order[less], order[i]
            less += 1
            i += 1
        elif keys[i] > pivot:
            more -= 1
            keys[i], keys[more] = keys[more], keys[i]
            order[i], order[more] = order[more], order[i]
        else:
            i += 1
    return less, more


@njit(cache=True, nogil=True)
def _middle(a, b, c):
    return max(min(a, b), min(max(a, b), c))
