"""What a blend of a generative target and item-item co-occurrence reaches.

The weight is chosen on the valid part as `draftrec genrec tune` does it: target and item-item
predict valid items from train items. On the test part the target, item-item and their blend predict
from train and valid items; item-item is fitted to these too, as `genrec recommend` does it, and
once more to the train items, which the target has learnt from. `--newer`: the same target fitted
with `--with-valid`, to all that is known, as one would use it. Of some users the blend is also
searched with drafts, and must be the same. Nothing is timed. The last line is the result.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence as Seq
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from catalogues import add_catalogue, told_of
from common import note, write_result

from draftrec.config import RecommendConfig, RetrieverSettings
from draftrec.data.sequences import History, read_histories, read_semantic_ids
from draftrec.evaluate.blend import Way, best_way, mean_error, rank_by_weight
from draftrec.evaluate.ranking import KS
from draftrec.items.retriever import ItemRetriever
from draftrec.jobs.recommend.catalogue import Catalogue, Query
from draftrec.jobs.recommend.loading import fit_retriever, parts_of
from draftrec.jobs.recommend.recommender import ItemRecommender
from draftrec.models.recommender import load_recommender

Result = dict[str, Any]


class Bench:
    """Target and data, loaded once."""

    def __init__(self, args: argparse.Namespace, target: Path) -> None:
        self.args = args
        self.sids = read_semantic_ids(args.sids)
        self.item_item = retriever_settings(args.item_item)
        self.target = load_recommender(target, "auto", args.dtype)
        # Packing lets go of weights that are tied.
        self.parameters = sum(p.numel() for p in set(self.target.model.parameters()))
        self.catalogue = Catalogue.of(self.sids, self.target)
        self.parts = parts_of(self.target, self.catalogue)

    def fitted(self, part: str) -> ItemRetriever:
        """Item-item of what is known when `part` is to be predicted."""
        return fit_retriever(
            str(self.args.sequences), self.sids, part=part, settings=self.item_item
        )

    def recommender(self, items: ItemRetriever, **more: Any) -> ItemRecommender:
        """The target's blend with `items`, without drafts."""
        args = self.args
        config = RecommendConfig(
            k=max(KS), blend_candidates=args.candidates, batch_size=args.batch,
            exclude_seen=args.exclude_seen, **{"beams": args.beams, **more},
        )  # fmt: skip
        return ItemRecommender(self.parts, self.catalogue, config, items)

    def histories(self, part: str) -> list[History]:
        """Evenly spread users of a part who have a history, at most as many as asked for."""
        found = read_histories(self.args.sequences, part, None)
        found = [replace(h, items=h.items[self.sids.find(h.items) >= 0]) for h in found]
        found = [h for h in found if len(h.items)]
        step = max(1, len(found) // (self.args.limit or len(found)))
        return found[::step][: self.args.limit]


def retriever_settings(path: Path | None) -> RetrieverSettings:
    """What `draftrec genrec tune --item-item-draws` chose, of the settings that it wrote."""
    found = yaml.safe_load(path.read_text()) if path else {}
    named = {name.removeprefix("item_item_"): value for name, value in found.items()
             if name.startswith("item_item_")}  # fmt: skip
    return RetrieverSettings(**named)


def gains(ways: dict[str, Way], of: str, over: str) -> Result:
    """What one way has over another, user by user: the mean and its standard error."""
    found: Result = {}
    for k in KS:
        for metric in ("recall", "ndcg"):
            values = ways[of].values(metric, k) - ways[over].values(metric, k)
            found[f"{metric}@{k}"] = round(float(values.mean()), 6)
            found[f"{metric}@{k}_error"] = round(mean_error(values), 6)
    return found


def on_test(bench: Bench, items: ItemRetriever, weight: float, **more: Any) -> Result:
    """Target, item-item and blend for the users of the test part."""
    blend = bench.recommender(items, blend=weight, **more)
    found = rank_by_weight(blend, bench.histories("test"), ((weight,),))
    ways = dict(zip(("target", "item-item", "blend"), found, strict=True))
    return {
        "users": len(found[0].hits.targets),
        "ways": {name: way.row(KS) for name, way in ways.items()},
        "gains": {
            "blend over target": gains(ways, "blend", "target"),
            "blend over item-item": gains(ways, "blend", "item-item"),
        },
    }


def on_valid(bench: Bench) -> tuple[float, Result]:
    """The weight with which most is found of the valid part, and what the others find."""
    blend = bench.recommender(bench.fitted("valid"), blend=0.0)
    ways = rank_by_weight(blend, bench.histories("valid"))
    # A blend is what is measured, be it worse than the model alone.
    chosen = best_way([way for way in ways if way.weights], "recall", max(KS))
    return chosen.weight or 0.0, {
        "metric": f"recall@{max(KS)}",
        "users": len(chosen.hits.targets),
        "ways": {way.name: way.row(KS) for way in ways},
    }


def strict_part(bench: Bench, items: ItemRetriever, users: int, plain: ItemRecommender) -> Result:
    """Of how many users what `plain` finds without drafts is found with drafted items too."""
    histories = bench.histories("test")
    queries = [Query(h.user, h.items) for h in histories[:: max(1, len(histories) // users)]]
    queries = queries[:users]
    drafted = plain.variant(plain.config.model_copy(update={"draft_steps": 3}), None, items)
    pairs = list(zip(drafted.recommend(queries), plain.recommend(queries), strict=True))
    return {
        "users": len(pairs),
        "same_lists": sum(np.array_equal(a.items, b.items) for a, b in pairs),
        "same_items": sum(set(a.items.tolist()) == set(b.items.tolist()) for a, b in pairs),
        "score_gap": max(float(np.abs(a.scores - b.scores).max()) for a, b in pairs),
        "target_calls": {
            "plain": round(float(np.mean([b.target_calls for _, b in pairs])), 4),
            "drafted": round(float(np.mean([a.target_calls for a, _ in pairs])), 4),
        },
    }


def main(argv: Seq[str] | None = None) -> None:
    """Choose on valid, measure on test, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--wide", type=int, default=100, help="beams once more, with --newer")
    args = parser.parse_args(argv)
    bench = Bench(args, args.target)
    if args.keep:
        earlier = json.loads(args.keep.read_text())
        weight = earlier["weight"]
        valid = {**earlier["valid"], "chosen_at_commit": earlier["machine"]["commit"]}
    else:
        weight, valid = on_valid(bench)
    note(f"weight {weight:g}")
    settings = ("beams", "wide", "candidates", "batch", "exclude_seen", "dtype", "limit")
    found: Result = {
        **told_of(args),
        "settings": {
            "k": max(KS),
            **{name: getattr(args, name) for name in settings},
            "item_item": asdict(bench.item_item),
        },
        "parameters": bench.parameters,
        "weight": weight,
        "valid": valid,
        "test": {},
    }
    setups: list[tuple[str, Bench, str, Result]] = [
        ("train, both", bench, "valid", {}),
        ("train, item-item to train and valid", bench, "test", {}),
    ]
    if args.newer:
        newer, both = Bench(args, args.newer), "train and valid, both"
        setups.append((both, newer, "test", {}))
        setups.append((f"{both}, {args.wide} beams", newer, "test", {"beams": args.wide}))
    for name, one, part, more in setups:
        found["test"][name] = on_test(one, one.fitted(part), weight, **more)
        note(f"the test part is done: fitted to {name}")
    items = bench.fitted("test")
    plain = bench.recommender(items, blend=weight)
    found["strict"] = strict_part(bench, items, args.check, plain)
    write_result(f"blend-{args.catalogue}", found, folder=args.results)


def parser_of(does: str | None) -> argparse.ArgumentParser:
    """Options of this benchmark, and of `blend_items`."""
    parser = argparse.ArgumentParser(description=does)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--newer", type=Path, help="the target fitted to the valid part as well")
    add_catalogue(parser)
    parser.add_argument(
        "--item-item", type=Path, metavar="YAML", help="settings that `draftrec genrec tune` wrote"
    )
    parser.add_argument("--beams", type=int, default=None, help="kept; by default as many as K")
    parser.add_argument("--candidates", type=int, default=50, help="of item-item")
    parser.add_argument("--exclude-seen", action="store_true")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, help="users of either part")
    parser.add_argument("--check", type=int, default=400, help="users searched with drafts too")
    parser.add_argument(
        "--keep", type=Path, metavar="RESULT", help="weight of an earlier result, not chosen again"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--results", type=Path, default=None, help="folder of the result")
    return parser


if __name__ == "__main__":
    main()
