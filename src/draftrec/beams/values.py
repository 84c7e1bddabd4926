"""What beam searches are asked for and what they return. K beams, L levels, P prompt tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from draftrec.core import DoubleArray, IntArray, LongArray
from draftrec.tokens.item_filter import Filter


def _none() -> LongArray:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False, slots=True)
class BeamRequest:
    """One user: `prompt_ids` int32 `[P]`, P >= 1; `filter` says which items may be recommended.

    `key` names the user and seeds sampled searches. `history` int64 `[h]`: places of the user's
    items in the catalogue, oldest first, for drafters that go by items. `width`: beams to keep, at
    most as many as the engine's (None: as many), so that users who want lists of different lengths
    can run together: beam search with K beams is not the beginning of one with more.
    """

    key: int
    prompt_ids: IntArray
    filter: Filter | None = None
    history: LongArray = field(default_factory=_none)
    width: int | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Beams:
    """The best beams of one user, best first; fewer than K where fewer are legal.

    `tokens` int32 `[k, L]`; `leaves` int64 `[k]`, trie nodes (-1: no item of the catalogue, which
    only an unconstrained search can return); `scores` float64 `[k]`, summed log-probabilities.
    `target_calls`: forward passes of the target, the prompt's included; `accepted_steps`: levels
    that needed no pass of their own; `drafted`: draft rows verified, `draft_calls`: forward passes
    of a draft model.
    """

    key: int
    tokens: IntArray
    leaves: LongArray
    scores: DoubleArray
    target_calls: int
    accepted_steps: int
    draft_calls: int
    drafted: int
