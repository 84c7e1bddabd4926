"""Compiled kernels that find contexts in a closed index, and what lies around them.

A context is a rank and a length: the last `length` tokens before the place at `rank`, at most.
Runs of ranks that share fewer tokens with it are its shorter orders.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from draftrec.pool import views
from draftrec.pool.ngrams import START
from draftrec.pool.suffix_sort import REACH
from draftrec.pool.suffix_states import BLOCK, FIRST, HIGH, LENGTH, LOW, MANY, PARENT

#: Neighbours read around a rare context.
WINDOW = 24


@njit(cache=True, nogil=True)
def search(index, tail):
    """The rank whose context shares most tokens with the end of `tail`, and how many (0: none).

    `tail` int32, the last tokens of a text; `START` in it is the text's beginning.
    """
    ids = np.empty(REACH, np.int32)
    wanted = 0
    while wanted < min(REACH, len(tail)):
        token = tail[len(tail) - 1 - wanted]
        dense = 0 if token == START else dense_id(index, token)
        if dense < 0:
            break
        ids[wanted] = dense
        wanted += 1
        if dense == 0:
            break
    if wanted == 0:
        return 0, 0
    low, high = index.starts[ids[0]], index.starts[ids[0] + 1]
    rank, length = low, 1
    low_shared, high_shared = 1, 1  # what the ends of the run have in common with the tail
    while low < high:
        middle = (low + high) // 2
        place = index.order[middle]
        k = min(low_shared, high_shared)
        while k < wanted and index.tokens[place - k] == ids[k]:
            k += 1
        if k > length:
            rank, length = middle, k
        if k == wanted:
            return rank, length
        if index.tokens[place - k] < ids[k]:
            low, low_shared = middle + 1, k
        else:
            high, high_shared = middle, k
    return rank, length


@njit(cache=True, nogil=True)
def locate(handle, text, ends):
    """For every end, the place of the last token of the context that agrees longest with the tokens
    of `text` before it (its beginning included), and how many agree."""
    index = views.sorted_of(handle)
    places, lengths = np.zeros(len(ends), np.int64), np.zeros(len(ends), np.int64)
    whole = np.empty(len(text) + 1, np.int32)
    whole[0] = START
    whole[1:] = text
    for i in range(len(ends)):
        first = max(0, ends[i] + 1 - REACH)
        rank, length = search(index, whole[first : ends[i] + 1])
        places[i], lengths[i] = index.order[rank], length
    return places, lengths


@njit(cache=True, nogil=True)
def dense_id(index, token):
    """The dense id of a token, -1 if it does not occur."""
    low, high = 0, len(index.vocabulary)
    while low < high:
        middle = (low + high) // 2
        if index.vocabulary[middle] < token:
            low = middle + 1
        else:
            high = middle
    if low < len(index.vocabulary) and index.vocabulary[low] == token:
        return low + 1
    return -1


@njit(cache=True, nogil=True)
def state_of(index, rank, length):
    """The state of the longest frequent context that ends the first `length` tokens at `rank`.

    Its own length may exceed `length`: then all contexts of that length continue alike. -1: none.
    """
    block = rank // BLOCK
    left, right = index.blocks[block], index.blocks[block + 1]
    while left >= 0 and index.states[left, HIGH] <= rank:
        left = index.states[left, PARENT]
    while right >= 0 and index.states[right, LOW] > rank:
        right = index.states[right, PARENT]
    # Both are around the rank, so one is inside the other; inner states have smaller numbers.
    state = max(left, right) if min(left, right) < 0 else min(left, right)
    while state >= 0:
        outer = index.states[state, PARENT]
        if outer < 0 or index.states[outer, LENGTH] < length:
            break
        state = outer
    return state


@njit(cache=True, nogil=True)
def neighbours(index, rank, length, floor, found):
    """The ranks that share more than `floor` tokens with a context, those that share most first.

    `found` int32 `[WINDOW, 2]`: rank and tokens shared; returns how many were written.
    """
    found[0, 0], found[0, 1] = rank, length
    many = 1
    left = right = rank
    shared_left = min(length, np.int64(index.shared[left]))
    shared_right = 0
    if right + 1 < len(index.order):
        shared_right = min(length, np.int64(index.shared[right + 1]))
    while many < WINDOW and max(shared_left, shared_right) > floor:
        if shared_left >= shared_right:
            left -= 1
            found[many, 0], found[many, 1] = left, shared_left
            shared_left = min(shared_left, np.int64(index.shared[left]))
        else:
            right += 1
            found[many, 0], found[many, 1] = right, shared_right
            if right + 1 < len(index.order):
                shared_right = min(shared_right, np.int64(index.shared[right + 1]))
            else:
                shared_right = 0
        many += 1
    return many


@njit(cache=True, nogil=True)
def step(index, rank, length, token):
    """A context that ends in `token` after the given one, and its length (0: never seen).

    Only the frequent orders are asked; failing those, any place of the token will do.
    """
    state = state_of(index, rank, length) if length > 0 else -1
    while state >= 0:
        first = index.states[state, FIRST]
        for child in range(first, first + index.states[state, MANY]):
            if index.children[child, 0] == token:
                shared = min(np.int64(index.states[state, LENGTH]), length)
                return np.int64(index.children[child, 2]), min(shared + 1, REACH)
        state = index.states[state, PARENT]
    dense = dense_id(index, token)
    if dense < 0:
        return 0, 0
    return np.int64(index.starts[dense]), 1
