"""Which weights a blend of a model, item-item co-occurrence and an item model should have: what
each reaches.

A search of the users is run once; every weight ranks what it found anew.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np

from draftrec.core import DoubleArray
from draftrec.data.sequences import History
from draftrec.engine.beams.state import BeamRequest, Beams
from draftrec.errors import DraftrecError
from draftrec.evaluate.ranking import KS
from draftrec.evaluate.settings import Metric
from draftrec.items.hits import Hits, find_hits
from draftrec.jobs.recommend.catalogue import Query
from draftrec.jobs.recommend.recommender import ItemRecommender

Weights = tuple[float, ...]
#: What is tried; 0 ranks the items of both by the model alone.
WEIGHTS: tuple[Weights, ...] = tuple(
    (it,) for it in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
)
#: What is tried with an item model: item-item's share and its.
PAIRS: tuple[Weights, ...] = tuple(
    (item_item / 10, model / 10) for item_item in range(11) for model in range(11 - item_item)
)
MODEL, ITEMS, ITEM_MODEL = "the model alone", "item-item alone", "the item model alone"


@dataclass(frozen=True, eq=False, slots=True)
class Way:
    """A way to rank: the `weights` of a blend, item-item's and perhaps the item model's; None for
    the list that one of them makes alone."""

    name: str
    weights: Weights | None
    hits: Hits

    @property
    def weight(self) -> float | None:
        """Item-item's."""
        return self.weights[0] if self.weights else None

    def values(self, metric: Metric, k: int) -> DoubleArray:
        """float64 `[n]`: the metric of every user."""
        return self.hits.recall(k) if metric == "recall" else self.hits.ndcg(k)

    def row(self, ks: Seq[int]) -> dict[str, Any]:
        """`recall@k` and `ndcg@k`, means over users, each with its standard `_error`."""
        found: dict[str, Any] = {"weight": self.weight}
        if self.weights and len(self.weights) > 1:
            found["item_model"] = self.weights[1]
        for k in ks:
            for metric in ("recall", "ndcg"):
                values = self.values(metric, k)
                found[f"{metric}@{k}"] = round(float(values.mean()), 6)
                found[f"{metric}@{k}_error"] = round(mean_error(values), 6)
        return found


def mean_error(values: DoubleArray) -> float:
    """The standard error of the mean of `values` float64 `[n]`; 0 for a single one."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def rank_by_weight(
    recommender: ItemRecommender,
    histories: Seq[History],
    weights: Seq[Weights] | None = None,
    on_done: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Way]:
    """The model's own lists, item-item's, an item model's where there is one, and the blend's by
    weights (None: WEIGHTS, or PAIRS with an item model), of users who have a history and targets;
    `recommender`: one that blends with item-item, by whatever weights.

    Raises DraftrecError where nobody has a history, Interrupted once `should_stop()` is true.
    """
    histories = [h for h in histories if len(h.items)]
    if not histories:
        raise DraftrecError("nobody has a history, so there is nothing to blend; give one that has")
    queries = [Query(h.user, h.items) for h in histories]
    catalogue, k = recommender.catalogue, recommender.config.k
    items, item_model = catalogue.sids.items, recommender.item_model
    weights = weights or (PAIRS if item_model else WEIGHTS)
    sides = (MODEL, ITEMS, ITEM_MODEL) if item_model else (MODEL, ITEMS)
    alone = {name: [items[:0]] * len(queries) for name in sides}
    blends = [[items[:0]] * len(queries) for _ in weights]

    def rank(place: int, request: BeamRequest, beams: Beams, _seconds: float) -> None:
        query = queries[place]
        alone[MODEL][place] = items[catalogue.places_of(beams, request.filter, k)[0]]
        alone[ITEMS][place] = recommender.quick_answer(query).items
        if item_model:
            alone[ITEM_MODEL][place] = items[recommender.proposed(query, item_model)[0]]
        candidates = catalogue.candidates(request, beams, recommender.scorers)
        for weight, lists in zip(weights, blends, strict=True):
            lists[place] = items[candidates.best(weight, k)[0]]

    recommender.search(queries, on_done, should_stop, rank)
    targets = [h.targets for h in histories]
    return [
        *(Way(name, None, find_hits(found, targets)) for name, found in alone.items()),
        *(
            Way(name_of(weight), weight, find_hits(lists, targets))
            for weight, lists in zip(weights, blends, strict=True)
        ),
    ]


def name_of(weights: Weights) -> str:
    """How a blend is called."""
    return ", ".join(f"{weight:g}" for weight in weights)


def best_way(ways: Seq[Way], metric: Metric, k: int) -> Way:
    """The best of the blends, of equals the one that is best by the other metric, then the one of
    least weight; the model alone where none is better."""
    able = [way for way in ways if way.weights or way.name == MODEL]
    both = (metric, "ndcg" if metric == "recall" else "recall")
    return max(able, key=lambda way: tuple(float(way.values(m, k).mean()) for m in both))


_OVER = {MODEL: "gain", ITEMS: "over_item_item", ITEM_MODEL: "over_item_model"}


def blend_summary(ways: Seq[Way], metric: Metric, k: int) -> dict[str, Any]:
    """What was chosen, by what, and every way's figures. `gain`: of the chosen one over the model
    alone, user by user, with its standard error; `over_item_item`, `over_item_model`: the same over
    these."""
    chosen = best_way(ways, metric, k)
    own, gains = chosen.values(metric, k), dict[str, float]()
    for way in ways:
        if name := _OVER.get(way.name):
            over = own - way.values(metric, k)
            gains[name] = round(float(over.mean()), 6)
            gains[f"{name}_error"] = round(mean_error(over), 6)
    weights = chosen.weights or ()
    pair = {"blend_item_model": weights[1]} if len(weights) > 1 else {}
    ks = sorted({*(size for size in KS if size <= k), k})
    return {
        "users": len(chosen.hits.targets),
        "metric": f"{metric}@{k}",
        "blend": chosen.weight,
        **pair,
        **gains,
        "ways": {way.name: way.row(ks) for way in ways},
    }


def blend_yaml(summary: dict[str, Any], settings: dict[str, Any]) -> str:
    """A settings file for `genrec recommend --config`, with the reasons as comments; `settings`:
    further options that the weight was chosen with."""
    metric, ways = summary["metric"], summary["ways"]
    lines = [
        f"# {metric} of {name}: {ways[name][metric]} (error {ways[name][f'{metric}_error']})"
        for name in _OVER
        if name in ways
    ]
    if summary["blend"] is None:
        return "\n".join([*lines, "# No blend is better than the model alone."]) + "\n"
    weights = {name: summary[name] for name in ("blend", "blend_item_model") if name in summary}
    chosen = ways[name_of(tuple(weights.values()))]
    lines.append(f"# {metric} of the blend: {chosen[metric]} (error {chosen[f'{metric}_error']})")
    lines += [f"{name}: {weight:g}" for name, weight in weights.items()]
    lines += [f"{name}: {str(value).lower()}" for name, value in settings.items()]
    return "\n".join(lines) + "\n"
