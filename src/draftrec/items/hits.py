"""Which recommended items came true, and each user's Recall@K and NDCG@K of that."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from draftrec.core import BoolArray, DoubleArray, LongArray
from draftrec.errors import DraftrecError
from draftrec.items.ids import Ids, joined_ids

Lists = Seq[Ids]


@dataclass(frozen=True, eq=False, slots=True)
class Hits:
    """Which places of each user's list hold a target: `found` bool `[n, m]`, m the longest list;
    `targets` int64 `[n]`, distinct ones; `lengths` int64 `[n]`, items listed."""

    found: BoolArray
    targets: LongArray
    lengths: LongArray

    def recall(self, k: int) -> DoubleArray:
        """Recall@k of every user, float64 `[n]`."""
        return self.found[:, :k].sum(axis=1) / self.targets

    def ndcg(self, k: int) -> DoubleArray:
        """NDCG@k of every user, float64 `[n]`."""
        discounts = 1.0 / np.log2(np.arange(2, max(k, self.found.shape[1]) + 2))
        gains = self.found[:, :k] @ discounts[: min(k, self.found.shape[1])]
        ideal = np.cumsum(discounts)
        return gains / ideal[np.minimum(self.targets, k) - 1]


def find_hits(recommended: Lists, targets: Lists) -> Hits:
    """Compare every user's list, best first, with the items that came true, in any order.

    `recommended` and `targets` have one array of ids per user. Raises ValueError for unequal
    numbers of users, and DraftrecError for a user without targets, about whom nothing can be said.
    """
    if len(recommended) != len(targets):
        raise ValueError(f"{len(recommended)} lists do not fit the targets of {len(targets)} users")
    lengths, wanted = _lengths(recommended), _lengths(targets)
    if not len(wanted) or not wanted.all():
        raise DraftrecError(
            "a user without targets cannot be scored; leave out those who have none"
        )
    # One number per pair of user and item, so that all users are looked up at once.
    numbers = joined_ids([*recommended, *targets])
    codes = np.unique(numbers, return_inverse=True)[1] + _owners(lengths, wanted) * len(numbers)
    listed, true = codes[: lengths.sum()], np.unique(codes[lengths.sum() :])
    first = np.zeros(len(listed), np.bool_)
    first[np.unique(listed, return_index=True)[1]] = True
    found = np.zeros((len(lengths), max(int(lengths.max()), 1)), np.bool_)
    found[np.arange(found.shape[1]) < lengths[:, None]] = np.isin(listed, true) & first
    counts = np.bincount(true // len(numbers), minlength=len(targets))
    return Hits(found, counts.astype(np.int64), lengths)


def _lengths(arrays: Lists) -> LongArray:
    return np.fromiter(map(len, arrays), np.int64, len(arrays))


def _owners(lengths: LongArray, wanted: LongArray) -> LongArray:
    """Whose each number of the concatenated lists and targets is."""
    users = np.arange(len(lengths))
    return np.concatenate((np.repeat(users, lengths), np.repeat(users, wanted)))
