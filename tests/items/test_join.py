"""New items take the codes of their neighbours, and nobody else's id changes."""

from __future__ import annotations

import numpy as np
import pytest

from draftrec.errors import DraftrecError
from draftrec.items.quantise import residual_kmeans, semantic_ids
from draftrec.items.semantic_ids import SemanticIds, joined
from draftrec.items.settings import QuantiseSettings


def test_codes_are_those_of_the_nearest_items() -> None:
    """Two clusters of two: what lies by one of them gets its first code, then the nearest free."""
    vectors = np.array([[0, 0], [0, 2], [10, 0], [10, 2], [10.1, 0.1], [0, 1.9]], np.float32)
    known = [["<a_0>", "<b_0>"], ["<a_0>", "<b_1>"], ["<a_1>", "<b_0>"], ["<a_1>", "<b_2>"]]
    sids = SemanticIds.of([1, 2, 3, 4], known)
    found, new = joined(sids, np.arange(1, 7), vectors)
    assert new.tolist() == [5, 6]
    assert found.sids_of([1, 2, 3, 4]) == sids.sids_of([1, 2, 3, 4])
    # b_0 lies at -1 below its cluster's middle, b_1 and b_2 at +1: the nearest free ones.
    assert found.sids_of([5]) == [["<a_1>", "<b_1>"]]
    assert found.sids_of([6]) == [["<a_0>", "<b_2>"]]
    assert found.tokens == sids.tokens


def test_a_share_taken_out_comes_back_among_its_like() -> None:
    random = np.random.default_rng(0)
    middles = 10 * random.normal(size=(8, 6))
    crowd = random.integers(0, 8, 300)
    vectors = (middles[crowd] + random.normal(size=(300, 6))).astype(np.float32)
    codes = residual_kmeans(vectors, QuantiseSettings(3, 8, max_load=4.0)).codes
    every = semantic_ids(np.arange(300), codes)
    kept = np.arange(300) % 10 > 0
    before = semantic_ids(np.arange(300)[kept], codes[kept])
    after, new = joined(before, np.arange(300), vectors)
    assert len(new) == 30
    assert len(np.unique(after.codes, axis=0)) == 300
    same = [a[0] == b[0] for a, b in zip(every.sids_of(new), after.sids_of(new), strict=True)]
    assert np.mean(same) > 0.9


def test_a_full_branch_is_shared_and_old_items_need_no_vector() -> None:
    sids = SemanticIds.of([1, 2, 9], [["<a_0>", "<b_0>"], ["<a_0>", "<b_1>"], ["<a_0>", "<b_2>"]])
    vectors = np.array([[0.0], [1.0], [0.9]], np.float32)
    found, new = joined(sids, np.array([1, 2, 5]), vectors)
    assert new.tolist() == [5]
    assert found.sids_of([5]) == [["<a_0>", "<b_1>"]]  # nothing says what b_2 means


def test_vectors_of_strangers_only_are_refused() -> None:
    sids = SemanticIds.of([1], [["<a_0>"]])
    with pytest.raises(DraftrecError, match="none of the items with vectors is in the catalogue"):
        joined(sids, np.array([2]), np.zeros((1, 2), np.float32))
