"""Compiled kernels that find contexts in a closed index, and what lies around them.

A context is a rank and a length: the last `length` tokens before the place at `rank`, at most.
Runs of ranks that share fewer tokens with it are its shorter orders.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from draftrec.pool import views
from draftrec.pool.ngrams import START
from draftrec.pool.suffix_states import BLOCK, FIRST, HIGH, LENGTH, LOW, MANY, PARENT, REACH
from draftrec.pool.views import inlined, kernel

#: Neighbours read around a rare context.
WINDOW = 24
#: Columns of a walk: the ranks reached to both sides, and the tokens shared by the context itself
#: (0 once it was visited) and by the next ranks to both sides.
LEFT, RIGHT, NEAR_SELF, NEAR_LEFT, NEAR_RIGHT = range(5)
WALK = 5


@kernel
def search(index, tail, ids):
    """The rank whose context shares most tokens with the end of `tail`, and how many (0: none).

    `tail` int32, the last tokens of a text; `START` in it is the text's beginning. `ids` int32
    `[REACH]` is room to work in.
    """
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
    whole, ids = np.empty(len(text) + 1, np.int32), np.empty(REACH, np.int32)
    whole[0] = START
    whole[1:] = text
    for i in range(len(ends)):
        first = max(0, ends[i] + 1 - REACH)
        rank, length = search(index, whole[first : ends[i] + 1], ids)
        places[i], lengths[i] = index.order[rank], length
    return places, lengths


@kernel
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


@inlined
def innermost(handles, s, rank):
    """The innermost state around a rank, -1: none."""
    states, blocks = views.states_of(handles, s), views.blocks_of(handles, s)
    block = rank // BLOCK
    left, right = np.int64(blocks[block]), np.int64(blocks[block + 1])
    while left >= 0 and states[left, HIGH] <= rank:
        left = np.int64(states[left, PARENT])
    while right >= 0 and states[right, LOW] > rank:
        right = np.int64(states[right, PARENT])
    # Both are around the rank, so one is inside the other; inner states have smaller numbers.
    return max(left, right) if min(left, right) < 0 else min(left, right)


@inlined
def outwards(states, state, length):
    """From a state at or inside it, the state of the longest frequent context that ends the first
    `length` tokens at a rank.

    Its own length may exceed `length`: then all contexts of that length continue alike. -1: none.
    """
    while state >= 0:
        outer = np.int64(states[state, PARENT])
        if outer < 0 or states[outer, LENGTH] < length:
            break
        state = outer
    return state


@inlined
def begin_walk(handles, s, rank, length, walks):
    """Start to walk from a context to the ranks that share most tokens with it, itself first."""
    shared = views.shared_of(handles, s)
    walks[s, LEFT] = walks[s, RIGHT] = rank
    walks[s, NEAR_SELF], walks[s, NEAR_RIGHT] = length, 0
    walks[s, NEAR_LEFT] = min(length, np.int64(shared[rank]))
    if rank + 1 < len(shared):
        walks[s, NEAR_RIGHT] = min(length, np.int64(shared[rank + 1]))


@inlined
def nearest(walks, s):
    """How many tokens the next rank of a walk shares."""
    return max(
        np.int64(walks[s, NEAR_SELF]), np.int64(walks[s, NEAR_LEFT]), np.int64(walks[s, NEAR_RIGHT])
    )


@inlined
def walk(shared, walks, s):
    """The next rank of a walk."""
    if walks[s, NEAR_SELF] > 0:
        walks[s, NEAR_SELF] = 0
        return np.int64(walks[s, LEFT])
    if walks[s, NEAR_LEFT] >= walks[s, NEAR_RIGHT]:
        rank = np.int64(walks[s, LEFT]) - 1
        walks[s, LEFT] = rank
        walks[s, NEAR_LEFT] = min(np.int64(walks[s, NEAR_LEFT]), np.int64(shared[rank]))
        return rank
    rank = np.int64(walks[s, RIGHT]) + 1
    walks[s, RIGHT] = rank
    further = np.int64(shared[rank + 1]) if rank + 1 < len(shared) else 0
    walks[s, NEAR_RIGHT] = min(np.int64(walks[s, NEAR_RIGHT]), further)
    return rank


@kernel
def step(handles, s, rank, length, token):
    """A context that ends in `token` after the given one, and its length (0: never seen).

    Only the frequent orders are asked; failing those, any place of the token will do.
    """
    states, children = views.states_of(handles, s), views.children_of(handles, s)
    state = outwards(states, innermost(handles, s, rank), length) if length > 0 else -1
    while state >= 0:
        first = np.int64(states[state, FIRST])
        for child in range(first, first + states[state, MANY]):
            if children[child, 0] == token:
                shared = min(np.int64(states[state, LENGTH]), length)
                return np.int64(children[child, 2]), min(shared + 1, REACH)
        state = np.int64(states[state, PARENT])
    dense = dense_id(views.sorted_of(handles[s]), token)
    if dense < 0:
        return 0, 0
    return np.int64(views.sorted_of(handles[s]).starts[dense]), 1
