"""Compiled kernels that count beforehand what follows the frequent contexts of a sorted text.

A run of ranks whose contexts share some tokens is what a context occurs at. Runs of `LEAST` ranks
and more get a row in a table of states, so that no draft ever counts a long run; shorter ones are
read where they lie. A run almost as long as one inside it says almost the same and gets no row.
"""

from __future__ import annotations

import numpy as np
from numba import njit

#: Shortest run with a state, and the ranks per entry of `blocks` (at most half of it).
LEAST = 16
BLOCK = 8
# A run gets a state when it is this many times as long as the longest run with a state inside it.
_GROWTH = 1.25
# Continuations kept per state: the most frequent ones, as far as they are no rarer than one in 64.
_FANOUT = 12
_RARE = 64

# Columns of a state: its ranks [LOW, HIGH), the state around it (-1: none), the tokens its contexts
# share, how often anything follows, how many different tokens do, its rows in `children`.
LOW, HIGH, PARENT, LENGTH, FOLLOWS, KINDS, FIRST, MANY = range(8)


@njit(cache=True, nogil=True)
def link(tokens, order):
    """What follows every context: int32 `[n, 2]`, the token's dense id and the rank of the context
    that ends in it; 0 and -1 at the end of a text.
    """
    n = len(tokens)
    ranks = np.empty(n, np.int32)
    for i in range(n):
        ranks[order[i]] = i
    follows = np.empty((n, 2), np.int32)
    for i in range(n):
        place = order[i] + 1
        if place < n and tokens[place] > 0:
            follows[i, 0], follows[i, 1] = tokens[place], ranks[place]
        else:
            follows[i, 0], follows[i, 1] = 0, -1
    return follows


@njit(cache=True, nogil=True)
def find_states(shared, reach):
    """Rows for the frequent runs, inner ones first: int32 `[m, 8]`, without their continuations."""
    n = len(shared)
    states = np.empty((n // 3 + 1, 8), np.int32)
    made = 0
    # Runs that are open at rank i: length, first rank, longest state inside, first and last of the
    # states that have no parent yet (chained through PARENT).
    stack = np.empty((reach + 2, 5), np.int64)
    stack[0] = 0, 0, 0, -1, -1
    top = 0
    for i in range(1, n + 1):
        common = shared[i] if i < n else 0
        low = i - 1
        while stack[top, 0] > common:
            low = stack[top, 1]
            made = _close(states, made, stack[top], i)
            if stack[top - 1, 0] >= common:
                _adopt(states, stack[top - 1], stack[top])
                top -= 1
            else:
                stack[top, 0] = common  # goes on as a shorter context
        if stack[top, 0] < common:
            top += 1
            stack[top] = common, low, 0, -1, -1
    _parents(states, stack[0, 3], -1)
    return states[:made].copy()


@njit(cache=True, nogil=True)
def _close(states, made, run, high):
    """Give the run that ends before `high` a state if it deserves one; returns their number."""
    size = high - run[1]
    if size < LEAST or run[2] * _GROWTH > size:
        return made
    _parents(states, run[3], made)
    states[made] = run[1], high, -1, run[0], 0, 0, 0, 0
    run[2], run[3], run[4] = size, made, made
    return made + 1


@njit(cache=True, nogil=True)
def _parents(states, child, parent):
    while child >= 0:
        after = states[child, PARENT]
        states[child, PARENT] = parent
        child = after


@njit(cache=True, nogil=True)
def _adopt(states, outer, inner):
    """Hand the states without a parent of a finished run to the run around it."""
    outer[2] = max(outer[2], inner[2])
    if inner[3] < 0:
        return
    if outer[3] < 0:
        outer[3] = inner[3]
    else:
        states[outer[4], PARENT] = inner[3]
    outer[4] = inner[4]


@njit(cache=True, nogil=True)
def count_children(states, follows, kinds):
    """Fill FOLLOWS, KINDS, FIRST and MANY of every state and return its `children`.

    `children` int32 `[c, 3]`: dense id, how often it follows, the rank of one context it ends; the
    most frequent first.
    """
    children = np.empty((len(states) * 4 + _FANOUT, 3), np.int32)
    used = 0
    counts, ranks = np.zeros(kinds, np.int32), np.empty(kinds, np.int32)
    seen = np.empty(kinds, np.int32)
    for s in range(len(states)):
        if used + _FANOUT > len(children):
            grown = np.empty((len(children) * 3 // 2 + _FANOUT, 3), np.int32)
            grown[:used] = children[:used]
            children = grown
        total, different = 0, 0
        for i in range(states[s, LOW], states[s, HIGH]):
            token = follows[i, 0]
            if token == 0:
                continue
            if counts[token] == 0:
                seen[different] = token
                ranks[token] = follows[i, 1]
                different += 1
            counts[token] += 1
            total += 1
        many = _select(children, used, (seen[:different], counts, ranks), total)
        states[s, FOLLOWS], states[s, KINDS] = total, different
        states[s, FIRST], states[s, MANY] = used, many
        used += many
        for i in range(different):
            counts[seen[i]] = 0
    return children[:used].copy()


@njit(cache=True, nogil=True)
def _select(children, first, found, total):
    """Write the most frequent continuations to rows `first` ..; returns how many."""
    seen, counts, ranks = found
    many = 0
    for token in seen:
        count = counts[token]
        if count * _RARE < total or (many == _FANOUT and count <= children[first + many - 1, 1]):
            continue
        many = min(many + 1, _FANOUT)
        at = first + many - 1
        while at > first and children[at - 1, 1] < count:
            children[at] = children[at - 1]
            at -= 1
        children[at] = token, count, ranks[token]
    return many


@njit(cache=True, nogil=True)
def find_blocks(states, n):
    """The innermost state at every `BLOCK`-th rank, -1 for none: int32 `[n // BLOCK + 2]`.

    A state is at least two blocks long, so it covers a block's first rank or the next one's.
    """
    blocks = np.full(n // BLOCK + 2, -1, np.int32)
    for s in range(len(states) - 1, -1, -1):
        for block in range(-(-states[s, LOW] // BLOCK), (states[s, HIGH] - 1) // BLOCK + 1):
            blocks[block] = s
    return blocks
