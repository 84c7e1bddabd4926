"""What recommendations without a model reach on Amazon Beauty: the bar for a generative target.

Popularity, item-item co-occurrence with textbook settings, and the same tuned on the valid part
(history: train items). Reported on the test part (history: train and valid items), fitted to the
train items alone, as the target is, and to train and valid items, as a system in production would
be. The last line is the result.
"""

from __future__ import annotations

import argparse
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
from draftrec.evaluate.ranking import KS, RankingScores, multi_target, single_target
from draftrec.pool.item_retriever import ItemRetriever, RetrieverSettings

Arrays = list[np.ndarray]

#: Item-item as textbooks have it: cosine of the items' users, every history item alike.
UNTUNED = RetrieverSettings(
    window=1000, decay=1.0, backward=1.0, from_power=0.5, to_power=0.5, shrinkage=0.0,
    neighbours=1000, last=1000, recency=1.0, popularity=1e-6,
)  # fmt: skip
#: What is tried for each setting.
SPACE: dict[str, tuple[float, ...]] = {
    "window": (1, 2, 3, 5, 10, 20, 50),
    "decay": (0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "backward": (0.0, 0.25, 0.5, 0.75, 1.0),
    "from_power": (0.0, 0.25, 0.5, 0.75, 1.0),
    "to_power": (0.0, 0.15, 0.3, 0.45, 0.6),
    "shrinkage": (0.0, 1.0, 2.0, 5.0, 10.0, 20.0),
    "neighbours": (50, 100, 200, 500, 1000),
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
        rows: dict[int, Arrays] = {}
        for part in ("train", "valid"):
            for sequence in read_sequences(sequences, part, None):
                rows.setdefault(sequence.user, []).append(catalogue.places(sequence.items))
        tasks: list[Task] = []
        for part in ("valid", "test"):
            users = read_histories(sequences, part, None)
            histories = [catalogue.places(user.items) for user in users]
            tasks.append(Task(histories, [catalogue.places(user.targets) for user in users]))
        train = [catalogue.places(s.items) for s in read_sequences(sequences, "train", None)]
        both = [np.concatenate(parts) for parts in rows.values()]
        return cls(len(catalogue), train, both, *tasks)


def score(
    retriever: ItemRetriever, task: Task, *, exclude_seen: bool, single: bool = False
) -> RankingScores:
    """Recall and NDCG of the retriever's 20 best items."""
    places, _ = retriever.propose_many(task.histories, max(KS), exclude_seen=exclude_seen)
    lists = [row[row >= 0] for row in places]
    return (single_target if single else multi_target)(lists, task.targets)


def search(
    value: Callable[[RetrieverSettings], float], draws: int, seed: int
) -> tuple[RetrieverSettings, int]:
    """The best settings found, and how many were tried: random ones of SPACE, then the best of
    them improved, one setting at a time, until nothing helps."""
    random = np.random.default_rng(seed)
    tried: dict[RetrieverSettings, float] = {}

    def rate(settings: RetrieverSettings) -> float:
        if settings not in tried:
            tried[settings] = value(settings)
        return tried[settings]

    for _ in range(draws):
        rate(_settings({name: random.choice(options) for name, options in SPACE.items()}))
    rate(UNTUNED)
    best, before = max(tried, key=rate), None
    while best != before:
        before = best
        for name, options in SPACE.items():
            around = [best, *(_settings({**asdict(best), name: option}) for option in options)]
            best = max(around, key=rate)
        note(f"{len(tried)} settings tried, best {rate(best):.5f}: {best}")
    return best, len(tried)


def table(beauty: Beauty, tuned: RetrieverSettings) -> dict[str, Any]:
    """Test figures of every method, with and without the user's own items, in both definitions."""
    fitted = ItemRetriever.fit(beauty.train, beauty.items, tuned)
    methods = {
        "popularity": replace(fitted, near=csr_matrix(fitted.near.shape, dtype=np.float32)),
        "item-item, untuned": ItemRetriever.fit(beauty.train, beauty.items, UNTUNED),
        "item-item, tuned": fitted,
        "item-item, tuned, fitted to valid too": ItemRetriever.fit(
            beauty.train_and_valid, beauty.items, tuned
        ),
    }
    found: dict[str, Any] = {}
    for name, retriever in methods.items():
        found[name] = {
            way: {
                definition: _figures(
                    score(
                        retriever,
                        beauty.test,
                        exclude_seen=way == "without seen items",
                        single=definition == "single",
                    )
                )
                for definition in ("multi", "single")
            }
            for way in ("all items", "without seen items")
        }
    return found


def reach(beauty: Beauty) -> dict[str, Any]:
    """The share of test targets that a method fitted to these items can know of, and the Recall of
    one that would recommend all of those and nothing else."""
    found: dict[str, Any] = {}
    for name, sequences in (("train", beauty.train), ("train_and_valid", beauty.train_and_valid)):
        known = np.unique(np.concatenate(sequences))
        lists = [targets[np.isin(targets, known)] for targets in beauty.test.targets]
        share = sum(map(len, lists)) / sum(map(len, beauty.test.targets))
        best = _figures(multi_target(lists, beauty.test.targets))
        found[name] = {"targets_known": round(share, 4), "best_possible": best}
    return found


def speed(beauty: Beauty, settings: RetrieverSettings, rounds: int) -> dict[str, Any]:
    """Seconds of a fit, microseconds of proposing 40 items to one user and to each of 32."""
    fits, alone, together = [], [], []
    for _ in range(rounds):
        start = time.perf_counter()
        retriever = ItemRetriever.fit(beauty.train, beauty.items, settings)
        fits.append(time.perf_counter() - start)
    users = beauty.test.histories[:512]
    retriever.propose(users[0], 40)
    for history in users:
        start = time.perf_counter()
        retriever.propose(history, 40)
        alone.append(1e6 * (time.perf_counter() - start))
    for first in range(0, len(users), 32):
        batch = users[first : first + 32]
        start = time.perf_counter()
        retriever.propose_many(batch, 40)
        together.append(1e6 * (time.perf_counter() - start) / len(batch))
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

    tuned, tried = search(lambda s: on_valid(s).recall[10], args.draws, args.seed)
    payload = {
        "settings": {
            "objective": "Recall@10 on the valid part, without seen items",
            "draws": args.draws,
            "space": SPACE,
            "untuned": asdict(UNTUNED),
        },
        "tuned": asdict(tuned),
        "tried": tried,
        "defaults_are_tuned": tuned == RetrieverSettings(),
        "valid": {
            "untuned": _figures(on_valid(UNTUNED)),
            "tuned": _figures(on_valid(tuned)),
            "defaults": _figures(on_valid(RetrieverSettings())),
        },
        "test": table(beauty, tuned),
        "reach": reach(beauty),
        "speed": speed(beauty, tuned, args.rounds),
    }
    write_result("item-baseline", payload, seed=args.seed, folder=args.results)


def _settings(values: dict[str, Any]) -> RetrieverSettings:
    whole = ("window", "neighbours", "last")
    return RetrieverSettings(**{n: int(v) if n in whole else float(v) for n, v in values.items()})


def _figures(scores: RankingScores) -> dict[str, Any]:
    return {name: round(v, 6) if name[-1:].isdigit() else v for name, v in scores.summary().items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=Path, default=SEQUENCES)
    parser.add_argument("--sids", type=Path, default=SIDS)
    parser.add_argument("--draws", type=int, default=100, help="random settings tried first")
    parser.add_argument("--rounds", type=int, default=5, help="fits that are timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=None, help="folder of the result")
    return parser


if __name__ == "__main__":
    main()
