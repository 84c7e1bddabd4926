"""What recommendations without a model reach on Amazon Beauty: the bar for a generative target.

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
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from beauty_table import SEQUENCES, SIDS
from common import note, spread, write_result
from scipy.sparse import csr_matrix

from draftrec.data.sequences import read_histories, read_semantic_ids, read_sequences
from draftrec.evaluate.ranking import KS, RankingScores, find_hits, multi_target, single_target
from draftrec.items.retriever import ItemRetriever, RetrieverSettings

Arrays = list[np.ndarray]
Result = dict[str, Any]

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


@dataclass(frozen=True, eq=False)
class Task:
    """Whose next items are wanted, as places; `seen`: may a user's own items be recommended."""

    histories: Arrays
    targets: Arrays


@dataclass(frozen=True, eq=False)
class Beauty:
    """Sequences to fit to and users to recommend for."""

    items: int
    train: Arrays
    train_and_valid: Arrays
    valid: Task
    test: Task

    @classmethod
    def read(cls, sequences: Path, sids: Path) -> Beauty:
        """All items as places in the catalogue."""
        catalogue = read_semantic_ids(sids)
        train, valid = (
            {s.user: catalogue.places(s.items) for s in read_sequences(sequences, part, None)}
            for part in ("train", "valid")
        )
        tasks: list[Task] = []
        for part in ("valid", "test"):
            found = read_histories(sequences, part, None)
            histories = [catalogue.places(history.items) for history in found]
            tasks.append(Task(histories, [catalogue.places(h.targets) for h in found]))
        none = np.empty(0, np.int64)
        both = [
            np.concatenate((train.get(user, none), valid.get(user, none)))
            for user in dict.fromkeys([*train, *valid])
        ]
        return cls(len(catalogue), list(train.values()), both, *tasks)


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


def search(
    value: Callable[[RetrieverSettings], float], draws: int, seed: int
) -> tuple[RetrieverSettings, int]:
    """The best settings found, and how many were tried: random ones of SPACE, then the best three
    of them improved, one setting at a time, until nothing helps."""
    random = np.random.default_rng(seed)
    tried: dict[RetrieverSettings, float] = {}

    def rate(settings: RetrieverSettings) -> float:
        if settings not in tried:
            tried[settings] = value(settings)
        return tried[settings]

    for _ in range(draws):
        rate(_settings({name: random.choice(options) for name, options in SPACE.items()}))
    rate(UNTUNED)
    for start in sorted(tried, key=rate, reverse=True)[:STARTS]:
        best, before = start, None
        while best != before:
            before = best
            for name, options in SPACE.items():
                around = [best, *(_settings({**asdict(best), name: option}) for option in options)]
                best = max(around, key=rate)
        note(f"{len(tried)} settings tried, {rate(best):.5f}: {best}")
    return max(tried, key=rate), len(tried)


def table(beauty: Beauty, tuned: RetrieverSettings) -> Result:
    """Test figures of every method, with and without the user's own items, in both definitions."""

    def fit(sequences: Arrays, settings: RetrieverSettings) -> ItemRetriever:
        return ItemRetriever.fit(sequences, beauty.items, settings)

    fitted = fit(beauty.train, tuned)
    methods = {
        "popularity": replace(fitted, near=csr_matrix(fitted.near.shape, dtype=np.float32)),
        "item-item, untuned": fit(beauty.train, UNTUNED),
        "item-item, tuned": fitted,
        "item-item, untuned, fitted to valid too": fit(beauty.train_and_valid, UNTUNED),
        "item-item, tuned, fitted to valid too": fit(beauty.train_and_valid, tuned),
    }
    return {
        name: {
            "all items": _both(retriever, beauty.test, exclude_seen=False),
            "without seen items": _both(retriever, beauty.test, exclude_seen=True),
        }
        for name, retriever in methods.items()
    }


def _both(retriever: ItemRetriever, task: Task, *, exclude_seen: bool) -> Result:
    return {
        "multi": _figures(score(retriever, task, exclude_seen=exclude_seen)),
        "single": _figures(score(retriever, task, exclude_seen=exclude_seen, single=True)),
        "standard_error_of_recall@10": standard_error(retriever, task, exclude_seen=exclude_seen),
    }


def reach(beauty: Beauty) -> Result:
    """The share of test targets that a method fitted to these items can know of, and the Recall of
    one that would recommend all of those and nothing else."""
    found: Result = {}
    for name, sequences in (("train", beauty.train), ("train_and_valid", beauty.train_and_valid)):
        known = np.unique(np.concatenate(sequences))
        lists = [targets[np.isin(targets, known)] for targets in beauty.test.targets]
        share = sum(map(len, lists)) / sum(map(len, beauty.test.targets))
        best = _figures(multi_target(lists, beauty.test.targets))
        found[name] = {"targets_known": round(share, 4), "best_possible": best}
    return found


def speed(beauty: Beauty, settings: RetrieverSettings, rounds: int) -> Result:
    """Seconds of a fit, microseconds of proposing 40 items to one user and to each of 32; of the
    processor, so that a busy machine does not show."""
    fits, alone, together = [], [], []
    for _ in range(rounds):
        start = time.process_time()
        retriever = ItemRetriever.fit(beauty.train, beauty.items, settings)
        fits.append(time.process_time() - start)
    users = beauty.test.histories[:512]
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
        "interactions": sum(map(len, beauty.train)),
        "bytes": retriever.nbytes,
        "propose_us_p50": round(float(np.percentile(alone, 50)), 1),
        "propose_us_p99": round(float(np.percentile(alone, 99)), 1),
        "propose_us_per_user_of_32": spread(together),
    }


def main(argv: Seq[str] | None = None) -> None:
    """Tune, measure, write."""
    args = _parser().parse_args(argv)
    beauty = Beauty.read(args.sequences, args.sids)

    def on_valid(settings: RetrieverSettings) -> RankingScores:
        retriever = ItemRetriever.fit(beauty.train, beauty.items, settings)
        return score(retriever, beauty.valid, exclude_seen=True)

    if args.keep:
        earlier = json.loads(args.keep.read_text())
        tuned, tried = RetrieverSettings(**earlier["tuned"]), earlier["tried"]
    else:
        tuned, tried = search(lambda s: on_valid(s).ndcg[20], args.draws, args.seed)
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
        "test": table(beauty, tuned),
        "reach": reach(beauty),
        "speed": speed(beauty, tuned, args.rounds),
    }
    write_result("item-baseline", payload, seed=args.seed, folder=args.results)


def _settings(values: dict[str, Any]) -> RetrieverSettings:
    whole = ("window", "neighbours", "last")
    return RetrieverSettings(**{n: int(v) if n in whole else float(v) for n, v in values.items()})


def _figures(scores: RankingScores) -> Result:
    return {name: round(v, 6) if name[-1:].isdigit() else v for name, v in scores.summary().items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=Path, default=SEQUENCES)
    parser.add_argument("--sids", type=Path, default=SIDS)
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
