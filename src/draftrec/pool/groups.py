"""Who shares a pool: groups by an attribute, by taste, or at random; and where strangers belong.

Collaborative groups: item factors of the interaction matrix, an entity's vector is the normalised
sum of its items' factors, k-means over these vectors. An entity that comes later is treated like
all others, so it can be assigned from the stored factors and centroids without fitting again.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from datetime import datetime, time
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from draftrec.core import FloatArray
from draftrec.data.files.places import Place
from draftrec.data.files.writers import replacing
from draftrec.data.settings import GroupSettings
from draftrec.data.tables.values import as_list
from draftrec.errors import DraftrecError, needing
from draftrec.items.factors import damped_svd

#: How missing values look once a program has made texts of them.
_MISSING = ("nan", "NaN", "NaT", "<NA>")
_WHOLE = re.compile(r"([+-]?\d+)\.0*")
_ROUNDS = {"als": 8, "bpr": 60}


def attribute_groups(
    rows: Iterable[tuple[str, Any]],
    names: Mapping[str, str] | None = None,
    *,
    first_of_list: bool = False,
) -> dict[str, str | None]:
    """Entity -> the value of its attribute, or the name that `names` has for the value.

    Values are compared as texts, whole numbers and booleans however they are written (25.0 is 25).
    A value that `names` does not hold gets the name of "*", or None without one; a missing one gets
    that of "null", or None. Of a list the first member counts, the first that `names` holds where
    there is one, if `first_of_list`. Raises DraftrecError for a list without that, and for objects.
    """
    known = {name: group for name, group in (names or {}).items() if name != "*"}
    written_otherwise = {_canonical(name): group for name, group in known.items()}
    found: dict[str, str | None] = {}
    for entity_id, value in rows:
        members = [_text(v) for v in _members(entity_id, value, first_of_list=first_of_list)]
        texts = [text for text in members if text is not None and text not in _MISSING]
        if not texts:
            found[entity_id] = known.get("null")
        elif names is None:
            whole = _WHOLE.fullmatch(texts[0])
            found[entity_id] = whole[1] if whole else texts[0]
        else:
            groups = (known.get(t, written_otherwise.get(_canonical(t))) for t in texts)
            found[entity_id] = next((g for g in groups if g is not None), names.get("*"))
    return found


def _members(entity_id: str, value: Any, *, first_of_list: bool) -> list[Any]:
    listed = as_list(value)
    if isinstance(value, dict | tuple | bytes) or (listed is not None and not first_of_list):
        kind = "a list" if listed is not None else f"{type(value).__name__}, no plain value"
        raise DraftrecError(
            f"the value of {entity_id!r} is {kind} ({str(value)[:60]}), and an entity has one "
            "group; group by the first of each list with --first-of-list, or name another column"
        )
    return [value] if listed is None else listed


def _text(value: Any) -> str | None:
    """A value as its group's name."""
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    return None if value is None else str(value)


def _canonical(text: str) -> str:
    """One form for what means the same: a whole number with and without `.0`, a boolean."""
    if match := _WHOLE.fullmatch(text):
        return match[1]
    return text.lower() if text.lower() in ("true", "false") else text


def random_groups(entities: Iterable[str], clusters: int, seed: int) -> dict[str, str | None]:
    """Entity -> one of `clusters` groups by a hash of its id: the same whoever else is there."""

    def place(entity_id: str) -> int:
        digest = hashlib.blake2b(f"{seed}:{entity_id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % clusters

    return {entity_id: f"random-{place(entity_id)}" for entity_id in entities}


@dataclass(frozen=True, eq=False, slots=True)
class TasteGroups:
    """Item factors float32 `[items, factors]` and centroids float32 `[clusters, factors]`."""

    items: tuple[str, ...]
    item_factors: FloatArray
    centroids: FloatArray
    least: int

    @classmethod
    def fit(cls, histories: Mapping[str, Seq[str]], settings: GroupSettings) -> TasteGroups:
        """Fit item factors and centroids to entity -> items.

        Raises DraftrecError for too few entities or items, or when a method's package is missing.
        """
        items = tuple(sorted({item for history in histories.values() for item in history}))
        rich = [h for h in histories.values() if len(h) >= settings.least]
        if len(rich) < settings.clusters:
            raise DraftrecError(
                f"only {len(rich):,} entities have {settings.least} interactions or more, too few "
                f"for {settings.clusters:,} clusters; ask for fewer, or lower --min-interactions"
            )
        factors = min(settings.factors, len(items) - 1, len(histories) - 1)
        if factors < 1:
            raise DraftrecError("interactions of one item or one entity cannot be grouped by taste")
        item_factors = _item_factors(_matrix(histories.values(), items), factors, settings)
        bare = cls(items, item_factors, np.empty((0, factors), np.float32), settings.least)
        centroids = _centroids(bare.vectors(rich), settings)
        return cls(items, item_factors, centroids, settings.least)

    def vectors(self, histories: Seq[Seq[str]]) -> FloatArray:
        """float32 `[n, factors]` of length 1; zeros where no item is known."""
        sums = _matrix(histories, self.items) @ self.item_factors
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        return (sums / np.maximum(lengths, 1e-12)).astype(np.float32)

    def assign(self, histories: Mapping[str, Seq[str]]) -> dict[str, str | None]:
        """Entity -> its nearest centroid's group; None with too few interactions to tell."""
        vectors = self.vectors(list(histories.values()))
        # Squared distances but for a constant per row: vectors have length 1, centroids less.
        nearness = vectors @ self.centroids.T - 0.5 * (self.centroids**2).sum(axis=1)
        nearest = nearness.argmax(axis=1)
        return {
            entity: f"taste-{nearest[i]}"
            if len(history) >= self.least and vectors[i].any()
            else None
            for i, (entity, history) in enumerate(histories.items())
        }

    def save(self, path: Place) -> None:
        """Write everything that `assign` needs to an .npz file, which appears when it is whole."""
        with replacing(path) as file:
            np.savez_compressed(
                file,
                items=np.array(self.items),
                item_factors=self.item_factors,
                centroids=self.centroids,
                least=np.array(self.least),
            )

    @classmethod
    def load(cls, path: Place) -> TasteGroups:
        """Read what `save` wrote. Raises DraftrecError for anything else."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                return cls(
                    tuple(found["items"].tolist()),
                    found["item_factors"],
                    found["centroids"],
                    int(found["least"]),
                )
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, TypeError) as error:
            raise DraftrecError(
                f"{path} is no model of `draftrec group collaborative` ({error}); name the file "
                "that it wrote beside its groups"
            ) from error


def routed(first: Mapping[str, str | None], fallback: Mapping[str, str | None]) -> dict[str, Any]:
    """The group of `first` where it has one, otherwise that of `fallback`."""
    entities = [*first, *(e for e in fallback if e not in first)]
    return {e: first.get(e) or fallback.get(e) for e in entities}


def _matrix(histories: Iterable[Seq[str]], items: Seq[str]) -> Any:
    """Sparse float32 `[entities, items]` of ones; unknown items are left out."""
    from scipy.sparse import csr_matrix

    place = {item: i for i, item in enumerate(items)}
    columns: list[int] = []
    ends = [0]
    for history in histories:
        columns += sorted({place[item] for item in history if item in place})
        ends.append(len(columns))
    ones = np.ones(len(columns), np.float32)
    return csr_matrix((ones, columns, ends), shape=(len(ends) - 1, len(items)))


def _item_factors(matrix: Any, factors: int, settings: GroupSettings) -> FloatArray:
    if settings.method == "svd":
        components, _, damp = damped_svd(matrix, factors, settings.seed)
        return np.ascontiguousarray(components.T * damp[:, None], np.float32)
    return _implicit_factors(matrix, factors, settings)


def _implicit_factors(matrix: Any, factors: int, settings: GroupSettings) -> FloatArray:
    with needing("cf", f"--method {settings.method} needs implicit", "use --method svd"):
        from implicit.als import AlternatingLeastSquares
        from implicit.bpr import BayesianPersonalizedRanking
    from threadpoolctl import threadpool_limits

    kinds = {"als": AlternatingLeastSquares, "bpr": BayesianPersonalizedRanking}
    # Several threads add numbers in another order every time, and BLAS's own slow implicit down.
    with threadpool_limits(1, "blas"):
        model = kinds[settings.method](
            factors=factors,
            iterations=_ROUNDS[settings.method],
            random_state=settings.seed,
            num_threads=1,
            use_gpu=False,
        )
        model.fit(matrix, show_progress=False)
    # BPR's last column is the item's bias, which is no taste.
    return np.ascontiguousarray(np.asarray(model.item_factors)[:, :factors], np.float32)


def _centroids(vectors: npt.NDArray[Any], settings: GroupSettings) -> FloatArray:
    from sklearn.cluster import MiniBatchKMeans

    options: dict[str, Any] = {"n_init": 3, "batch_size": 4096, "random_state": settings.seed}
    model: Any = MiniBatchKMeans(settings.clusters, **options)
    return np.ascontiguousarray(model.fit(vectors).cluster_centers_, np.float32)
