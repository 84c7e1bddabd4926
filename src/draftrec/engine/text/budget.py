"""How many draft nodes a forward pass may carry: as many as pay for themselves.

A pass over `r` rows takes `t(r)` seconds on this model, device, dtype and batch.
With tokens flowing at `rate` per second, a set of nodes is worth its expected accepted tokens minus
`rate` times the seconds it adds (Dinkelbach's form of maximising tokens per second). Nodes compete
across the whole batch, best first, so an uncertain sequence yields its share to a predictable one.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

import numpy as np
import numpy.typing as npt

from draftrec.core import DoubleArray, DraftTree, FloatArray, Verdict
from draftrec.engine.costs import LearningCurve, PassCosts, smoothed
from draftrec.engine.tree import trim_all

# Steps without drafts before the next try; and steps in which no draft seemed worth its rows,
# before a few are verified all the same, so that what rows cost is seen again.
_REST, _DOUBT = 15, 128


class Budget(Protocol):
    """Decides how much to draft and which of the drafted nodes to verify."""

    most: int
    """Most nodes that `limit` will ever allow: what the KV slab must have room for."""

    def limit(self) -> int:
        """Most nodes worth drafting per sequence just now."""
        ...

    def choose(self, trees: Seq[DraftTree], plain_rows: int) -> list[DraftTree]:
        """The trees, cut to the nodes worth a row; `plain_rows` rows run in any case."""
        ...

    def observe(self, trees: Seq[DraftTree], verdicts: Seq[Verdict], rows: int) -> None: ...


class FixedBudget:
    """`nodes` per sequence, always: reproducible, whatever the machine."""

    def __init__(self, nodes: int) -> None:
        self.most = nodes

    def limit(self) -> int:
        return self.most

    def choose(self, trees: Seq[DraftTree], plain_rows: int) -> list[DraftTree]:
        return list(trees)

    def observe(self, trees: Seq[DraftTree], verdicts: Seq[Verdict], rows: int) -> None:
        """Nothing to learn."""


class AutoBudget:
    """Spends nodes while they raise expected accepted tokens per second.

    Drafting itself takes time. While what was accepted lately was not worth that, it rests and
    tries again after `_REST` steps. All clocks are the cost curve's: where that does not change, a
    run repeats its decisions, if no `calibration` comes with what earlier texts have taught it.
    """

    def __init__(
        self, cost: PassCosts, most: int = 64, calibration: Calibration | None = None
    ) -> None:
        self.cost, self.most = cost, most
        self.calibration = calibration or Calibration()
        self._tokens = self._seconds = 0.0
        self._largest = float(most)
        self._gain, self._aside, self._rested, self._doubts = 0.0, 0.0, 0, 0

    def limit(self) -> int:
        self._aside = 0.0  # of a step whose prompts kept it from being observed
        if self._gain < 0 and self._rested < _REST:
            self._rested += 1
            return 0
        self._rested = 0
        # Drafting far more than is ever verified would cost what the verified nodes gain.
        return min(self.most, max(8, int(2 * self._largest) + 4))

    def choose(self, trees: Seq[DraftTree], plain_rows: int) -> list[DraftTree]:
        """Keep the nodes whose expected tokens outweigh the time they take from everyone."""
        sizes = [len(t) for t in trees]
        if not sum(sizes):
            return list(trees)
        probs = self.calibration(np.concatenate([t.probs for t in trees]))
        order = np.argsort(-probs, kind="stable")
        seconds = self.cost(plain_rows + np.arange(len(order) + 1))
        worth = np.concatenate(([0.0], np.cumsum(probs[order])))
        count = int(np.argmax(worth - self.rate(len(trees)) * seconds))
        self._doubts = 0 if count else self._doubts + 1
        if self._doubts > _DOUBT:
            count, self._doubts = min(len(order), len(trees)), 0
        keep = np.zeros(len(order), np.bool_)
        keep[order[:count]] = True
        owners = np.repeat(np.arange(len(trees)), sizes)[keep]
        self._largest = max(0.9 * self._largest, float(np.bincount(owners, minlength=1).max()))
        return trim_all(trees, keep)

    def observe(self, trees: Seq[DraftTree], verdicts: Seq[Verdict], rows: int) -> None:
        """Learn how often nodes of each estimate are accepted, and how fast tokens flow."""
        self.calibration.observe(trees, verdicts)
        self._tokens = 0.98 * self._tokens + sum(len(v.token_ids) for v in verdicts)
        drafting = 0.0 if self._rested else self.cost.draft_seconds * len(trees)
        plain, verifying = self.cost([len(trees), rows])
        self._seconds = 0.98 * self._seconds + verifying + drafting + self._aside
        if not self._rested:  # what the drafts gained, in tokens, their time counted as tokens too
            lost = self.rate(len(trees)) * (verifying + drafting - plain)
            self._gain += 0.05 * (sum(len(v.path) for v in verdicts) - lost - self._gain)

    def set_aside(self, seconds: float) -> None:
        """Note drafting that whoever drafts weighs by itself: it takes time, and yet the other
        drafts are not dearer for it."""
        self._aside = seconds
        if isinstance(self.cost, LearningCurve):
            self.cost.aside += seconds

    def rate(self, active: int) -> float:
        """Tokens per second of so many texts lately, by the cost curve's clock; at the start those
        of plain decoding.

        Prompt rows do not count: they have to be computed in any case.
        """
        return (self._tokens + 4 * active) / (self._seconds + 4 * float(self.cost(active)))


class Calibration:
    """Maps a drafter's estimated path probability to the share accepted in fact.

    Expected and accepted nodes are counted at knots of the estimate's log-odds, shared between the
    two nearest; the estimate itself is the prior, worth `prior` accepted nodes. The map never
    falls, so a node stays at least as probable as its descendants.
    """

    def __init__(self, knots: int = 16, prior: float = 24.0) -> None:
        self.knots = np.linspace(-6.5, 6.5, knots)
        self.prior = prior
        self.kept = np.zeros(knots)
        self.expected = np.zeros(knots)

    def __call__(self, probs: FloatArray) -> DoubleArray:
        """float64 `[n]`: calibrated probabilities."""
        estimate = _sigmoid(self.knots)
        rate = estimate * (self.kept + self.prior) / (self.expected + self.prior)
        learnt = log_odds(smoothed(rate, 1.0 + self.expected / estimate))
        x = log_odds(probs)
        return _sigmoid(x + np.interp(x, self.knots, learnt - self.knots))

    def observe(self, trees: Seq[DraftTree], verdicts: Seq[Verdict]) -> None:
        """Count what was verified. Old counts fade, since pools and texts change."""
        for counts in (self.kept, self.expected):
            counts *= 0.9995
        pairs = [(t.probs, v.path) for t, v in zip(trees, verdicts, strict=True) if len(t)]
        if pairs:
            probs = np.concatenate([p for p, _ in pairs]).astype(np.float64)
            kept = np.concatenate([p[path] for p, path in pairs]).astype(np.float64)
            self.expected += self._shares(probs, probs)
            self.kept += self._shares(kept, np.ones(len(kept)))

    def _shares(self, probs: DoubleArray, amount: DoubleArray) -> DoubleArray:
        """float64 `[knots]`: what of `amount` `[n]` falls to each knot."""
        place = np.interp(log_odds(probs), self.knots, np.arange(len(self.knots)))
        left = np.minimum(place.astype(np.int64), len(self.knots) - 2)
        right = amount * (place - left)
        found = np.zeros(len(self.knots))
        np.add.at(found, left, amount - right)
        np.add.at(found, left + 1, right)
        return found


def _sigmoid(x: DoubleArray) -> DoubleArray:
    return 1.0 / (1.0 + np.exp(-x))


def log_odds(probs: npt.ArrayLike) -> DoubleArray:
    """float64, of probabilities that are kept away from 0 and 1."""
    clipped = np.clip(np.asarray(probs, np.float64), 1e-4, 1 - 1e-4)
    return np.log(clipped / (1 - clipped))
