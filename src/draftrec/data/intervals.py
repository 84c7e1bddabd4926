"""Means over seeds with what is known of them: Student t intervals, plain and paired."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, the sample's standard deviation (n - 1) and the bounds of the mean's confidence
    interval. One value has no deviation: `std`, `low` and `high` are None."""

    mean: float
    std: float | None
    low: float | None
    high: float | None

    def as_dict(self, digits: int = 6) -> dict[str, float | None]:
        """The four numbers, rounded, as summaries show them."""
        values = {"mean": self.mean, "std": self.std, "low": self.low, "high": self.high}
        return {name: None if v is None else round(v, digits) for name, v in values.items()}


def interval(values: Seq[float], confidence: float = 0.95) -> Interval:
    """Mean of `values` and its two-sided Student t interval, mean -+ t * std / sqrt(n).

    Raises ValueError for no values.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value")
    sample = np.asarray(values, np.float64)
    mean = float(sample.mean())
    if len(sample) == 1:
        return Interval(mean, None, None, None)
    from scipy.special import stdtrit

    std = float(sample.std(ddof=1))
    t = float(stdtrit(len(sample) - 1, (1 + confidence) / 2))
    half = t * std / math.sqrt(len(sample))
    return Interval(mean, std, mean - half, mean + half)


def paired(a: Seq[float], b: Seq[float], confidence: float = 0.95) -> Interval:
    """Interval of the differences `b - a` of runs that share a seed each.

    Raises ValueError where the two are not equally long.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    return interval([y - x for x, y in zip(a, b, strict=True)], confidence)
