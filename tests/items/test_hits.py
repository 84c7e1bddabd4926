"""Hits of lists, and what they come to for each user; means of them are tested with
`evaluate.ranking`."""

from __future__ import annotations

import numpy as np
import pytest

from draftrec.items.hits import find_hits


def test_what_is_listed_or_wanted_twice_counts_once() -> None:
    hits = find_hits([np.array([4, 4, 4])], [np.array([4, 4, 5])])
    assert hits.found.tolist() == [[True, False, False]]
    assert hits.recall(3).tolist() == [0.5]
    assert hits.ndcg(3).tolist() == [pytest.approx(1 / (1 + 1 / np.log2(3)))]


def test_ndcg_counts_every_target_once_and_early_ones_more() -> None:
    targets = [np.array(it) for it in ([7], [1, 1], [9, 7], [5])]
    ndcg = find_hits([np.array([7, 3, 9, 1])] * 4, targets).ndcg(4)
    both = (1 + 1 / np.log2(4)) / (1 + 1 / np.log2(3))
    assert ndcg.tolist() == [1.0, pytest.approx(1 / np.log2(5)), pytest.approx(both), 0.0]
