"""Room for the kernels that draw trees to work in: laid out once per call, for all of its trees."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from draftrec.pool.contexts import WALK, WINDOW
from draftrec.pool.ngrams import ORDER
from draftrec.pool.suffix_sort import REACH

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
#: among them. Then those of a walk to neighbours, see `contexts`.
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
