"""Item vectors of several kinds as one: what texts say of items beside who took them.

Each kind is centred and brought to one scale, so that it counts in squared distances for what its
weight says, whatever its numbers are and however many; then they stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from draftrec.core import BoolArray, DoubleArray, FloatArray
from draftrec.errors import DraftrecError
from draftrec.items.ids import Ids, find_ids, joined_ids


@dataclass(frozen=True, slots=True)
class Share:
    """What one kind is of vectors set side by side: how many numbers, and what it counts."""

    dim: int
    weight: float


@dataclass(frozen=True, eq=False, slots=True)
class Kind:
    """Vectors of one kind: `name`, by which messages call it, `items` `[m]`, distinct, `vectors`
    float32 `[m, d]`, and its `weight` in squared distances."""

    name: str
    items: Ids
    vectors: FloatArray
    weight: float = 1.0

    @property
    def share(self) -> Share:
        """What is kept of it."""
        return Share(self.vectors.shape[1], self.weight)


@dataclass(frozen=True, eq=False, slots=True)
class SideBySide:
    """`items` `[n]`, all that some kind knows, in the order in which they come; `vectors` float32
    `[n, d]`, `d` the numbers of all kinds; `known` bool `[kinds, n]`: which kind knows whom."""

    items: Ids
    vectors: FloatArray
    known: BoolArray


def side_by_side(kinds: Seq[Kind], measured: Ids | None = None) -> SideBySide:
    """All kinds together. Of each, the mean squared distance from its mean becomes its weight, as a
    part of the largest one; an item that it does not know stands at its mean.

    Mean and scale are those of the items `measured` `[k]`, ascending, None for all: so new items
    do not move what old ones were fitted to. Raises DraftrecError for a kind that shares no item
    with another, none with `measured`, or has equal vectors for all of these.
    """
    every = joined_ids(kind.items for kind in kinds)
    _, first, back = np.unique(every, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    items, places = every[np.sort(first)], rank[back]
    ends = np.cumsum([len(kind.items) for kind in kinds])[:-1]
    rows = np.split(places, ends)
    known = np.zeros((len(kinds), len(items)), np.bool_)
    for row, at in zip(known, rows, strict=True):
        row[at] = True
    _check_shared(kinds, known)
    told = np.ones(len(items), np.bool_) if measured is None else find_ids(measured, items) >= 0
    largest = max(kind.weight for kind in kinds)
    blocks: list[FloatArray] = []
    for kind, at in zip(kinds, rows, strict=True):
        block = np.zeros((len(items), kind.vectors.shape[1]), np.float32)
        block[at] = _scaled(kind, told[at]) * np.sqrt(kind.weight / largest)
        blocks.append(block)
    return SideBySide(items, np.concatenate(blocks, axis=1), known)


def _scaled(kind: Kind, told: BoolArray) -> DoubleArray:
    """The vectors of a kind about the mean of those that are `told` bool `[m]`, float64 `[m, d]`,
    these at a mean squared distance of 1 from there."""
    if not told.any():
        raise DraftrecError(
            f"{kind.name} has no vector of an item of the catalogue, so nothing says what its "
            "codes mean; give the vectors of its items and of the new ones in one file"
        )
    moved = kind.vectors - kind.vectors[told].mean(axis=0, dtype=np.float64)
    squared = float((moved[told] ** 2).sum(axis=1).mean())
    if not squared:
        raise DraftrecError(
            f"{kind.name} has the same vector for all items, which tells none from another; leave "
            "the file out"
        )
    return moved / np.sqrt(squared)


def _check_shared(kinds: Seq[Kind], known: BoolArray) -> None:
    """Refuse parts of one set of vectors, of which every item would be known to one alone."""
    often = known.sum(axis=0) > 1
    for kind, row in zip(kinds, known, strict=True):
        if len(kinds) > 1 and not (row & often).any():
            raise DraftrecError(
                f"{kind.name} has no item that another file has, so the files are no kinds of "
                "vectors of the same items; name items alike in all, or, if these are parts of one "
                "set of vectors, put them into one folder and give that"
            )
