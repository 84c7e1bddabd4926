"""Compiled kernels that choose the best children of some nodes, ties broken the same way always."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[Any]


@njit(cache=True, nogil=True)
def best(spans: Array, ranks: Array, tokens: Array, scores: Array, most: int) -> Array:
    """The `most` best candidates, best first, at most as many as there are.

    `spans` int64 `[b, 2]`: the candidates of each beam, a range of `tokens` int32 `[c]`. `ranks`
    int64 `[b]`: the beams in the order of their token paths. `scores` float64: of the candidates of
    all beams one after another, as the spans list them. Returns int64 `[k, 3]`: beam, candidate (a
    place in `tokens`), place in `scores`. Equal scores go by path, then by token.
    """
    chosen = np.empty((most, 3), np.int64)
    size, at = 0, 0
    for beam in range(len(spans)):
        for candidate in range(spans[beam, 0], spans[beam, 1]):
            score = scores[at]
            place = size
            while place > 0 and _before(
                score, ranks[beam], tokens[candidate], chosen[place - 1], ranks, tokens, scores
            ):
                place -= 1
            if place < most:
                size = min(size + 1, most)
                for i in range(size - 1, place, -1):
                    chosen[i] = chosen[i - 1]
                chosen[place, 0], chosen[place, 1], chosen[place, 2] = beam, candidate, at
            at += 1
    return chosen[:size].copy()


@njit(cache=True, nogil=True, inline="always")
def _before(  # noqa: PLR0913
    score: float, rank: int, token: int, other: Array, ranks: Array, tokens: Array, scores: Array
) -> bool:
    """Does a candidate come before another one that was chosen?"""
    theirs = scores[other[2]]
    if score != theirs:
        return bool(score > theirs)
    if rank != ranks[other[0]]:
        return bool(rank < ranks[other[0]])
    return bool(token < tokens[other[1]])
