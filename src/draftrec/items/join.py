"""New items for a catalogue whose semantic ids a model has learnt already.

Wherever the ids came from, a code stands for the items that have it: its centroid is the mean of
what the levels before it leave over of their vectors. New items take the nearest codes, level by
level, so no codebook has to be kept and no old id changes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from draftrec.core import FloatArray, IntArray, LongArray
from draftrec.errors import DraftrecError
from draftrec.items.ids import Ids, as_whole, is_text, joined_ids
from draftrec.items.semantic_ids import SemanticIds


def joined(sids: SemanticIds, items: Ids, vectors: FloatArray) -> tuple[SemanticIds, Ids]:
    """The catalogue with those of `items` `[m]` that it lacks, and these new items.

    `vectors` float32 `[m, d]` must hold old items' vectors as well, as many as there are: they say
    what the codes mean. A new item whose tuple is taken gets the nearest last code that is free
    below its other codes; it shares the tuple where none is. Raises DraftrecError when no old item
    has a vector.
    """
    places = sids.find(items)
    old, new = np.flatnonzero(places >= 0), np.flatnonzero(places < 0)
    if not len(old):
        raise DraftrecError(
            "none of the items with vectors is in the catalogue, so nothing says what its codes "
            "mean; give the vectors of its items and of the new ones in one file"
        )
    codes = _nearest_codes(sids.codes[places[old]], vectors[old], vectors[new], sids)
    every = np.concatenate((sids.codes, codes))
    fresh = items[new]
    if not is_text(sids.items) and (numbers := as_whole(fresh)) is not None:
        fresh = numbers
    after = SemanticIds.from_codes(joined_ids((sids.items, fresh)), every, sids.tokens)
    return replace(after, spelt=sids.spelt and not is_text(after.items)), np.sort(fresh)


def _nearest_codes(
    known: IntArray, vectors: FloatArray, wanted: FloatArray, sids: SemanticIds
) -> IntArray:
    """Codes int32 `[m, L]` of `wanted` float32 `[m, d]`, from items whose codes are `known`."""
    codes = np.empty((len(wanted), sids.levels), np.int32)
    old, new = vectors.copy(), wanted.copy()
    for level in range(sids.levels):
        used, back = np.unique(known[:, level], return_inverse=True)
        centroids = _means(old, back, len(used))
        apart = _apart(new, centroids)
        if level == sids.levels - 1:
            chosen = _free(codes[:, :level], used, apart, sids)
        else:
            chosen = apart.argmin(axis=1)
        codes[:, level] = used[chosen]
        old -= centroids[back]
        new -= centroids[chosen]
    return codes


def _free(prefixes: IntArray, used: IntArray, apart: FloatArray, sids: SemanticIds) -> LongArray:
    """The last level's choice for each new item, nearest items first: a free code if there is one
    below its prefix `[L - 1]`."""
    taken = Counter[tuple[int, ...]](tuple(row) for row in sids.codes.tolist())
    chosen = np.empty(len(prefixes), np.int64)
    for row in np.argsort(apart.min(axis=1), kind="stable").tolist():
        prefix = tuple(prefixes[row].tolist())
        sharing = np.array([taken[(*prefix, code)] for code in used.tolist()])
        chosen[row] = np.lexsort((apart[row], sharing > 0))[0]
        taken[(*prefix, int(used[chosen[row]]))] += 1
    return chosen


def _means(vectors: FloatArray, clusters: LongArray, count: int) -> FloatArray:
    """float32 `[count, d]`: the mean of every cluster, none of them empty."""
    sums = np.zeros((count, vectors.shape[1]), np.float64)
    np.add.at(sums, clusters, vectors)
    return (sums / np.bincount(clusters, minlength=count)[:, None]).astype(np.float32)


def _apart(vectors: FloatArray, centroids: FloatArray) -> FloatArray:
    """Squared distances float32 `[m, K]`."""
    lengths = (vectors**2).sum(axis=1)[:, None] + (centroids**2).sum(axis=1)
    return lengths - 2.0 * (vectors @ centroids.T)
