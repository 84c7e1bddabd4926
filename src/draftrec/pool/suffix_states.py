"""Compiled kernels that sort the places of a text by what stands before them, and count beforehand
what follows the frequent contexts.

Texts are one int32 array of dense ids `[n]`: 0 marks the beginning of each text, tokens are 1 and
up. The context of a place is read backwards, from the token there to the mark of its text; two
contexts share as many tokens as agree from the right, the mark included, and at most `REACH`.

A run of ranks whose contexts share some tokens is what a context occurs at. Runs of `LEAST` ranks
and more get a row in a table of states, so that no draft ever counts a long run; shorter ones are
read where they lie. A run almost as long as one inside it says almost the same and gets no row.
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
