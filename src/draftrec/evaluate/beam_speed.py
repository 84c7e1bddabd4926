"""What several beam searches did for the same users, summed up: calls, times, fidelity, quality.

Definitions are AtSpeed's (arXiv 2410.05165): AS@K, accepted steps, is how many beam levels a target
call decides beyond its first; WS@K, walltime speed-up, is the baseline's seconds over an engine's,
drafting included. Rounds of all engines are taken in turn, so that a busy machine disturbs all
alike and their ratios are paired.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np

from draftrec.core import LongArray
from draftrec.evaluate.ranking import multi_target

DoubleSeq = Seq[float]


@dataclass(frozen=True, eq=False, slots=True)
class UserBeams:
    """One user's outcome: `items` int64 `[k]`, best first, and their `scores` float64 `[k]`.

    `target_calls` and `accepted_steps`: forward passes of the target, levels that needed none of
    their own. Of `beams` semantic ids returned, `invalid` are no item of the catalogue. `drafted`:
    rows of drafts that the target verified.
    """

    items: LongArray
    scores: DoubleSeq
    target_calls: int
    accepted_steps: int
    beams: int
    invalid: int = 0
    drafted: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class EngineRun:
    """One engine on all users: `users` in one order for all engines; `seconds` of each round."""

    users: Seq[UserBeams]
    seconds: DoubleSeq


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and extremes of repeated measurements."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: DoubleSeq) -> Spread:
        """Raises ValueError without values."""
        if not values:
            raise ValueError("nothing was measured")
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two engines' lists compare: shares of users with the same list, and with the same items
    in any order; `greatest_score_difference` over all places that both lists have."""

    exact_match_rate: float
    same_items_rate: float
    greatest_score_difference: float


@dataclass(frozen=True, slots=True)
class BeamFigures:
    """One row of the table: means over users, times over rounds.

    `accepted_steps_per_call` is AS@K, the sum of accepted steps over the sum of target calls;
    `accepted_steps` the mean of a user, as `drafted` is, rows of drafts. `speedup`: WS@K over each
    baseline, by its name. `recall` and `ndcg` by K, empty without targets.
    """

    users: int
    target_calls: float
    accepted_steps: float
    accepted_steps_per_call: float
    drafted: float
    invalid_rate: float
    seconds: Spread
    ms_per_user: float
    speedup: Mapping[str, Spread]
    agreement: Agreement
    recall: Mapping[int, float] = field(default_factory=dict[int, float])
    ndcg: Mapping[int, float] = field(default_factory=dict[int, float])

    def summary(self) -> dict[str, Any]:
        """As nested dictionaries with text for keys, to be written as JSON."""
        found = asdict(self)
        for name in ("recall", "ndcg"):
            found[name] = {str(k): value for k, value in found[name].items()}
        return found


def beam_figures(
    runs: Mapping[str, EngineRun],
    reference: str,
    baselines: Seq[str],
    targets: Seq[LongArray] | None = None,
    ks: Seq[int] = (),
) -> dict[str, BeamFigures]:
    """Figures of every engine in `runs`, by name.

    Lists are compared with those of `reference`, times with those of every one of `baselines`;
    `targets` int64 `[t]` of every user, where known, give Recall and NDCG (every target counts) at
    each of `ks`. Raises ValueError for engines that did not run for the same number of users or
    rounds, and KeyError for an unknown name.
    """
    base = runs[reference]
    sizes = {(len(run.users), len(run.seconds)) for run in runs.values()}
    if len(sizes) != 1 or not base.users or not base.seconds:
        raise ValueError(f"engines ran for different numbers of (users, rounds): {sorted(sizes)}")
    return {
        name: _figures(
            run,
            {b: paired_speedup(runs[b].seconds, run.seconds) for b in baselines},
            agreement(base.users, run.users),
            _quality(run, targets, ks),
        )
        for name, run in runs.items()
    }


def paired_speedup(slow: DoubleSeq, fast: DoubleSeq) -> Spread:
    """How many times faster, round by round: what slows a whole round down cancels out."""
    return Spread.of([a / b for a, b in zip(slow, fast, strict=True)])


def agreement(one: Seq[UserBeams], other: Seq[UserBeams]) -> Agreement:
    """Compare the lists of two engines, user by user. Raises ValueError for unequal numbers."""
    pairs = list(zip(one, other, strict=True))
    same = [np.array_equal(a.items, b.items) for a, b in pairs]
    alike = [np.array_equal(np.sort(a.items), np.sort(b.items)) for a, b in pairs]
    return Agreement(
        float(np.mean(same)),
        float(np.mean(alike)),
        max((_score_difference(a, b) for a, b in pairs), default=0.0),
    )


def _figures(
    run: EngineRun,
    speedup: dict[str, Spread],
    agreed: Agreement,
    quality: tuple[Mapping[int, float], Mapping[int, float]],
) -> BeamFigures:
    count = len(run.users)
    calls = sum(u.target_calls for u in run.users)
    steps = sum(u.accepted_steps for u in run.users)
    beams = sum(u.beams for u in run.users)
    seconds = Spread.of(run.seconds)
    return BeamFigures(
        users=count,
        target_calls=calls / count,
        accepted_steps=steps / count,
        # With a single legal item nothing has to be asked, and nothing can be saved.
        accepted_steps_per_call=steps / calls if calls else 0.0,
        drafted=sum(u.drafted for u in run.users) / count,
        invalid_rate=sum(u.invalid for u in run.users) / beams if beams else 0.0,
        seconds=seconds,
        ms_per_user=1000 * seconds.median / count,
        speedup=speedup,
        agreement=agreed,
        recall=quality[0],
        ndcg=quality[1],
    )


def _quality(
    run: EngineRun, targets: Seq[LongArray] | None, ks: Seq[int]
) -> tuple[Mapping[int, float], Mapping[int, float]]:
    if targets is None or not ks:
        return {}, {}
    scores = multi_target([u.items for u in run.users], targets, ks)
    return scores.recall, scores.ndcg


def _score_difference(one: UserBeams, other: UserBeams) -> float:
    both = min(len(one.scores), len(other.scores))
    if not both:
        return 0.0
    gap = np.asarray(one.scores[:both], np.float64) - np.asarray(other.scores[:both], np.float64)
    return float(np.abs(gap).max())


#: Stage, things done, things in all.
Watch = Callable[[str, int, int], None]
Way = TypeVar("Way")

_LEAST_ROUNDS = 3


def turns(ways: Seq[Way], rounds: int, seconds: float = float("inf")) -> Iterator[list[Way]]:
    """The order of every round: each way goes first in turn.

    On a slow machine there are fewer rounds, but at least three, so as to take about `seconds`.
    """
    start = time.perf_counter()
    for turn in range(rounds):
        expected = (time.perf_counter() - start) * (turn + 1) / max(turn, 1)
        if turn >= _LEAST_ROUNDS and expected > seconds:
            return
        first = turn % len(ways)
        yield [*ways[first:], *ways[:first]]


@contextmanager
def one_thread() -> Iterator[None]:
    """A model this small gains nothing from a second thread, and waiting for one that shares its
    core with other work can cost everything.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
