"""What an item model adds to a generative target and item-item co-occurrence.

Shares are chosen on the valid part as `draftrec genrec tune --item-model` does it: all predict
valid items from train items. On the test part each alone and their blends predict from train and
valid items; item-item is fitted to what the models have learnt from, and once more to train and
valid items, as `genrec recommend` does it. `--newer`, `--newer-item-model`: the models fitted with
`--with-valid` besides. Of some users the blend of all three is also searched with drafts, and must
be the same. All blends rank the same items. Nothing is timed. The last line is the result.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence as Seq
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blend import Bench, Result, gains, parser_of, strict_part
from catalogues import told_of
from common import note, write_result

from draftrec.evaluate.blend import Way, Weights, best_way, rank_by_weight
from draftrec.evaluate.ranking import KS
from draftrec.items.retriever import ItemRetriever
from draftrec.jobs.recommend.item_model import ItemModel
from draftrec.jobs.recommend.recommender import ItemRecommender
from draftrec.models.recommender import load_recommender

#: The lists that are no blends, and the blends.
ALONE = ("target", "item-item", "item model")
BLENDS = ("target and item-item", "item-item and item model", "all three")


class ThreeBench(Bench):
    """Target, item model and data, loaded once."""

    def __init__(self, args: argparse.Namespace, target: Path, item_model: Path) -> None:
        super().__init__(args, target)
        source = load_recommender(item_model, "auto", args.dtype)
        self.item_parameters = sum(p.numel() for p in set(source.model.parameters()))
        self.item_model = ItemModel.of(source, self.sids)

    def of_three(self, items: ItemRetriever, weights: Weights, **more: Any) -> ItemRecommender:
        """The target's blend with item-item and the item model, without drafts."""
        plain = self.recommender(items, **more)
        shares = dict(zip(("blend", "blend_item_model"), weights, strict=True))
        config = plain.config.model_copy(update=shares)
        return ItemRecommender(self.parts, self.catalogue, config, items, self.item_model)


def on_valid(bench: ThreeBench) -> tuple[dict[str, Weights], Result]:
    """The weights of each blend with which most is found of the valid part, and what all find."""
    histories, metric = bench.histories("valid"), ("recall", max(KS))
    ways = rank_by_weight(bench.of_three(bench.fitted("valid"), (0.0, 0.0)), histories)
    # A blend is what is measured, be it worse than the model alone.
    able = [(way, way.weights) for way in ways if way.weights]
    some = (
        [way for way, weights in able if weights[1] == 0],
        [way for way, weights in able if sum(weights) > 1 - 1e-9],
        [way for way, _ in able],
    )
    chosen = {
        name: best_way(blends, "recall", max(KS)).weights or ()
        for name, blends in zip(BLENDS, some, strict=True)
    }
    return chosen, {
        "metric": f"{metric[0]}@{metric[1]}",
        "users": len(histories),
        "ways": {way.name: way.row(KS) for way in ways},
    }


def on_test(
    bench: ThreeBench, items: ItemRetriever, chosen: dict[str, Weights], **more: Any
) -> Result:
    """Each alone and the blends for the users of the test part."""
    histories, weights = bench.histories("test"), tuple(chosen.values())
    found = rank_by_weight(bench.of_three(items, weights[-1], **more), histories, weights)
    ways: dict[str, Way] = dict(zip((*ALONE, *chosen), found, strict=True))
    best = BLENDS[-1]
    return {
        "users": len(histories),
        "ways": {name: way.row(KS) for name, way in ways.items()},
        "gains": {f"{best} over {other}": gains(ways, best, other) for other in ways
                  if other != best},
    }  # fmt: skip


def main(argv: Seq[str] | None = None) -> None:
    """Choose on valid, measure on test, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--item-model", type=Path, required=True)
    parser.add_argument("--newer-item-model", type=Path, help="with --newer")
    args = parser.parse_args(argv)
    bench = ThreeBench(args, args.target, args.item_model)
    if args.keep:
        earlier = json.loads(args.keep.read_text())
        chosen = {name: tuple(weights) for name, weights in earlier["weights"].items()}
        valid = {"chosen_at_commit": earlier["machine"]["commit"], **earlier["valid"]}
    else:
        chosen, valid = on_valid(bench)
    note(f"weights {chosen}")
    settings = ("beams", "candidates", "batch", "exclude_seen", "dtype", "limit")
    found: Result = {
        **told_of(args),
        "settings": {
            "k": max(KS),
            **{name: getattr(args, name) for name in settings},
            "item_item": asdict(bench.item_item),
        },
        "parameters": {"target": bench.parameters, "item model": bench.item_parameters},
        "weights": {name: list(weights) for name, weights in chosen.items()},
        "valid": valid,
        "test": {},
    }
    setups: list[tuple[str, ThreeBench, str]] = [
        ("train", bench, "valid"),
        ("train, item-item to train and valid", bench, "test"),
    ]
    if args.newer:
        newer = ThreeBench(args, args.newer, args.newer_item_model)
        setups.append(("train and valid", newer, "test"))
    for name, one, part in setups:
        found["test"][name] = on_test(one, one.fitted(part), chosen)
        note(f"the test part is done: fitted to {name}")
    items = bench.fitted("test")
    plain = bench.of_three(items, chosen[BLENDS[-1]])
    found["strict"] = strict_part(bench, items, args.check, plain)
    write_result(f"blend-items-{args.catalogue}", found, folder=args.results)


if __name__ == "__main__":
    main()
