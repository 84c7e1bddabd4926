"""95 % intervals of measures of texts: a paired bootstrap over entities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from draftrec.core import DoubleArray
from draftrec.evaluate.texts.quality import Ratio

_TAILS = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval; `low` and `high` are None where none can be had."""

    value: float
    low: float | None = None
    high: float | None = None


class Bootstrap:
    """Entities drawn anew with replacement, `resamples` times, the same draws for every run: what
    one draw changes in both runs cancels out in their difference (a paired bootstrap)."""

    def __init__(self, entities: int, resamples: int, seed: int) -> None:
        self.entities, self.resamples, self.seed = entities, resamples, seed

    def draw(self, ratios: Mapping[str, Ratio]) -> dict[str, DoubleArray]:
        """The value of each ratio on every resample, float64 `[resamples]`; NaN where a resample
        holds no text that it is defined for."""
        columns = [c for r in ratios.values() for c in (r.numerators, r.denominators)]
        sums = self._sums(np.stack(columns, axis=1)) if columns else np.empty((0, 0))
        above, below = sums[:, 0::2], sums[:, 1::2]
        values = np.where(below > 0, above / np.where(below > 0, below, 1.0), np.nan)
        return {name: values[:, i] for i, name in enumerate(ratios)}

    def _sums(self, values: DoubleArray) -> DoubleArray:
        """Column sums of `values` `[n, m]` over each resample: `[resamples, m]`."""
        rng = np.random.default_rng(self.seed)
        found = np.empty((self.resamples, values.shape[1]))
        n = self.entities
        for i in range(self.resamples):
            weights = np.bincount(rng.integers(n, size=n), minlength=n)
            found[i] = weights @ values
        return found


def percentiles(value: float, draws: DoubleArray) -> Estimate:
    """`value` with the interval of its bootstrap draws; without one where draws are undefined."""
    if len(draws) < 2 or not np.isfinite(draws).all():
        return Estimate(value)
    low, high = np.percentile(draws, _TAILS)
    return Estimate(value, float(low), float(high))
