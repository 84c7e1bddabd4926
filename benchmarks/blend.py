"""What blends of a generative target, item-item co-occurrence and an item model reach on Amazon
Beauty.

Weights are chosen on the valid part as `draftrec genrec tune` does it: all predict valid items from
train items. On the test part each alone and their blends predict from train and valid items;
item-item is fitted to these too, as `genrec recommend` does it, and once more to the train items,
which the models have learnt from. `--newer`, `--newer-item-model`: the same models fitted with
`--with-valid`, to all that is known, as one would use them. Of some users the blend of all is also
searched with drafts, and must be the same. Nothing is timed. The last line is the result.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
from beauty_table import SEQUENCES, SIDS
from common import note, write_result

from draftrec.config import RecommendConfig
from draftrec.data.sequences import History, read_histories, read_semantic_ids
from draftrec.evaluate.blend import Way, Weights, best_way, mean_error, rank_by_weight
from draftrec.evaluate.ranking import KS
from draftrec.items.retriever import ItemRetriever
from draftrec.jobs.recommend.catalogue import Catalogue, Query
from draftrec.jobs.recommend.item_model import ItemModel
from draftrec.jobs.recommend.recommender import ItemRecommender, parts_of
from draftrec.jobs.recommend.setup import fit_retriever
from draftrec.models.recommender import load_recommender

Result = dict[str, Any]


#: The lists that are no blends, and the blends: of target and item-item, of item-item and item
#: model, and of all. They rank the same items.
ALONE = ("target", "item-item", "item model")
BLENDS = ("target and item-item", "item-item and item model", "all three")


class Bench:
    """Models and data, loaded once."""

    def __init__(self, args: argparse.Namespace, target: Path, item_model: Path) -> None:
        self.args = args
        self.sids = read_semantic_ids(args.sids)
        self.target = load_recommender(target, "auto", args.dtype)
        source = load_recommender(item_model, "auto", args.dtype)
        # Packing lets go of weights that are tied.
        self.parameters = {
            name: sum(p.numel() for p in set(one.model.parameters()))
            for name, one in (("target", self.target), ("item model", source))
        }
        self.item_model = ItemModel.of(source, self.sids)
        self.catalogue = Catalogue.of(self.sids, self.target)
        self.parts = parts_of(self.target, self.catalogue)

    def fitted(self, part: str) -> ItemRetriever:
        """Item-item of what is known when `part` is to be predicted."""
        return fit_retriever(str(self.args.sequences), self.sids, part=part)

    def recommender(self, items: ItemRetriever, weights: Weights, **more: Any) -> ItemRecommender:
        """The target's blend with `items` and the item model, without drafts."""
        args = self.args
        names = ("blend", "blend_item_model")
        config = RecommendConfig(
            k=max(KS), blend_candidates=args.candidates, batch_size=args.batch,
            exclude_seen=args.exclude_seen, **dict(zip(names, weights, strict=True)),
            **{"beams": args.beams, **more},
        )  # fmt: skip
        return ItemRecommender(self.parts, self.catalogue, config, items, self.item_model)

    def histories(self, part: str) -> list[History]:
        """Evenly spread users of a part who have a history, at most as many as asked for."""
        found = [h for h in read_histories(self.args.sequences, part, None) if len(h.items)]
        step = max(1, len(found) // (self.args.limit or len(found)))
        return found[::step][: self.args.limit]


def gains(ways: dict[str, Way], of: str, over: str) -> Result:
    """What one way has over another, user by user: the mean and its standard error."""
    found: Result = {}
    for k in KS:
        for metric in ("recall", "ndcg"):
            values = ways[of].values(metric, k) - ways[over].values(metric, k)
            found[f"{metric}@{k}"] = round(float(values.mean()), 6)
            found[f"{metric}@{k}_error"] = round(mean_error(values), 6)
    return found


def on_test(bench: Bench, items: ItemRetriever, chosen: dict[str, Weights], **more: Any) -> Result:
    """Each alone and the blends for the users of the test part."""
    histories = bench.histories("test")
    weights = tuple(chosen.values())
    found = rank_by_weight(bench.recommender(items, weights[0], **more), histories, weights)
    names = (*ALONE, *chosen)
    ways = dict(zip(names, found, strict=True))
    over = [(BLENDS[2], other) for other in names[:-1]]
    return {
        "users": len(histories),
        "ways": {name: way.row(KS) for name, way in ways.items()},
        "gains": {f"{a} over {b}": gains(ways, a, b) for a, b in over},
    }


def on_valid(bench: Bench) -> tuple[dict[str, Weights], Result]:
    """The weights of each blend with which most is found of the valid part, and what all find."""
    histories, metric = bench.histories("valid"), ("recall", max(KS))
    ways = rank_by_weight(bench.recommender(bench.fitted("valid"), (0.0, 0.0)), histories)
    # A blend is what is measured, be it worse than the model alone.
    able = [way for way in ways if way.weights]
    some = (
        [way for way in able if way.weights and way.weights[1] == 0],
        [way for way in able if way.weights and sum(way.weights) > 1 - 1e-9],
        able,
    )
    chosen = {
        name: best_way(blends, *metric).weights or ()
        for name, blends in zip(BLENDS, some, strict=True)
    }
    return chosen, {
        "metric": f"{metric[0]}@{metric[1]}",
        "users": len(histories),
        "ways": {way.name: way.row(KS) for way in ways},
    }


def strict_part(bench: Bench, items: ItemRetriever, weights: Weights, users: int) -> Result:
    """Of how many users the blend found with drafted items is that of plain search."""
    histories = bench.histories("test")
    queries = [Query(h.user, h.items) for h in histories[:: max(1, len(histories) // users)]]
    queries = queries[:users]
    plain = bench.recommender(items, weights)
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
    args = _parser().parse_args(argv)
    bench = Bench(args, args.target, args.item_model)
    if args.keep:
        earlier = json.loads(args.keep.read_text())
        chosen = {name: tuple(weights) for name, weights in earlier["weights"].items()}
        valid = {**earlier["valid"], "chosen_at_commit": earlier["machine"]["commit"]}
    else:
        chosen, valid = on_valid(bench)
    note(f"weights {chosen}")
    settings = ("beams", "wide", "candidates", "batch", "exclude_seen", "dtype", "limit")
    found: Result = {
        "settings": {"k": max(KS), **{name: getattr(args, name) for name in settings}},
        "parameters": bench.parameters,
        "weights": {name: list(weights) for name, weights in chosen.items()},
        "valid": valid,
        "test": {},
    }
    setups: list[tuple[str, Bench, str, Result]] = [
        ("train", bench, "valid", {}),
        ("train, item-item to train and valid", bench, "test", {}),
    ]
    if args.newer:
        newer, all_known = Bench(args, args.newer, args.newer_item_model), "train and valid"
        setups.append((all_known, newer, "test", {}))
        setups.append((f"{all_known}, {args.wide} beams", newer, "test", {"beams": args.wide}))
    for name, one, part, more in setups:
        found["test"][name] = on_test(one, one.fitted(part), chosen, **more)
        note(f"the test part is done: fitted to {name}")
    found["strict"] = strict_part(bench, bench.fitted("test"), chosen[BLENDS[2]], args.check)
    write_result("blend-beauty", found, folder=args.results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--item-model", type=Path, required=True)
    parser.add_argument("--newer", type=Path, help="the target fitted to the valid part as well")
    parser.add_argument("--newer-item-model", type=Path, help="with --newer: the item model so")
    parser.add_argument("--sequences", type=Path, default=SEQUENCES)
    parser.add_argument("--sids", type=Path, default=SIDS)
    parser.add_argument("--beams", type=int, default=None, help="kept; by default as many as K")
    parser.add_argument("--wide", type=int, default=100, help="beams once more, with --newer")
    parser.add_argument("--candidates", type=int, default=50, help="of each blended in")
    parser.add_argument("--exclude-seen", action="store_true")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, help="users of either part")
    parser.add_argument("--check", type=int, default=400, help="users searched with drafts too")
    parser.add_argument(
        "--keep", type=Path, metavar="RESULT", help="weights of an earlier result, not chosen again"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--results", type=Path, default=None, help="folder of the result")
    return parser


if __name__ == "__main__":
    main()
