"""Items that tend to follow others: recommendations, and drafts of them, without a model.

Item-item co-occurrence. Two items of one user, d places apart, count decay^(d - 1) for each other;
counts are divided by powers of both items' own counts (1/2 and 1/2: cosine; 1 and 0: conditional
probability), with shrinkage. A history's scores are the sum over its last items, the most recent
counting most, plus a share of popularity, so that an empty history gets the popular items.
"""

# SciPy has no types, so that strict checks say nothing.
# pyright: standard
from __future__ import annotations

import json
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np

from draftrec.config import RetrieverSettings
from draftrec.core import DoubleArray, FloatArray, LongArray
from draftrec.errors import DraftrecError

_FORMAT = 1
#: Histories whose followers, perhaps all items, are held at once.
_AT_ONCE = 256


class ItemScorer(Protocol):
    """Rates all items of a catalogue, given a history, before a model is asked."""

    @property
    def items(self) -> int: ...

    def propose(self, history: LongArray, m: int, /) -> tuple[LongArray, DoubleArray]:
        """The best `m` items for `history`, places int64 `[h]`, best first: places int64 `[m]` and
        each item's share float64 `[m]` of all items' scores; fewer where no more are known."""
        ...

    def shares(self, history: LongArray, places: LongArray, /) -> DoubleArray:
        """float64 `[k]`: the shares of the items at `places` int64 `[k]`; 0: unknown."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class ItemRetriever:
    """`near`: scipy CSR matrix float32 `[items, items]`, row i what follows item i. `prior`:
    float32 `[items]`, positive, every item's score for an empty history. `popular`: int64
    `[items]`, places by `prior`, the largest first. `total`: the sum of `prior`. Items are *places*
    in the catalogue.
    """

    near: Any
    prior: FloatArray
    popular: LongArray
    total: float
    settings: RetrieverSettings

    @classmethod
    def fit(
        cls,
        sequences: Iterable[LongArray],
        items: int,
        settings: RetrieverSettings | None = None,
    ) -> ItemRetriever:
        """Count the pairs of `sequences`, each one user's places int64 `[h]` in order of time.

        Takes memory in proportion to the distinct pairs. Raises DraftrecError for a catalogue
        without items and ValueError for places beyond `items`.
        """
        if items < 1:
            raise DraftrecError("the catalogue has no items, so nothing can be retrieved from it")
        settings = settings or RetrieverSettings()
        pieces = [np.asarray(sequence, np.int64) for sequence in sequences]
        places, owners = _joined(pieces)
        _check_places(places, items)
        counts = np.bincount(places, minlength=items)
        near = _damped(_pairs(places, owners, items, settings), counts, settings)
        prior = settings.popularity * (counts + 1.0) / (counts.max() + 1.0)
        return cls._of(_cut(near, settings.neighbours), prior.astype(np.float32), settings)

    @classmethod
    def _of(cls, near: Any, prior: FloatArray, settings: RetrieverSettings) -> ItemRetriever:
        popular = np.argsort(-prior, kind="stable")
        return cls(near, prior, popular, float(prior.sum(dtype=np.float64)), settings)

    @property
    def items(self) -> int:
        """How many items there are to propose."""
        return len(self.prior)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        matrix = (self.near.data, self.near.indices, self.near.indptr)
        return sum(array.nbytes for array in (*matrix, self.prior, self.popular))

    def scores(self, history: LongArray) -> FloatArray:
        """float32 `[items]`: how well each item continues `history`, places int64 `[h]`."""
        return self.scores_many([history])[0]

    def scores_many(self, histories: Seq[LongArray]) -> FloatArray:
        """float32 `[n, items]`: `scores` of every history."""
        found = np.empty((len(histories), self.items), np.float32)
        found[:] = self.prior
        for start in range(0, len(histories), _AT_ONCE):
            part = found[start : start + _AT_ONCE]
            ends, columns, values = self._following(histories[start : start + _AT_ONCE])
            part[np.repeat(np.arange(len(part)), np.diff(ends)), columns] += values
        return found

    def propose(
        self, history: LongArray, m: int, *, exclude_seen: bool = False
    ) -> tuple[LongArray, DoubleArray]:
        """The best `m` items for `history`, best first, equal ones by place: places int64 `[m]`
        and weights float64 `[m]`, each item's share of all items' scores. Fewer than `m` where the
        catalogue, less the history's own items if `exclude_seen`, has no more.
        """
        places, weights = self.propose_many([history], m, exclude_seen=exclude_seen)
        found = places[0] >= 0
        return places[0, found], weights[0, found]

    def propose_many(
        self, histories: Seq[LongArray], m: int, *, exclude_seen: bool = False
    ) -> tuple[LongArray, DoubleArray]:
        """`propose` of every history: places int64 `[n, m]` and weights float64 `[n, m]`; missing
        ones are -1 with weight 0. Raises ValueError for places beyond the catalogue.
        """
        places = np.full((len(histories), m), -1, np.int64)
        weights = np.zeros((len(histories), m))
        for start in range(0, len(histories), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            self._best(histories[some], places[some], weights[some], exclude_seen=exclude_seen)
        return places, weights

    def _best(
        self,
        histories: Seq[LongArray],
        places: LongArray,
        weights: DoubleArray,
        *,
        exclude_seen: bool,
    ) -> None:
        """Write the best items of each history to the beginning of its row of `places` int64 `[n,
        m]`, and what they weigh to that of `weights` float64 `[n, m]`."""
        m = places.shape[1]
        ends, followers, gains = self._following(histories)
        for row, history in enumerate(histories):
            part = slice(ends[row], ends[row + 1])
            columns, values = followers[part], gains[part]
            seen = np.unique(history) if exclude_seen else history[:0]
            # Whatever follows nothing in the history ranks as in `popular`: its beginning will do.
            candidates = np.union1d(columns, self.popular[: m + len(seen)])
            scores = self.prior[candidates]
            scores[np.searchsorted(candidates, columns)] += values
            if exclude_seen:
                new = np.isin(candidates, seen, invert=True)
                candidates, scores = candidates[new], scores[new]
            best = best_of(candidates, scores, m)
            places[row, : len(best)] = best
            total = self.total + values.sum(dtype=np.float64)
            weights[row, : len(best)] = scores[np.searchsorted(candidates, best)] / total

    def shares(self, history: LongArray, places: LongArray) -> DoubleArray:
        """float64 `[k]`: the shares of all items' scores that `history`, places int64 `[h]`, leaves
        to the items at `places` int64 `[k]`; positive, and `propose`'s weights where it names them.
        """
        _, columns, values = self._following([history])
        scores = self.prior[places]
        if len(columns):
            at = np.minimum(np.searchsorted(columns, places), len(columns) - 1)
            scores = scores + np.where(columns[at] == places, values[at], np.float32(0))
        return scores / (self.total + values.sum(dtype=np.float64))

    def save(self, path: Path) -> None:
        """Write everything to an .npz file."""
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                format_version=np.array(_FORMAT),
                settings=np.array(json.dumps(asdict(self.settings))),
                prior=self.prior,
                data=self.near.data,
                indices=self.near.indices,
                indptr=self.near.indptr,
            )

    @classmethod
    def load(cls, path: Path) -> ItemRetriever:
        """Read what `save` wrote. Raises DraftrecError for anything else."""
        from scipy.sparse import csr_matrix

        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                if int(found["format_version"]) != _FORMAT:
                    raise ValueError(f"format {found['format_version']} instead of {_FORMAT}")
                prior = found["prior"]
                parts = (found["data"], found["indices"], found["indptr"])
                near = csr_matrix(parts, shape=(len(prior), len(prior)))
                near.check_format(full_check=True)
                settings = RetrieverSettings(**json.loads(str(found["settings"])))
                return cls._of(near, prior, settings)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, TypeError) as error:
            raise DraftrecError(
                f"{path} is no saved item retriever ({error}); fit one and save it again"
            ) from error

    def _following(self, histories: Seq[LongArray]) -> tuple[LongArray, LongArray, FloatArray]:
        """The scores without popularity: `ends` int64 `[n + 1]`, between which each history's are,
        places int64 `[c]`, ascending for each, and float32 `[c]` scores.

        Takes time in proportion to these, where a product of sparse matrices goes through as many
        numbers as there are items, for every user.
        """
        recent = [history[-self.settings.last :] for history in histories]
        lengths = np.array([*map(len, recent)], np.int64)
        places = np.concatenate([np.empty(0, np.int64), *recent])
        _check_places(places, self.items)
        ages = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(places))
        starts = self.near.indptr[places]
        counts = self.near.indptr[places + 1] - starts
        at = np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
        users = np.repeat(np.repeat(np.arange(len(recent)), lengths), counts)
        keys, back = np.unique(users * self.items + self.near.indices[at], return_inverse=True)
        weights = np.repeat(self.settings.recency**ages, counts)
        values = np.bincount(back, self.near.data[at] * weights, len(keys)).astype(np.float32)
        ends = np.searchsorted(keys, np.arange(len(recent) + 1) * self.items)
        return ends, keys % self.items, values


def _joined(pieces: list[LongArray]) -> tuple[LongArray, LongArray]:
    """All places in one array int64, and whose sequence each comes from."""
    owners = np.repeat(np.arange(len(pieces)), list(map(len, pieces)))
    return np.concatenate([np.empty(0, np.int64), *pieces]), owners


def _check_places(places: LongArray, items: int) -> None:
    if len(places) and (places.min() < 0 or places.max() >= items):
        raise ValueError(f"places must lie between 0 and {items - 1}")


def _pairs(places: LongArray, owners: LongArray, items: int, settings: RetrieverSettings) -> Any:
    """Sparse float64 `[items, items]`: weighted counts of (earlier, later), and the other way."""
    from scipy.sparse import coo_matrix, csr_matrix

    forward: Any = csr_matrix((items, items), dtype=np.float64)
    for distance in range(1, settings.window + 1):
        same = owners[:-distance] == owners[distance:]
        weight = settings.decay ** (distance - 1)
        if not same.any() or not weight:
            break
        pair = places[:-distance][same], places[distance:][same]
        forward = forward + coo_matrix((np.full(same.sum(), weight), pair), (items, items)).tocsr()
    both = forward + settings.backward * forward.T if settings.backward else forward
    found = both.tocoo()
    other = found.row != found.col  # an item is no continuation of itself
    kept = found.data[other], (found.row[other], found.col[other])
    return coo_matrix(kept, (items, items)).tocsr()


def _damped(pairs: Any, counts: LongArray, settings: RetrieverSettings) -> Any:
    """The pairs' counts divided by powers of both items' own counts."""
    from scipy.sparse import diags

    # A pair's items have been counted, so the 1 stands for items without pairs.
    shrunk = np.maximum(counts, 1) + float(settings.shrinkage)
    before, after = shrunk**-settings.from_power, shrunk**-settings.to_power
    return (diags(before) @ pairs @ diags(after)).tocsr().astype(np.float32)


def _cut(near: Any, most: int) -> Any:
    """The `most` largest entries of every row, equal ones by column."""
    from scipy.sparse import csr_matrix

    rows = np.repeat(np.arange(near.shape[0]), np.diff(near.indptr))
    order = np.lexsort((near.indices, -near.data, rows))
    ranks = np.arange(len(order)) - near.indptr[rows]  # rows stay where they are
    kept = np.sort(order[ranks < most])
    ends = np.concatenate(([0], np.cumsum(np.minimum(np.diff(near.indptr), most))))
    return csr_matrix((near.data[kept], near.indices[kept], ends), shape=near.shape)


def best_of(candidates: LongArray, scores: FloatArray, m: int) -> LongArray:
    """The `m` candidates of largest score, best first, equal ones by place."""
    if len(candidates) > m:
        enough = scores >= np.partition(scores, len(scores) - m)[len(scores) - m]
        candidates, scores = candidates[enough], scores[enough]
    return candidates[np.lexsort((candidates, -scores))][:m]
