"""What a recommender is asked and what it answers, in item ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LongArray = npt.NDArray[np.int64]
DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Query:
    """`history` int64 `[h]`: the user's items, oldest first. `deny` int64: items not to recommend,
    `allow` int64: the only ones to recommend (None: all). `k`: items wanted, at most as many as the
    recommender's settings say (None: as many)."""

    user: int
    history: LongArray
    deny: LongArray | None = None
    allow: LongArray | None = None
    k: int | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Recommendation:
    """`items` int64 `[k]`, best first, with `scores` float64 `[k]` (summed log-probabilities) and
    semantic ids; fewer than K where fewer may be recommended.

    `invalid`: beams that are no item, of an unconstrained search. `seconds`: from the user's
    admission to a slot to the answer. `popular`: without a history, the popular items answer, and
    scores are the logs of their shares.
    """

    user: int
    items: LongArray
    scores: DoubleArray
    sids: list[list[str]]
    target_calls: int = 0
    accepted_steps: int = 0
    draft_calls: int = 0
    drafted: int = 0
    invalid: int = 0
    seconds: float = 0.0
    popular: bool = False
