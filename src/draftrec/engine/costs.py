"""What a forward pass costs against its rows, as a value that loops can plan with."""

from __future__ import annotations

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
