"""Which weight a blend of a model and item-item co-occurrence should have: what each reaches.

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
from draftrec.errors import DraftrecError
from draftrec.evaluate.ranking import KS, Hits, find_hits
from draftrec.evaluate.settings import Metric
from draftrec.items.ids import Ids
from draftrec.jobs.recommend.catalogue import Query
from draftrec.jobs.recommend.recommender import ItemRecommender

#: What is tried; 0 ranks the items of both by the model alone.
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
MODEL, ITEMS = "the model alone", "item-item alone"


@dataclass(frozen=True, eq=False, slots=True)
class Way:
    """A way to rank: the `weight` of a blend, None for the model's or item-item's own list."""

    name: str
    weight: float | None
    hits: Hits

    def values(self, metric: Metric, k: int) -> DoubleArray:
        """float64 `[n]`: the metric of every user."""
        return self.hits.recall(k) if metric == "recall" else self.hits.ndcg(k)

    def row(self, ks: Seq[int]) -> dict[str, Any]:
        """`recall@k` and `ndcg@k`, means over users, each with its standard `_error`."""
        found: dict[str, Any] = {"weight": self.weight}
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
    weights: Seq[float] = WEIGHTS,
    on_done: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Way]:
    """The model's own lists, item-item's, and the blend's by weight, of users who have a history
    and targets; `recommender`: one that blends, by whatever weight.

    Raises DraftrecError where nobody has a history, Interrupted once `should_stop()` is true.
    """
    histories = [h for h in histories if len(h.items)]
    if not histories:
        raise DraftrecError("nobody has a history, so there is nothing to blend; give one that has")
    queries = [Query(h.user, h.items) for h in histories]
    retriever, catalogue, k = recommender.popular, recommender.catalogue, recommender.config.k
    assert retriever is not None
    items = catalogue.sids.items
    lists: dict[float | None, list[Ids]] = {weight: [] for weight in (None, *weights)}
    for request, beams, _ in recommender.search(queries, on_done, should_stop):
        lists[None].append(items[catalogue.places_of(beams, request.filter, k)[0]])
        candidates = catalogue.candidates(request, beams, retriever)
        for weight in weights:
            lists[weight].append(items[candidates.best(weight, k)[0]])
    own = [recommender.quick_answer(query).items for query in queries]
    targets = [h.targets for h in histories]
    return [
        Way(MODEL, None, find_hits(lists[None], targets)),
        Way(ITEMS, None, find_hits(own, targets)),
        *(Way(f"{w:g}", w, find_hits(lists[w], targets)) for w in weights),
    ]


def best_way(ways: Seq[Way], metric: Metric, k: int) -> Way:
    """The best of the blends, of equals the one that is best by the other metric, then the one of
    least weight; the model alone where none is better."""
    able = [way for way in ways if way.name != ITEMS]
    both = (metric, "ndcg" if metric == "recall" else "recall")
    return max(able, key=lambda way: tuple(float(way.values(m, k).mean()) for m in both))


def blend_summary(ways: Seq[Way], metric: Metric, k: int) -> dict[str, Any]:
    """What was chosen, by what, and every way's figures. `gain`: of the chosen one over the model
    alone, user by user, with its standard error; `over_item_item`: the same over item-item."""
    chosen = best_way(ways, metric, k)
    own = chosen.values(metric, k)
    gain, over = (own - way.values(metric, k) for way in ways[:2])
    ks = sorted({*(size for size in KS if size <= k), k})
    return {
        "users": len(chosen.hits.targets),
        "metric": f"{metric}@{k}",
        "blend": chosen.weight,
        "gain": round(float(gain.mean()), 6),
        "gain_error": round(mean_error(gain), 6),
        "over_item_item": round(float(over.mean()), 6),
        "over_item_item_error": round(mean_error(over), 6),
        "ways": {way.name: way.row(ks) for way in ways},
    }


def blend_yaml(summary: dict[str, Any], settings: dict[str, Any]) -> str:
    """A settings file for `genrec recommend --config`, with the reasons as comments; `settings`:
    further options that the weight was chosen with."""
    metric, ways = summary["metric"], summary["ways"]
    lines = [
        f"# {metric} of {name}: {ways[name][metric]} (error {ways[name][f'{metric}_error']})"
        for name in (MODEL, ITEMS)
    ]
    if summary["blend"] is None:
        return "\n".join([*lines, "# No blend is better than the model alone."]) + "\n"
    chosen = ways[f"{summary['blend']:g}"]
    lines.append(f"# {metric} of the blend: {chosen[metric]} (error {chosen[f'{metric}_error']})")
    lines.append(f"blend: {summary['blend']:g}")
    lines += [f"{name}: {str(value).lower()}" for name, value in settings.items()]
    return "\n".join(lines) + "\n"
