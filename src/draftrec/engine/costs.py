"""What a forward pass costs against its rows: as measured, and as a run's own passes correct it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from draftrec.core import DoubleArray


def smoothed(values: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> DoubleArray:
    """The non-decreasing values closest to `values` `[n]` in squares weighed by `weights`:
    neighbours that fall are replaced by their mean (pool adjacent violators)."""
    given = np.asarray(values, np.float64)
    means: list[float] = []
    masses: list[float] = []
    sizes: list[int] = []
    mass_of = np.ones_like(given) if weights is None else np.asarray(weights, np.float64)
    for value, mass in zip(given.tolist(), mass_of.tolist(), strict=True):
        size = 1
        while means and means[-1] > value:
            below = masses.pop()
            value = (value * mass + means.pop() * below) / (mass + below)
            mass += below
            size += sizes.pop()
        means.append(value)
        masses.append(mass)
        sizes.append(size)
    return np.repeat(means, sizes)


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Seconds of a forward pass against its rows, linear between measured points, and
    `draft_seconds` that drafting for one sequence takes."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    draft_seconds: float = 0.0

    def __call__(self, rows: npt.ArrayLike) -> DoubleArray:
        """float64 seconds; never falling with rows, the last slope continued past the end."""
        x = np.asarray(rows, np.float64)
        xs, ys = np.array(self.rows, float), np.maximum.accumulate(np.array(self.seconds))
        inside = np.interp(x, xs, ys)
        if len(xs) < 2:
            return inside * np.maximum(1.0, x / xs[-1])
        slope = max((ys[-1] - ys[-2]) / (xs[-1] - xs[-2]), ys[-1] / xs[-1] * 0.5)
        return inside + slope * np.maximum(0.0, x - xs[-1])

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": list(self.rows),
            "seconds": list(self.seconds),
            "draft_seconds": self.draft_seconds,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CostCurve:
        return cls(tuple(data["rows"]), tuple(data["seconds"]), data.get("draft_seconds", 0.0))


# The last passes of about so many rows that count, and the share of them that is taken for
# undisturbed: what else the machine does adds time and never takes any away.
_KEPT, _UNDISTURBED = 16, 0.25
# Fewer say nothing: a kernel that is used for the first time has to be made first.
_LEAST = 3
# Passes in which what was seen of a number of rows loses half its weight.
_HALF_LIFE = 256
# Passes that the shape of the first curve counts for, and how far a pass tells of others: rows
# within a quarter of an octave.
_FIRST, _REACH = 2.0, 0.25
# Weight of what was not seen, where that would fall with rows beside what was.
_UNSEEN = 0.1
_REFIT = 16


class LearningCurve:
    """A `CostCurve` that passes of the run correct.

    The first curve gives the shape where nothing is known. What passes of about as many rows took
    lately, compared with it, moves it there; and all of it by as much as they took on the whole.

    `aside`: seconds of drafting in the step under way that whoever drafts weighs by itself, so that
    they are no price of the other drafts; forgotten with the step.
    """

    def __init__(self, first: CostCurve) -> None:
        self.first = self.curve = first
        self.passes = 0
        self.aside = 0.0
        self._seen: dict[int, deque[tuple[int, float]]] = {}
        self._last: dict[int, int] = {}
        self._drafting: deque[float] = deque(maxlen=4 * _KEPT)

    def __call__(self, rows: npt.ArrayLike) -> DoubleArray:
        """float64 seconds, as `CostCurve`."""
        return self.curve(rows)

    @property
    def draft_seconds(self) -> float:
        return self.curve.draft_seconds

    def to_json(self) -> dict[str, Any]:
        """Of the curve as it is now."""
        return self.curve.to_json()

    def observe(self, rows: int, seconds: float, draft_seconds: float | None = None) -> None:
        """Learn what a pass took, and drafting for one sequence if there was any."""
        self.passes += 1
        self.aside = 0.0
        near = round(8 * np.log2(rows))
        self._seen.setdefault(near, deque(maxlen=_KEPT)).append((rows, seconds))
        self._last[near] = self.passes
        if draft_seconds is not None:
            self._drafting.append(draft_seconds)
        if self.passes % _REFIT == 0:
            self._refit()

    def _refit(self) -> None:
        drafting = self.first.draft_seconds
        if len(self._drafting) >= _LEAST:
            drafting = float(np.median(self._drafting))
        known = [near for near, passes in self._seen.items() if len(passes) >= _LEAST]
        if not known:
            return
        passes = [np.array(self._seen[near]) for near in known]
        rows = np.array([np.median(p[:, 0]) for p in passes])
        took = np.array([np.quantile(p[:, 1], _UNDISTURBED) for p in passes])
        age = self.passes - np.array([self._last[near] for near in known])
        weight = np.array([len(p) for p in passes]) * 0.5 ** (age / _HALF_LIFE)
        moved = np.log(took / self.first(rows))
        knots = np.union1d(self.first.rows, np.rint(rows))
        apart = np.log2(knots[:, None] / rows) / _REACH
        near_by = weight * np.exp(-0.5 * apart**2)
        whole = (weight * moved).sum() / weight.sum()
        move = (near_by @ moved + _FIRST * whole) / (near_by.sum(1) + _FIRST)
        seconds = smoothed(self.first(knots) * np.exp(move), near_by.sum(1) + _UNSEEN)
        self.curve = CostCurve(tuple(knots.astype(int).tolist()), tuple(seconds.tolist()), drafting)


#: What loops plan with.
PassCosts = CostCurve | LearningCurve
