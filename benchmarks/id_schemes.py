"""What semantic ids are worth that are made of other vectors: recall by id scheme.

Each scheme is semantic ids and targets that learnt them, alike in all but the ids: several targets
of a scheme differ in their seed, and a user's figures are means over them. All predict the test
part of the same users from train and valid items, in plain search. Gains are over the first scheme,
user by user. `--prepare` makes the schemes of two kinds of vectors: each alone, both together, and
the second's ids dealt out to the items by lot, which mean nothing. Nothing is timed. The last line
is the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from catalogues import add_catalogue, told_of
from common import note, write_result

from draftrec.cli.main import run
from draftrec.config import RecommendConfig
from draftrec.data.files.writers import replace_parquet
from draftrec.data.sequences import (
    History,
    read_histories,
    read_semantic_ids,
    write_semantic_ids,
)
from draftrec.data.vectors import item_vectors_table, read_item_vectors
from draftrec.evaluate.blend import mean_error
from draftrec.evaluate.ranking import KS
from draftrec.items.hits import Hits, find_hits
from draftrec.items.semantic_ids import SemanticIds
from draftrec.jobs.recommend.catalogue import Catalogue, Query
from draftrec.jobs.recommend.loading import parts_of
from draftrec.jobs.recommend.recommender import ItemRecommender
from draftrec.models.recommender import load_recommender

Result = dict[str, Any]


@dataclass(frozen=True)
class Scheme:
    """Semantic ids, and folders of the targets that learnt them."""

    name: str
    sids: SemanticIds
    targets: tuple[Path, ...]

    @classmethod
    def named(cls, words: str) -> Scheme:
        """Of NAME=SIDS:TARGET:TARGET..."""
        name, _, rest = words.partition("=")
        sids, *targets = rest.split(":")
        if not targets:
            raise argparse.ArgumentTypeError(f"{words!r} is no NAME=SIDS:TARGET")
        return cls(name, read_semantic_ids(sids), tuple(map(Path, targets)))

    def known(self, history: History) -> History:
        """The same history, of the items that have an id."""
        return replace(history, items=history.items[self.sids.find(history.items) >= 0])


@dataclass(frozen=True, eq=False)
class Found:
    """What the targets of a scheme found, the same users in each."""

    hits: tuple[Hits, ...]

    def values(self, metric: str, k: int) -> np.ndarray:
        """float64 `[users]`: each user's mean over the targets."""
        each = [h.recall(k) if metric == "recall" else h.ndcg(k) for h in self.hits]
        return np.mean(each, axis=0)

    def row(self, over: Found | None = None) -> Result:
        """Means over users, or of what is gained over another scheme, each with its error."""
        out: Result = {}
        for k in KS:
            for metric in ("recall", "ndcg"):
                values = self.values(metric, k) - (over.values(metric, k) if over else 0.0)
                out[f"{metric}@{k}"] = round(float(values.mean()), 6)
                out[f"{metric}@{k}_error"] = round(mean_error(values), 6)
        return out

    def by_target(self) -> list[float]:
        """Recall at the longest list, of each target alone."""
        return [round(float(h.recall(max(KS)).mean()), 6) for h in self.hits]


def look(sids: SemanticIds) -> Result:
    """What ids are like: how many differ, codes used by level, the most items of a first code."""
    return {
        "items": len(sids),
        "distinct": len(np.unique(sids.codes, axis=0)),
        "codes_used": [len(np.unique(level)) for level in sids.codes.T],
        "distinct_beginnings": len(np.unique(sids.codes[:, :-1], axis=0)),
        "largest_first": int(np.bincount(sids.codes[:, 0]).max()),
    }


def search(scheme: Scheme, histories: Seq[History], args: argparse.Namespace) -> Found:
    """The best items of each user by each target."""
    found: list[Hits] = []
    for folder in scheme.targets:
        target = load_recommender(folder, "auto", args.dtype)
        catalogue = Catalogue.of(scheme.sids, target)
        config = RecommendConfig(k=max(KS), batch_size=args.batch, exclude_seen=args.exclude_seen)
        model = ItemRecommender(parts_of(target, catalogue), catalogue, config)
        queries = [Query(h.user, scheme.known(h).items) for h in histories]
        lists = [answer.items for answer in model.recommend(queries)]
        found.append(find_hits(lists, [h.targets for h in histories]))
        note(f"{scheme.name}, {folder.name}: recall {found[-1].recall(max(KS)).mean():.4f}")
    return Found(tuple(found))


def prepare(folder: Path, vectors: dict[str, Path], levels: int, codes: int, seed: int) -> None:
    """Ids of four schemes in `folder`, `sids-NAME.parquet`, of the items that both files know."""
    folder.mkdir(parents=True, exist_ok=True)
    read = {name: read_item_vectors(path) for name, path in vectors.items()}
    first, second = read.values()
    both = np.intersect1d(first.items, second.items)
    files = {name: folder / f"{name}.parquet" for name in read}
    for name, found in read.items():
        keep = np.isin(found.items, both)
        replace_parquet(files[name], item_vectors_table(found.items[keep], found.vectors[keep]))
    schemes = {**{name: [path] for name, path in files.items()}, "both": [*files.values()]}
    for name, paths in schemes.items():
        line = ["sid", "fit", *map(str, paths), "--levels", str(levels), "--codes", str(codes)]
        if run([*line, "--output", str(folder / f"sids-{name}.parquet")]):
            raise SystemExit(2)
    sids = read_semantic_ids(folder / f"sids-{list(files)[1]}.parquet")
    dealt = np.random.default_rng(seed).permutation(len(sids))
    write_semantic_ids(folder / "sids-random.parquet", replace(sids, codes=sids.codes[dealt]))


def main(argv: Seq[str] | None = None) -> None:
    """Make the schemes, or measure and write."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.prepare:
        if not args.vectors:
            parser.error("--prepare needs --vectors")
        pairs = (words.partition("=") for words in args.vectors)
        vectors = {name: Path(path) for name, _, path in pairs}
        prepare(args.prepare, vectors, args.levels, args.codes, args.seed)
        return
    schemes: list[Scheme] = args.scheme
    if not schemes:
        parser.error("name what is to be compared with --scheme")
    histories = [
        h for h in read_histories(args.sequences, "test", None)
        if all(len(scheme.known(h).items) for scheme in schemes)
    ]  # fmt: skip
    step = max(1, len(histories) // (args.limit or len(histories)))
    histories = histories[::step][: args.limit]
    found = {scheme.name: search(scheme, histories, args) for scheme in schemes}
    base, *others = found
    wanted = np.concatenate([h.targets for h in histories])
    payload = {
        **told_of(args),
        "settings": {"k": max(KS), "exclude_seen": args.exclude_seen, "dtype": args.dtype},
        "users": len(histories),
        "schemes": {
            scheme.name: {
                **look(scheme.sids),
                "targets_with_id": round(float((scheme.sids.find(wanted) >= 0).mean()), 6),
                "recall_by_seed": found[scheme.name].by_target(),
            }
            for scheme in schemes
        },
        "ways": {name: way.row() for name, way in found.items()},
        "gains": {f"{name} over {base}": found[name].row(found[base]) for name in others},
    }
    write_result(f"id-schemes-{args.catalogue}", payload, seed=args.seed, folder=args.results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scheme", type=Scheme.named, action="append", default=[],
                        metavar="NAME=SIDS:TARGET[:TARGET...]", help="repeated")  # fmt: skip
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="make ids, measure nothing")
    parser.add_argument("--vectors", nargs=2, metavar="NAME=FILE", help="with --prepare")
    parser.add_argument("--levels", type=int, default=3, help="with --prepare")
    parser.add_argument("--codes", type=int, default=16, help="with --prepare")
    add_catalogue(parser)
    parser.add_argument("--exclude-seen", action="store_true")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, help="users")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seed", type=int, default=0, help="of ids by lot")
    parser.add_argument("--results", type=Path, default=None, help="folder of the result")
    return parser


if __name__ == "__main__":
    main()
