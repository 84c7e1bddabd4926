"""What items have in common with those that are taken together: factors of who took what."""

# Neither SciPy nor scikit-learn has types, so that strict checks say nothing.
# pyright: standard
from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np

from draftrec.core import FloatArray, LongArray


def item_factors(histories: Seq[LongArray], items: int, factors: int, seed: int) -> FloatArray:
    """float32 `[items, factors]`, of length 1, 0 for items in no history: near where the same users
    took both. `histories`: each user's places int64 `[h]`. Fewer factors where users or items are
    fewer."""
    from scipy.sparse import csr_matrix

    taken = [np.unique(history) for history in histories]
    ends = np.cumsum([0, *map(len, taken)])
    columns = np.concatenate([np.empty(0, np.int64), *taken])
    ones = np.ones(len(columns), np.float32)
    matrix = csr_matrix((ones, columns, ends), shape=(len(taken), items))
    components, values, _ = damped_svd(matrix, factors, seed)
    found = components.T * values
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.divide(found, lengths, out=np.zeros_like(found), where=lengths > 0).astype(np.float32)


def damped_svd(matrix: Any, factors: int, seed: int) -> tuple[Any, Any, Any]:
    """The largest singular vectors `[factors, items]` and values `[factors]` of a sparse matrix of
    ones `[users, items]`, users scaled to length 1 and items by `damp` `[items]`, which is
    returned, too: frequent items say less about taste."""
    from sklearn.decomposition import TruncatedSVD

    counts = np.asarray(matrix.sum(axis=0)).ravel()
    damp = 1.0 / np.sqrt(np.maximum(counts, 1.0))
    lengths = np.sqrt(np.maximum(np.asarray(matrix.sum(axis=1)), 1.0))
    scaled = matrix.multiply(damp).multiply(1.0 / lengths).tocsr()
    with np.errstate(divide="ignore", invalid="ignore"):  # of a single user nothing varies
        model: Any = TruncatedSVD(min(factors, *matrix.shape), random_state=seed).fit(scaled)
    return model.components_, model.singular_values_, damp
