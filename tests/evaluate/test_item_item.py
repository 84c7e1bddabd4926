"""Item-item's settings for one's own sequences: the search climbs, and planted habits decide."""

from __future__ import annotations

import numpy as np
import pytest

from draftrec.config import RetrieverSettings
from draftrec.data.sequences import History
from draftrec.evaluate import item_item
from draftrec.items.semantic_ids import SemanticIds


def test_the_search_climbs_to_the_best_settings_of_the_space() -> None:
    wanted = {name: options[1] for name, options in item_item.SPACE.items()}

    def value(settings: RetrieverSettings) -> float:
        return -sum(abs(getattr(settings, name) - wanted[name]) for name in wanted)

    found, tried = item_item.search(value, draws=3, seed=0)
    assert {name: getattr(found, name) for name in wanted} == pytest.approx(wanted)
    assert 3 < tried < 500
    assert item_item.search(value, draws=3, seed=0) == (found, tried)


def test_settings_are_rated_by_what_they_find() -> None:
    """Everybody goes through the items in order: what follows is found, what is popular is not."""
    sids = SemanticIds.of(np.arange(100, 130), [[f"<a_{i}>"] for i in range(30)])
    rows = [np.arange(start, start + 6) for start in range(20)]
    histories = [History(u, 100 + row[:5], 100 + row[5:]) for u, row in enumerate(rows)]
    known = [row[:5] for row in rows]
    rated = item_item.rate_settings(known, sids, histories, 1, exclude_seen=True)
    follows = rated(RetrieverSettings(window=1, last=1, popularity=1e-6))
    # Nobody has gone on from the last item of all, so that nobody can know what comes then.
    assert follows.values("recall", 1).tolist() == [1.0] * 19 + [0.0]
    # The most popular item that a user does not have: 104, which is right for the one before it.
    popular = rated(RetrieverSettings(window=1, last=1, popularity=1e9))
    assert popular.values("recall", 1)[5:].sum() == 0
