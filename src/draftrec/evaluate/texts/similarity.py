"""How near a run's texts stay to the baseline's in meaning: cosines of vectors or of TF-IDF."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.core import DoubleArray
from draftrec.data.files.places import Place, arrow_path
from draftrec.data.tables.readers import open_records
from draftrec.data.words import features
from draftrec.errors import DraftrecError
from draftrec.evaluate.texts.quality import Ratio, mean_where

#: Texts that differ from strangers' by less than this, on average, are all alike.
_NO_ROOM = 1e-6


@dataclass(frozen=True, eq=False, slots=True)
class Similarity:
    """float64 `[n]` both. `cosines`: each text with the baseline's text of the same entity;
    `strangers`: the same text with the baseline's texts of all others, on average."""

    cosines: DoubleArray
    strangers: DoubleArray

    @property
    def kept(self) -> Ratio:
        """`(cosine - strangers) / (1 - strangers)`, of sums: 1 as the baseline's own text, 0 as
        near to any other entity's. It means the same with every encoder, which the bare cosine does
        not: encoders find all texts of one kind alike. Nothing is measured where all are equal."""
        room = 1.0 - self.strangers
        if room.sum() < _NO_ROOM * len(room):
            return mean_where(room, np.zeros(len(room)))
        return Ratio(self.cosines - self.strangers, room)


def by_vectors(baseline: DoubleArray, run: DoubleArray) -> Similarity:
    """Cosines of vectors float64 `[n, d]`, rows in one order; a zero vector is like nothing."""
    a, b = _unit(baseline), _unit(run)
    own = np.clip((a * b).sum(axis=1), -1.0, 1.0)
    return Similarity(own, _strangers(b @ a.sum(axis=0), own))


def by_tf_idf(baseline: Seq[str], run: Seq[str]) -> Similarity:
    """Cosines of TF-IDF over words, fitted on these two lists; over characters and pairs of them in
    scripts without spaces. Words alone: a paraphrase counts as a change, so prefer vectors of an
    encoder where there is one."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    equal = np.array([a == b for a, b in zip(baseline, run, strict=True)])
    options: dict[str, Any] = {"analyzer": features, "sublinear_tf": True}
    vectorizer: Any = TfidfVectorizer(**options)
    try:
        vectorizer.fit([*baseline, *run])
    except ValueError:  # not one word in all texts
        return Similarity(equal.astype(np.float64), np.zeros(len(equal)))
    a, b = (vectorizer.transform(texts) for texts in (baseline, run))
    dots = np.asarray(a.multiply(b).sum(axis=1), np.float64).ravel()
    own = np.where(equal, 1.0, np.clip(dots, 0.0, 1.0))
    sums = np.asarray(a.sum(axis=0), np.float64).ravel()
    return Similarity(own, _strangers(b @ sums, own))


def read_text_vectors(path: str | Place, entity_ids: Seq[str]) -> DoubleArray:
    """The vectors that `draftrec encode` wrote (`entity_id`, `vector`), float64 `[n, d]` in the
    order of `entity_ids`. Raises DraftrecError for other files and for entities without one."""
    source = open_records(path)
    if source.kind != "parquet":
        raise DraftrecError(f"{path} is not Parquet; give vectors that `draftrec encode` wrote")
    source.require(["entity_id", "vector"], "give vectors that `draftrec encode` wrote")
    places: dict[str, int] = {}
    blocks: list[DoubleArray] = []
    for file in source.files:
        table = pq.read_table(arrow_path(file), columns=["entity_id", "vector"])
        blocks.append(_matrix(table["vector"].combine_chunks(), file))
        for entity in table["entity_id"].to_pylist():
            places[str(entity)] = len(places)
    if len({b.shape[1] for b in blocks}) > 1 or len(places) < sum(map(len, blocks)):
        raise DraftrecError(f"{path} has vectors of two lengths or an entity twice; encode again")
    absent = [e for e in entity_ids if e not in places]
    if absent:
        raise DraftrecError(
            f"{path} lacks the vectors of {len(absent)} entities (the first is {absent[0]!r}); "
            "encode the whole run"
        )
    return np.concatenate(blocks)[[places[e] for e in entity_ids]]


def _matrix(column: Any, path: Place) -> DoubleArray:
    try:
        lengths = np.asarray(column.value_lengths().fill_null(0))
        flat = np.asarray(column.flatten().cast(pa.float64()))
    except (pa.ArrowException, AttributeError) as error:
        raise DraftrecError(
            f"{path}: vector does not hold lists of numbers; encode again"
        ) from error
    if not len(lengths) or (lengths != lengths[0]).any() or not lengths[0]:
        raise DraftrecError(f"{path}: the vectors are not equally long; encode again")
    if not np.isfinite(flat).all():
        raise DraftrecError(f"{path}: a vector holds a number that is not finite; encode again")
    return flat.reshape(len(lengths), int(lengths[0]))


def _unit(vectors: DoubleArray) -> DoubleArray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)


def _strangers(with_all: DoubleArray, own: DoubleArray) -> DoubleArray:
    """Mean cosine with the others, from the sum over all; 0 where there is no other."""
    return np.clip((with_all - own) / max(len(own) - 1, 1), -1.0, 1.0)
