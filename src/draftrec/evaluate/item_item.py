"""Which settings item-item co-occurrence should have for these sequences: random ones of a space,
the best of them improved one setting at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import asdict
from typing import Any

import numpy as np

from draftrec.config import RetrieverSettings
from draftrec.data.sequences import History
from draftrec.evaluate.blend import Way
from draftrec.items.hits import find_hits
from draftrec.items.retriever import ItemRetriever
from draftrec.items.semantic_ids import SemanticIds

#: Item-item as textbooks have it: cosine of the items' users, every history item alike.
UNTUNED = RetrieverSettings(
    window=1000, decay=1.0, backward=1.0, from_power=0.5, to_power=0.5, shrinkage=0.0,
    neighbours=1000, last=1000, recency=1.0, popularity=1e-6,
)  # fmt: skip
#: How many of the settings drawn are improved.
STARTS = 3
#: What is tried for each setting.
SPACE: dict[str, tuple[float, ...]] = {
    "window": (1, 2, 3, 5, 10, 20, 50),
    "decay": (0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "backward": (0.0, 0.25, 0.5, 0.75, 1.0),
    "from_power": (0.0, 0.25, 0.5, 0.75, 1.0),
    "to_power": (0.0, 0.15, 0.3, 0.45, 0.6),
    "shrinkage": (0.0, 1.0, 3.0, 10.0, 20.0, 40.0, 80.0),
    "neighbours": (20, 50, 100, 200, 500),
    "last": (1, 2, 3, 5, 10, 20),
    "recency": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "popularity": (1e-6, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1),
}
#: Settings that are whole numbers.
_WHOLE = ("window", "neighbours", "last")

Told = Callable[[int, RetrieverSettings, float], None]


def search(
    value: Callable[[RetrieverSettings], float],
    draws: int,
    seed: int,
    told: Told | None = None,
) -> tuple[RetrieverSettings, int]:
    """The settings with the highest `value` found, and how many were tried: the defaults and
    `draws` random ones of SPACE, then the best STARTS of them improved, one setting at a time,
    until nothing helps. `told` hears of each of these: how many were tried so far, the best, its
    value."""
    random = np.random.default_rng(seed)
    tried: dict[RetrieverSettings, float] = {}

    def rate(settings: RetrieverSettings) -> float:
        if settings not in tried:
            tried[settings] = value(settings)
        return tried[settings]

    for _ in range(draws):
        rate(_settings({name: random.choice(options) for name, options in SPACE.items()}))
    rate(UNTUNED)
    rate(RetrieverSettings())
    for start in sorted(tried, key=rate, reverse=True)[:STARTS]:
        best, before = start, None
        while best != before:
            before = best
            for name, options in SPACE.items():
                around = [best, *(_settings({**asdict(best), name: option}) for option in options)]
                best = max(around, key=rate)
        if told:
            told(len(tried), best, rate(best))
    return max(tried, key=rate), len(tried)


def rate_settings(
    known: Seq[np.ndarray], sids: SemanticIds, histories: Seq[History], k: int, *,
    exclude_seen: bool,
) -> Callable[[RetrieverSettings], Way]:  # fmt: skip
    """What item-item's best `k` items, fitted to `known` (places int64 `[h]` of every user), find
    of the targets of `histories`, whose items all have semantic ids."""
    places = [sids.places(history.items) for history in histories]
    targets = [history.targets for history in histories]

    def rated(settings: RetrieverSettings) -> Way:
        retriever = ItemRetriever.fit(known, len(sids), settings)
        rows, _ = retriever.propose_many(places, k, exclude_seen=exclude_seen)
        return Way("item-item", None, find_hits([sids.items[r[r >= 0]] for r in rows], targets))

    return rated


def _settings(values: dict[str, Any]) -> RetrieverSettings:
    typed: dict[str, Any] = {n: int(v) if n in _WHOLE else float(v) for n, v in values.items()}
    return RetrieverSettings(**typed)
