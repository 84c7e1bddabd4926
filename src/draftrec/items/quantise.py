"""Semantic ids from item vectors: residual k-means with even clusters, and no two items alike.

Residual quantisation alone crowds: some codes take a large share of the items, and many items end
with one tuple. So clusters are capped while they are fitted, and items that would still share a
tuple are moved to the nearest code that has room, on the last level unless it has none.
"""

from __future__ import annotations

import string
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from draftrec.core import FloatArray, IntArray, LongArray
from draftrec.errors import DraftrecError
from draftrec.items.ids import Ids
from draftrec.items.semantic_ids import SemanticIds
from draftrec.items.settings import QuantiseSettings
from draftrec.items.trie import ItemTrie

#: Vectors whose distances are held at once.
_CHUNK = 8192
#: Vectors per code that k-means sees; more do not move centroids by much.
_PER_CODE = 256


@dataclass(frozen=True, eq=False, slots=True)
class Quantised:
    """`codes` int32 `[n, L]`, all tuples different unless there are more items than tuples.

    `moved`: how often an item got another code for that; `codebooks` float32 `[L, K, d]`.
    """

    codes: IntArray
    codebooks: FloatArray
    moved: int

    def vectors(self) -> FloatArray:
        """What the codes stand for, float32 `[n, d]`."""
        out = np.zeros((len(self.codes), self.codebooks.shape[2]), np.float32)
        for level, codebook in enumerate(self.codebooks):
            out += codebook[self.codes[:, level]]
        return out


def residual_kmeans(vectors: FloatArray, settings: QuantiseSettings) -> Quantised:
    """Fit codebooks to `vectors` float32 `[n, d]` level by level, each to what the levels before
    leave over, and give every vector its codes. They are to be near 0 and 1: see `centred`.

    Raises DraftrecError for fewer vectors than codes.
    """
    if len(vectors) < settings.codes:
        raise DraftrecError(
            f"{len(vectors):,} items are too few for {settings.codes:,} codes per level; ask for "
            "fewer with --codes"
        )
    cap = settings.cap(len(vectors))

    def fit(residual: FloatArray, level: int) -> FloatArray:
        centroids = _centroids(residual, settings, level)
        for _ in range(settings.rounds):
            centroids = _means(residual, capped_assignment(residual, centroids, cap), centroids)
        return centroids

    return _by_level(vectors, fit, settings)


def centred(vectors: FloatArray) -> FloatArray:
    """`vectors` float32 `[n, d]` about their mean, the largest number 1: distances lose no digits
    to a common offset, nor overflow, and who is nearest to whom stays. Equal vectors become 0."""
    moved = vectors - vectors.mean(axis=0, dtype=np.float64)
    largest = float(np.abs(moved).max(initial=0.0))
    return (moved / largest if largest else moved).astype(np.float32)


def rounding_share(vectors: FloatArray) -> float:
    """How much of the variance of `vectors` float32 `[n, d]` their rounding may be: near 1 where
    they differ in their last digits alone. 0 for equal ones."""
    noise = (vectors.mean(axis=0, dtype=np.float64) * np.finfo(np.float32).eps / 2) ** 2
    variance = vectors.var(axis=0, dtype=np.float64)
    whole = float(variance.sum())
    return float(noise[variance > 0].sum()) / whole if whole else 0.0


def assign(vectors: FloatArray, codebooks: FloatArray, settings: QuantiseSettings) -> Quantised:
    """Codes of `vectors` float32 `[n, d]` in `codebooks` float32 `[L, K, d]` that something else
    has fitted, with the same caps and the same separation."""
    return _by_level(vectors, lambda residual, level: codebooks[level], settings)


def capped_assignment(vectors: FloatArray, centroids: FloatArray, cap: int) -> IntArray:
    """The cluster int32 `[n]` of every vector, none of them larger than `cap`.

    Deferred acceptance (Gale and Shapley 1962, section 3): a vector goes to the nearest centroid
    that would have it; a full cluster gives up its farthest member for a nearer one, which goes on
    to the next. The result is stable: no vector and cluster would both rather have each other.
    Raises ValueError when `cap` leaves no room for all.
    """
    n, k = len(vectors), len(centroids)
    if cap * k < n:
        raise ValueError(f"{k} clusters of {cap} have no room for {n} vectors")
    codes = np.full(n, -1, np.int32)
    distances = np.empty(n, np.float32)
    limits = np.full(k, np.inf, np.float32)  # a full cluster takes what is nearer than this
    waiting = np.arange(n)
    while len(waiting):
        codes[waiting], distances[waiting] = _nearest(vectors, waiting, centroids, limits)
        asked = np.zeros(k, np.bool_)
        asked[codes[waiting]] = True
        rows = np.flatnonzero((codes >= 0) & asked[codes])
        # By cluster, nearest first, so that a member's rank is its distance from the first one.
        rows = rows[np.lexsort((distances[rows], codes[rows]))]
        sizes = np.bincount(codes[rows], minlength=k)
        starts = np.cumsum(sizes) - sizes
        ranks = np.arange(len(rows)) - np.repeat(starts, sizes)
        full = np.flatnonzero(sizes >= cap)
        limits[full] = distances[rows[starts[full] + cap - 1]]
        waiting = np.sort(rows[ranks >= cap])
        codes[waiting] = -1
    return codes


def separate(
    codes: IntArray, residual: FloatArray, codebook: FloatArray, room: int
) -> tuple[IntArray, int]:
    """Codes int32 `[n, l]` of the first l levels, so that at most `room` items share all of them as
    far as that can be, and how many items were moved.

    Of items with one tuple, those nearest to their last code stay; the others, nearest first, move
    to the nearest code of `codebook` float32 `[K, d]` that has room below their other codes.
    `residual` float32 `[n, d]` is what the levels before the last leave over.
    """
    codes = codes.copy()
    trie = ItemTrie.build(np.arange(len(codes)), codes)
    crowded = np.flatnonzero(np.diff(trie.item_start) > room) + trie.level_start[-2]
    parents = trie.parents(crowded, trie.levels)
    moved = 0
    distinct, starts = np.unique(parents, return_index=True)  # a parent's leaves lie together
    for parent, leaves in zip(distinct, np.split(crowded, starts[1:]), strict=False):
        sizes = _sizes(trie, parent, len(codebook))
        for leaf in leaves.tolist():
            for row in _farthest(trie.items_at(leaf), codes, residual, codebook, room):
                open_codes = np.flatnonzero(sizes < room)
                if not len(open_codes):
                    break
                apart = ((codebook[open_codes] - residual[row]) ** 2).sum(axis=1)
                best = open_codes[apart.argmin()]
                sizes[codes[row, -1]] -= 1
                sizes[best] += 1
                codes[row, -1] = best
                moved += 1
    return codes, moved


def semantic_ids(items: Ids, codes: IntArray) -> SemanticIds:
    """Codes int32 `[n, L]` as tokens: `<a_12>` is code 12 of the first level, `<b_12>` of the
    second. Raises DraftrecError for what `SemanticIds` refuses."""
    marked = codes + (np.arange(codes.shape[1], dtype=np.int64) << 24)
    used, places = np.unique(marked, return_inverse=True)
    tokens = [f"<{string.ascii_lowercase[u >> 24]}_{u & 0xFFFFFF}>" for u in used.tolist()]
    return SemanticIds.from_codes(items, places.reshape(codes.shape).astype(np.int32), tokens)


def relative_error(vectors: FloatArray, rebuilt: FloatArray) -> float:
    """Squared distance of `rebuilt` from `vectors`, both float32 `[n, d]`, as a share of the
    vectors' own around their mean; 0 when all are rebuilt exactly."""
    apart = float(((vectors - rebuilt) ** 2).sum(dtype=np.float64))
    spread = float(((vectors - vectors.mean(axis=0)) ** 2).sum(dtype=np.float64))
    return apart / spread if spread else float(apart > 0)


def _by_level(
    vectors: FloatArray,
    codebook_of: Callable[[FloatArray, int], FloatArray],
    settings: QuantiseSettings,
) -> Quantised:
    """Codes level by level; `codebook_of` gets what is left over, float32 `[n, d]`, and the level.

    On every level, at most as many items share all codes so far as the levels below can tell apart.
    """
    residual = vectors.copy()
    codes = np.empty((len(vectors), settings.levels), np.int32)
    codebooks: list[FloatArray] = []
    moved = 0
    for level in range(settings.levels):
        codebook = codebook_of(residual, level)
        codes[:, level] = capped_assignment(residual, codebook, settings.cap(len(vectors)))
        room = settings.codes ** (settings.levels - level - 1)
        codes[:, : level + 1], more = separate(codes[:, : level + 1], residual, codebook, room)
        residual -= codebook[codes[:, level]]
        codebooks.append(codebook)
        moved += more
    return Quantised(codes, np.stack(codebooks), moved)


def _centroids(residual: FloatArray, settings: QuantiseSettings, level: int) -> FloatArray:
    """Where k-means starts: float32 `[K, d]`, fitted to a sample if there are many vectors."""
    from sklearn.cluster import MiniBatchKMeans  # pyright: ignore[reportMissingTypeStubs]
    from sklearn.exceptions import ConvergenceWarning  # pyright: ignore[reportMissingTypeStubs]

    random = np.random.default_rng([settings.seed, level])
    most = _PER_CODE * settings.codes
    if len(residual) > most:
        residual = residual[np.sort(random.choice(len(residual), most, replace=False))]
    # Few passes: the capped rounds go on from here.
    options: dict[str, Any] = {"n_init": 1, "batch_size": 4096, "max_iter": 10}
    seed = int(random.integers(2**31))
    model: Any = MiniBatchKMeans(settings.codes, random_state=seed, **options)
    with warnings.catch_warnings():
        # Fewer distinct vectors than codes: equal centroids share what lies at one point.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.ascontiguousarray(model.fit(residual).cluster_centers_, np.float32)


def _means(vectors: FloatArray, codes: IntArray, before: FloatArray) -> FloatArray:
    """The mean of every cluster, float32 `[K, d]`; a cluster without members stays where it was."""
    from scipy.sparse import csr_matrix  # pyright: ignore[reportMissingTypeStubs]

    n, k = len(vectors), len(before)
    members: Any = csr_matrix((np.ones(n, np.float32), codes, np.arange(n + 1)), shape=(n, k))
    sizes = np.bincount(codes, minlength=k)[:, None]
    sums: npt.NDArray[Any] = np.asarray(members.T @ vectors)
    return np.where(sizes > 0, sums / np.maximum(sizes, 1), before).astype(np.float32)


def _nearest(
    vectors: FloatArray, rows: LongArray, centroids: FloatArray, limits: FloatArray
) -> tuple[IntArray, FloatArray]:
    """The nearest centroid int32 `[r]` of every row that is nearer than its limit, and its squared
    distance float32 `[r]`."""
    lengths = (centroids**2).sum(axis=1)
    codes = np.empty(len(rows), np.int32)
    distances = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _CHUNK):
        part = vectors[rows[start : start + _CHUNK]]
        apart = (part**2).sum(axis=1)[:, None] + lengths - 2.0 * (part @ centroids.T)
        np.copyto(apart, np.inf, where=apart >= limits)
        best = apart.argmin(axis=1)
        codes[start : start + _CHUNK] = best
        distances[start : start + _CHUNK] = apart[np.arange(len(part)), best]
    return codes, distances


def _sizes(trie: ItemTrie, parent: int, codes: int) -> LongArray:
    """Items int64 `[K]` below each child of a node of the last level but one."""
    below = np.arange(int(trie.first[parent]), int(trie.first[parent + 1]))
    leaves = below - int(trie.level_start[-2])
    sizes = np.zeros(codes, np.int64)
    sizes[trie.tokens[below]] = trie.item_start[leaves + 1] - trie.item_start[leaves]
    return sizes


def _farthest(
    rows: LongArray, codes: IntArray, residual: FloatArray, codebook: FloatArray, room: int
) -> LongArray:
    """The rows of one tuple without the `room` nearest to its last code, nearest first."""
    apart = ((residual[rows] - codebook[codes[rows[0], -1]]) ** 2).sum(axis=1)
    return rows[np.argsort(apart, kind="stable")[room:]]
