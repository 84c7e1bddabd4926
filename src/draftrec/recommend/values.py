"""What a recommender is asked and what it answers, in item ids."""

from __future__ import annotations

from dataclasses import dataclass

from draftrec.core import DoubleArray
from draftrec.items.ids import Id, Ids


@dataclass(frozen=True, eq=False, slots=True)
class Query:
    """`history` `[h]`: the user's items, oldest first. `deny`: items not to recommend, `allow`: the
    only ones to recommend (None: all). `k`: items wanted, at most as many as the recommender's
    settings say (None: as many). Ids are int64 or texts (see `items.ids`)."""

    user: Id
    history: Ids
    deny: Ids | None = None
    allow: Ids | None = None
    k: int | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Recommendation:
    """`items` `[k]`, best first, ids as the catalogue has them, with `scores` float64 `[k]` (summed
    log-probabilities) and semantic ids; fewer than K where fewer may be recommended.

    `invalid`: beams that are no item, of an unconstrained search. `seconds`: from the user's
    admission to a slot to the answer. `popular`: without a history, the popular items answer, and
    scores are the logs of their shares.
    """

    user: Id
    items: Ids
    scores: DoubleArray
    sids: list[list[str]]
    target_calls: int = 0
    accepted_steps: int = 0
    draft_calls: int = 0
    drafted: int = 0
    invalid: int = 0
    seconds: float = 0.0
    popular: bool = False
