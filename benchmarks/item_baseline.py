"""What recommendations without a model reach: the bar for a generative target.

Popularity and item-item co-occurrence, with textbook settings and tuned on the valid part (history:
train items), all on the test part (history: train and valid items): fitted to the train items, as
the target is, and to train and valid items, as a system in production would be. Settings are chosen
by NDCG@20, which varies less from one half of the valid users to the other than Recall@10 does. The
last line is the result.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence as Seq
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from catalogues import Arrays, Known, Task, add_catalogue, told_of
from common import note, spread, write_result
from scipy.sparse import csr_matrix

from draftrec.config import RetrieverSettings
from draftrec.evaluate.item_item import SPACE, UNTUNED, search
from draftrec.evaluate.ranking import KS, RankingScores, multi_target, single_target
from draftrec.items.hits import find_hits
from draftrec.items.retriever import ItemRetriever

Result = dict[str, Any]


def score(
    retriever: ItemRetriever, task: Task, *, exclude_seen: bool, single: bool = False
) -> RankingScores:
    """Recall and NDCG of the retriever's 20 best items."""
    lists = _lists(retriever, task, exclude_seen=exclude_seen)
    return (single_target if single else multi_target)(lists, task.targets)


def standard_error(retriever: ItemRetriever, task: Task, *, exclude_seen: bool) -> float:
    """How uncertain Recall@10 is for the number of users."""
    recall = find_hits(_lists(retriever, task, exclude_seen=exclude_seen), task.targets).recall(10)
    return round(float(recall.std(ddof=1) / np.sqrt(len(recall))), 6)


def _lists(retriever: ItemRetriever, task: Task, *, exclude_seen: bool) -> Arrays:
    places, _ = retriever.propose_many(task.histories, max(KS), exclude_seen=exclude_seen)
    return [row[row >= 0] for row in places]


def table(data: Known, tuned: RetrieverSettings) -> Result:
    """Test figures of every method, with and without the user's own items, in both definitions."""

    def fit(sequences: Arrays, settings: RetrieverSettings) -> ItemRetriever:
        return ItemRetriever.fit(sequences, data.items, settings)

    fitted = fit(data.train, tuned)
    methods = {
        "popularity": replace(fitted, near=csr_matrix(fitted.near.shape, dtype=np.float32)),
        "item-item, untuned": fit(data.train, UNTUNED),
        "item-item, tuned": fitted,
        "item-item, untuned, fitted to valid too": fit(data.train_and_valid, UNTUNED),
        "item-item, tuned, fitted to valid too": fit(data.train_and_valid, tuned),
    }
    return {
        name: {
            "all items": _both(retriever, data.test, exclude_seen=False),
            "without seen items": _both(retriever, data.test, exclude_seen=True),
        }
        for name, retriever in methods.items()
    }


def _both(retriever: ItemRetriever, task: Task, *, exclude_seen: bool) -> Result:
    return {
        "multi": _figures(score(retriever, task, exclude_seen=exclude_seen)),
        "single": _figures(score(retriever, task, exclude_seen=exclude_seen, single=True)),
        "standard_error_of_recall@10": standard_error(retriever, task, exclude_seen=exclude_seen),
    }


def reach(data: Known) -> Result:
    """The share of test targets that a method fitted to these items can know of, and the Recall of
    one that would recommend all of those and nothing else."""
    found: Result = {}
    for name, sequences in (("train", data.train), ("train_and_valid", data.train_and_valid)):
        known = np.unique(np.concatenate(sequences))
        lists = [targets[np.isin(targets, known)] for targets in data.test.targets]
        share = sum(map(len, lists)) / sum(map(len, data.test.targets))
        best = _figures(multi_target(lists, data.test.targets))
        found[name] = {"targets_known": round(share, 4), "best_possible": best}
    return found


def speed(data: Known, settings: RetrieverSettings, rounds: int) -> Result:
    """Seconds of a fit, microseconds of proposing 40 items to one user and to each of 32; of the
    processor, so that a busy machine does not show."""
    fits, alone, together = [], [], []
    for _ in range(rounds):
        start = time.process_time()
        retriever = ItemRetriever.fit(data.train, data.items, settings)
        fits.append(time.process_time() - start)
    users = data.test.histories[:512]
    retriever.propose(users[0], 40)
    for history in users:
        start = time.process_time()
        retriever.propose(history, 40)
        alone.append(1e6 * (time.process_time() - start))
    for first in range(0, len(users), 32):
        batch = users[first : first + 32]
        start = time.process_time()
        retriever.propose_many(batch, 40)
        together.append(1e6 * (time.process_time() - start) / len(batch))
    return {
        "fit_seconds": spread(fits),
        "interactions": sum(map(len, data.train)),
        "bytes": retriever.nbytes,
        "propose_us_p50": round(float(np.percentile(alone, 50)), 1),
        "propose_us_p99": round(float(np.percentile(alone, 99)), 1),
        "propose_us_per_user_of_32": spread(together),
    }


def main(argv: Seq[str] | None = None) -> None:
    """Tune, measure, write."""
    args = _parser().parse_args(argv)
    data = Known.read(args.sequences, args.sids)

    def on_valid(settings: RetrieverSettings) -> RankingScores:
        retriever = ItemRetriever.fit(data.train, data.items, settings)
        return score(retriever, data.valid, exclude_seen=True)

    def told(tried: int, best: RetrieverSettings, value: float) -> None:
        note(f"{tried} settings tried, {value:.5f}: {best}")

    if args.keep:
        earlier = json.loads(args.keep.read_text())
        tuned, tried = RetrieverSettings(**earlier["tuned"]), earlier["tried"]
    else:
        tuned, tried = search(lambda s: on_valid(s).ndcg[20], args.draws, args.seed, told)
    payload = {
        "settings": {
            "objective": "NDCG@20 without seen items",
            "draws": args.draws,
            "space": SPACE,
            "untuned": asdict(UNTUNED),
        },
        "tuned": asdict(tuned),
        "tried": tried,
        "valid": {
            name: _figures(on_valid(s)) for name, s in (("untuned", UNTUNED), ("tuned", tuned))
        },
        "test": table(data, tuned),
        "reach": reach(data),
        "speed": speed(data, tuned, args.rounds),
    }
    name = "item-baseline" + ("" if args.catalogue == "beauty" else f"-{args.catalogue}")
    write_result(name, told_of(args) | payload, seed=args.seed, folder=args.results)


def _figures(scores: RankingScores) -> Result:
    return {name: round(v, 6) if name[-1:].isdigit() else v for name, v in scores.summary().items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_catalogue(parser)
    parser.add_argument("--draws", type=int, default=150, help="random settings tried first")
    parser.add_argument(
        "--keep", type=Path, metavar="RESULT", help="settings of an earlier result, no search"
    )
    parser.add_argument("--rounds", type=int, default=5, help="fits that are timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=None, help="folder of the result")
    return parser


if __name__ == "__main__":
    main()
