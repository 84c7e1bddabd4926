"""Compiled kernels of the item trie: sorting rows of tokens, building, walking, masking."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[Any]


@njit(cache=True, nogil=True)
def sort_by_column(column: Array, low: int, high: int, order: Array) -> Array:
    """`order` int32 or int64 `[n]`, rows of `column` int32, sorted by it; equal ones stay put.

    All values lie in `low` .. `high`: one count per value, so that time and memory do not depend on
    how rows are spread.
    """
    starts = np.zeros(high - low + 2, np.int64)
    for value in column:
        starts[value - low + 1] += 1
    for kind in range(1, len(starts)):
        starts[kind] += starts[kind - 1]
    out = np.empty_like(order)
    for row in order:
        kind = column[row] - low
        out[starts[kind]] = row
        starts[kind] += 1
    return out


@njit(cache=True, nogil=True)
def count_nodes(token_ids: Array, order: Array) -> Array:
    """Nodes int64 `[L + 1]` per level of the trie over rows `token_ids` int32 `[n, L]`."""
    levels = token_ids.shape[1]
    counts = np.zeros(levels + 1, np.int64)
    counts[0] = 1
    for i in range(len(order)):
        for level in range(_shared(token_ids, order, i), levels):
            counts[level + 1] += 1
    return counts


@njit(cache=True, nogil=True)
def fill_nodes(
    token_ids: Array,
    order: Array,
    level_start: Array,
    first: Array,
    tokens: Array,
    item_start: Array,
) -> None:
    """Write children, tokens and the items' ranges of all nodes, breadth first."""
    levels = token_ids.shape[1]
    free = level_start[:-1].copy()  # the next node of every level
    first[0] = 1
    tokens[0] = -1
    free[0] = 1
    for i in range(len(order)):
        for level in range(_shared(token_ids, order, i), levels):
            node = free[level + 1]
            free[level + 1] += 1
            tokens[node] = token_ids[order[i], level]
            if level + 1 < levels:
                first[node] = free[level + 2]
            else:
                item_start[node - level_start[levels]] = i
    item_start[-1] = len(order)
    first[level_start[levels] :] = len(tokens)


@njit(cache=True, nogil=True, inline="always")
def _shared(token_ids: Array, order: Array, i: int) -> int:
    """Leading tokens that rows i and i - 1 of the order have in common."""
    levels = token_ids.shape[1]
    if i == 0:
        return 0
    row, before = order[i], order[i - 1]
    shared = 0
    while shared < levels and token_ids[row, shared] == token_ids[before, shared]:
        shared += 1
    return shared


@njit(cache=True, nogil=True)
def walk(first: Array, tokens: Array, token_ids: Array) -> Array:
    """Nodes int64 `[k, l]` after each prefix of `token_ids` int32 `[k, l]`, -1 off the trie."""
    rows, length = token_ids.shape
    found = np.full((rows, length), -1, np.int64)
    for row in range(rows):
        node = 0
        for level in range(length):
            token = token_ids[row, level]
            low, end = first[node], first[node + 1]
            high = end
            while low < high:
                middle = (low + high) // 2
                if tokens[middle] < token:
                    low = middle + 1
                else:
                    high = middle
            if low == end or tokens[low] != token:
                break
            node = low
            found[row, level] = node
    return found


@njit(cache=True, nogil=True)
def children(first: Array, nodes: Array) -> tuple[Array, Array]:
    """Offsets int64 `[r + 1]` and child nodes int64 `[c]`; a negative node has none."""
    offsets = np.empty(len(nodes) + 1, np.int64)
    offsets[0] = 0
    for row, node in enumerate(nodes):
        offsets[row + 1] = offsets[row] + (first[node + 1] - first[node] if node >= 0 else 0)
    found = np.empty(offsets[-1], np.int64)
    for row, node in enumerate(nodes):
        for i in range(offsets[row + 1] - offsets[row]):
            found[offsets[row] + i] = first[node] + i
    return offsets, found


@njit(cache=True, nogil=True)
def mark_children(first: Array, tokens: Array, nodes: Array, mask: Array) -> int:
    """Set `mask` bool `[r, V]` where a token leads on from a node; the largest token met."""
    largest = -1
    width = mask.shape[1]
    for row, node in enumerate(nodes):
        if node < 0:
            continue
        for child in range(first[node], first[node + 1]):
            token = tokens[child]
            largest = max(largest, token)
            if token < width:
                mask[row, token] = True
    return largest
