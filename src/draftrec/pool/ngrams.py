"""Compiled kernels of the n-gram index: a suffix trie of bounded depth in flat arrays.

A node stands for the n-gram on its path and holds how often it occurred, how often anything
followed it, and its children as a linked list kept roughly in order of count; node 0 is the root. A
hash table maps (node, token) to the child. What occurred once went on in one way, which the text
itself tells, so such a node has no children but the place in the text where it ended; they are made
when it occurs again. That is why there are some two nodes per token and not nine.

A context is a node, or, below a node that occurred once, a place in the text: -2 for the first
token, -3 for the second and so on. -1 is none. All functions work on an `Arrays` tuple and allocate
nothing of the index's size, release the GIL, and take time bounded by the depth and the budget,
never by the number of texts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from draftrec.core import IntArray, LongArray
from draftrec.pool.views import inlined, kernel

#: Longest context that predicts a next token.
ORDER = 8
#: Stands before the first token of every text: what texts begin with is learned like the rest.
START = -2
#: Stands between texts, and wherever nothing was written yet.
BREAK = -3


# Columns of a node. CHILD is the most frequent child, or, in a node that occurred once, the place
# where it did; FOLLOWS and KINDS of such a node mean nothing.
TOKEN, COUNT, FOLLOWS, KINDS, CHILD, AFTER, BEFORE, PARENT = range(8)
#: A running context that occurs for the first time: its node, if there is one, follows the text.
_FRESH = -2


class Arrays(NamedTuple):
    """The index. `nodes` int32 `[capacity, 8]`, one row per node, so that a look at a node touches
    one cache line; `table` int32 `[2**k]`, nodes hashed by parent and token, -1 where empty; `text`
    int32 `[capacity]`, all tokens, `BREAK` behind them; `size` int64 `[2]`, nodes and places of the
    text in use.
    """

    nodes: IntArray
    table: IntArray
    text: IntArray
    size: LongArray


@inlined
def _slot(nodes, table, parent, token):
    """The table place of the child of `parent` for `token`, or the empty one where it belongs."""
    key = (np.uint64(parent) << np.uint64(32)) | np.uint64(np.uint32(token))
    mixed = key * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mask = np.uint64(len(table) - 1)
    place = mixed & mask
    node = table[place]
    while node >= 0 and (nodes[node, PARENT] != parent or nodes[node, TOKEN] != token):
        place = (place + np.uint64(1)) & mask
        node = table[place]
    return place


@inlined
def place_of(nodes, context):
    """Where in the text a context ended that occurred once; not below -1 for one with children."""
    return np.int64(context if context < 0 else nodes[context, CHILD])


@inlined
def next_token(text, place):
    """The token after a place, `BREAK` if there is none."""
    return text[-place - 1]


@inlined
def said(nodes, text, context):
    """How often anything followed a context, and how many different tokens."""
    place = place_of(nodes, context)
    if place < -1:
        once = np.int64(1 if next_token(text, place) != BREAK else 0)
        return once, once
    return np.int64(nodes[context, FOLLOWS]), np.int64(nodes[context, KINDS])


@inlined
def find(index, context, token):
    """The context of a context and the token after it, or -1."""
    place = place_of(index.nodes, context)
    if place < -1:
        return place - 1 if next_token(index.text, place) == token else np.int64(-1)
    return np.int64(index.table[_slot(index.nodes, index.table, context, token)])


@kernel
def totals(index):
    """How many tokens the texts hold, and how many different ones, beginnings left out."""
    count, different = said(index.nodes, index.text, 0)
    mark = find(index, 0, START)
    if mark >= 0:
        count -= index.nodes[mark, COUNT]
        different -= 1
    return count, different


@kernel
def _increment(index, parent, token, deep):
    """Count `token`, the last one of the text, after `parent`; returns the child's context.

    `deep`: whether the child may have children.
    """
    nodes = index.nodes
    if parent > 0 and nodes[parent, COUNT] == 1:
        return np.int64(_FRESH)  # the text says how it goes on
    place = _slot(nodes, index.table, parent, token)
    node = np.int64(index.table[place])
    if node < 0:
        node = _enter(index, place, parent, token, index.size[1] - 1)
    else:
        nodes[node, COUNT] += 1
        if nodes[node, COUNT] == 2:
            _branch(index, node, deep)
    nodes[parent, FOLLOWS] += 1
    ahead = nodes[node, BEFORE]
    if ahead >= 0 and nodes[node, COUNT] > nodes[ahead, COUNT]:
        _swap(index, parent, ahead, node)
    return node


@kernel
def _enter(index, slot, parent, token, at):
    """A new child of `parent`, which has occurred once so far, at place `at` of the text."""
    nodes = index.nodes
    node = index.size[0]
    index.size[0] += 1
    index.table[slot] = node
    nodes[node, PARENT], nodes[node, TOKEN], nodes[node, COUNT] = parent, token, 1
    nodes[node, FOLLOWS], nodes[node, KINDS], nodes[node, CHILD] = 0, 0, -2 - at
    head = nodes[parent, CHILD]
    nodes[node, AFTER] = nodes[node, BEFORE] = -1
    # A newcomer goes behind the head: what is frequent stays near the front.
    if head < 0:
        nodes[parent, CHILD] = node
    else:
        after = nodes[head, AFTER]
        nodes[node, AFTER], nodes[node, BEFORE] = after, head
        if after >= 0:
            nodes[after, BEFORE] = node
        nodes[head, AFTER] = node
    nodes[parent, KINDS] += 1
    return node


@kernel
def _branch(index, node, deep):
    """Make the child that a node had in the text, now that it occurs a second time."""
    place = np.int64(index.nodes[node, CHILD])
    index.nodes[node, CHILD] = -1
    token = next_token(index.text, place)
    if deep and token != BREAK:
        slot = _slot(index.nodes, index.table, node, token)
        _enter(index, slot, node, token, -1 - place)
        index.nodes[node, FOLLOWS] = 1


@kernel
def _swap(index, parent, ahead, node):
    """Exchange two neighbours in the list of children, `node` right behind `ahead`."""
    left, right = index.nodes[ahead, BEFORE], index.nodes[node, AFTER]
    index.nodes[node, BEFORE], index.nodes[node, AFTER] = left, ahead
    index.nodes[ahead, BEFORE], index.nodes[ahead, AFTER] = node, right
    if left >= 0:
        index.nodes[left, AFTER] = node
    else:
        index.nodes[parent, CHILD] = node
    if right >= 0:
        index.nodes[right, BEFORE] = ahead


@kernel
def insert(index, tokens, active):
    """Append `tokens` to a text whose last contexts are `active` int32 `[ORDER + 1]` (-1: none).

    `active[j]` stands for the last j tokens; updated in place, so a text may grow piecewise.
    """
    for token in tokens:
        index.text[index.size[1]] = token
        index.size[1] += 1
        for j in range(ORDER, -1, -1):
            context = np.int64(active[j])
            if context >= 0:
                context = _increment(index, context, token, j < ORDER)
            if j < ORDER:
                active[j + 1] = context
        active[0] = 0


@kernel
def contexts(index, tail, out):
    """Contexts of the last 0, 1, ... ORDER tokens of `tail` into `out`; returns how many were seen
    before, up to which `out` is written."""
    out[0] = 0
    for j in range(1, min(ORDER, len(tail)) + 1):
        context = np.int64(0)
        for k in range(len(tail) - j, len(tail)):
            context = find(index, context, tail[k])
            if context == -1:
                return j - 1  # a longer suffix cannot have been seen either
        out[j] = context
    return min(ORDER, len(tail))


@kernel
def rehash(nodes, table, size):
    """Enter the first `size` nodes, but the root, into an empty table."""
    for node in range(1, size):
        table[_slot(nodes, table, nodes[node, PARENT], nodes[node, TOKEN])] = node
