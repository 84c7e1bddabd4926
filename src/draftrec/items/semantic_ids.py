"""Semantic ids: every item of a catalogue as a short tuple of tokens, held as arrays.

The idea is that of TIGER (Rajput et al. 2023, section 3.1) and LC-Rec: close items share the first
codes. Where the ids come from does not matter here; `quantise` fits them to item vectors.

New items for a catalogue whose ids a model has learnt already: wherever the ids came from, a code
stands for the items that have it, and its centroid is the mean of what the levels before it leave
over of their vectors. New items take the nearest codes, level by level, so no codebook has to be
kept and no old id changes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np

from draftrec.core import FloatArray, IntArray, LongArray
from draftrec.errors import DraftrecError
from draftrec.items.ids import Id, Ids, as_text, as_whole, find_ids, ids_array, is_text, joined_ids


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """`n` items with `L` tokens each.

    `items` `[n]`: int64, or texts (see `item_ids`), distinct, ascending; an item's row is its
    *place*. `codes` int32 `[n, L]`: positions in `tokens`, the distinct token strings, ordered by
    the first level they occur on and then naturally (`<a_9>` before `<a_10>`). Several items may
    share one tuple, and one token may occur on several levels. `spelt`: the items are numbers that
    came as texts.
    """

    items: Ids
    codes: IntArray
    tokens: tuple[str, ...]
    spelt: bool = False

    def __len__(self) -> int:
        return len(self.items)

    @property
    def levels(self) -> int:
        """Tokens per item."""
        return self.codes.shape[1]

    @property
    def given(self) -> Ids:
        """`items` in the type that they came in."""
        return as_text(self.items) if self.spelt else self.items

    @classmethod
    def of(cls, items: Seq[Id] | Ids, sids: Seq[Seq[str]]) -> SemanticIds:
        """Semantic ids from one list of tokens per item, in any order.

        Raises DraftrecError for no items, ids of different lengths, an empty id or token, and an
        item that is listed twice.
        """
        if len(items) != len(sids):
            raise ValueError(f"{len(items)} items cannot have {len(sids)} semantic ids")
        known: dict[str, int] = {}
        levels = len(sids[0]) if len(sids) else 0
        codes = np.empty((len(sids), levels), np.int32)
        for row, (item, sid) in enumerate(zip(items, sids, strict=True)):
            if len(sid) != levels or not levels:
                raise DraftrecError(_unequal(item, len(sid), levels))
            codes[row] = [known.setdefault(token, len(known)) for token in sid]
        return cls.from_codes(ids_array(items), codes, list(known))

    @classmethod
    def from_codes(cls, items: Ids, codes: IntArray, tokens: Seq[str]) -> SemanticIds:
        """The same from arrays: `items` `[n]` in any order, int64 or texts, `codes` int32 `[n, L]`
        positions in `tokens`, which are distinct, in any order, and may hold some that no item
        uses.

        Raises DraftrecError for no items, an item that is listed twice and an empty token.
        """
        if not len(items):
            raise DraftrecError("the catalogue has no items; give a semantic id for at least one")
        numbers = as_whole(items)
        spelt = numbers is not None and is_text(items)
        items = items if numbers is None else numbers
        order = np.argsort(items, kind="stable")
        items, codes = items[order], codes[order]
        same = np.flatnonzero(items[1:] == items[:-1])
        if len(same):
            raise DraftrecError(
                f"item {items[same[0]]} has more than one semantic id; keep one row for each item"
            )
        ordered, places = _ordered(codes, tokens)
        return cls(items, places[codes], ordered, spelt)

    def find(self, items: Seq[Id] | Ids) -> LongArray:
        """The place int64 `[k]` of every item, -1 where the catalogue does not have it."""
        return find_ids(self.items, ids_array(items))

    def places(self, items: Seq[Id] | Ids) -> LongArray:
        """The place int64 `[k]` of every item. Raises DraftrecError for the first unknown one."""
        wanted = ids_array(items)
        places = self.find(wanted)
        unknown = np.flatnonzero(places < 0)
        if len(unknown):
            raise DraftrecError(
                f"item {wanted[unknown[0]]} has no semantic id; add it to the semantic ids, or "
                "leave it out"
            )
        return places

    def sids_of(self, items: Seq[Id] | Ids) -> list[list[str]]:
        """The tokens of every item. Raises DraftrecError for an unknown one."""
        return self.sids_at(self.places(items))

    def sids_at(self, places: LongArray) -> list[list[str]]:
        """The tokens of the items at `places` int64 `[k]`."""
        return [[self.tokens[code] for code in row] for row in self.codes[places]]

    def token_ids(self, token_to_id: Mapping[str, int]) -> IntArray:
        """The same tuples in a model's vocabulary, int32 `[n, L]`.

        Raises DraftrecError for a token that the vocabulary lacks, and for two tokens to which it
        gives one id.
        """
        ids = [token_to_id.get(token, -1) for token in self.tokens]
        if -1 in ids:
            raise DraftrecError(
                f"the tokenizer has no token {self.tokens[ids.index(-1)]!r}; use a model that was "
                "trained with these semantic ids"
            )
        if len(set(ids)) < len(ids):
            raise DraftrecError(
                "the tokenizer gives two tokens of the semantic ids one id; use a model that was "
                "trained with these semantic ids"
            )
        return np.array(ids, np.int32)[self.codes]

    def moved_from(self, before: SemanticIds) -> tuple[LongArray, LongArray]:
        """The places int64 `[m]` here of items that both have with other tokens than `before` had
        for them, and the places there; both ascend there."""
        here = self.find(before.items)
        there = np.flatnonzero(here >= 0)
        here = here[there]
        if self.levels != before.levels:
            return here, there
        number = {token: i for i, token in enumerate(self.tokens)}
        same = np.array([number.get(token, -1) for token in before.tokens], np.int64)
        other = (same[before.codes[there]] != self.codes[here]).any(axis=1)
        return here[other], there[other]

    def fingerprint(self) -> str:
        """SHA-256 over items, codes and tokens, the same on every machine."""
        whole = hashlib.sha256(json.dumps([self.levels, self.tokens]).encode())
        if is_text(self.items):
            whole.update(json.dumps(self.items.tolist()).encode())
        else:
            whole.update(np.ascontiguousarray(self.items, "<i8").data)
        whole.update(np.ascontiguousarray(self.codes, "<i4").data)
        return whole.hexdigest()


def whole_items(sids: SemanticIds) -> SemanticIds:
    """The same items with one token each, by their places."""
    n = len(sids)
    tokens = [f"<item_{place}>" for place in range(n)]
    return SemanticIds.from_codes(sids.given, np.arange(n, dtype=np.int32)[:, None], tokens)


def _ordered(codes: IntArray, tokens: Seq[str]) -> tuple[tuple[str, ...], IntArray]:
    """The tokens in use, in order, and the new position int32 of every old one, -1 without use."""
    level_of: dict[int, int] = {}
    for level in range(codes.shape[1]):
        for code in np.flatnonzero(np.bincount(codes[:, level])).tolist():
            level_of.setdefault(code, level)
    if any(not tokens[code] for code in level_of):
        raise DraftrecError("a semantic id holds an empty token; give every level a token")
    order = sorted(level_of, key=lambda code: (level_of[code], _natural(tokens[code])))
    places = np.full(len(tokens), -1, np.int32)
    places[order] = np.arange(len(order), dtype=np.int32)
    return tuple(tokens[code] for code in order), places


def _natural(token: str) -> tuple[list[tuple[str, int]], str]:
    """A sort key that compares numbers inside a text as numbers."""
    bits = re.split(r"(\d+)", token)
    pairs = [(bits[i], int(bits[i + 1])) for i in range(0, len(bits) - 1, 2)]
    return [*pairs, (bits[-1], -1)], token


def _unequal(item: Id, found: int, levels: int) -> str:
    if not found:
        return f"the semantic id of item {item} is empty; give every item at least one token"
    return (
        f"the semantic id of item {item} has {found} tokens where the first has {levels}; give "
        "all items equally many"
    )


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
