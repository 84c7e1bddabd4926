"""Bootstrap intervals: right where the answer is known, paired, repeatable."""

from __future__ import annotations

import numpy as np
import pytest

from draftrec.evaluate.compare.quality import Bootstrap, Ratio, mean_of, percentiles


def test_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(10, 2, 400)
    draws = Bootstrap(400, 2000, seed=0).draw({"x": mean_of(values)})["x"]
    found = percentiles(float(values.mean()), draws)
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_a_ratio_is_of_sums_and_draws_are_shared() -> None:
    rng = np.random.default_rng(2)
    below = rng.uniform(1, 5, 50)
    noise = rng.normal(0, 10, 50)
    bootstrap = Bootstrap(50, 300, seed=4)
    draws = bootstrap.draw({"half": Ratio(below / 2, below), "noise": mean_of(noise)})
    assert draws["half"] == pytest.approx(0.5)
    shifted = bootstrap.draw({"other": mean_of(noise + 1)})["other"]
    assert shifted - draws["noise"] == pytest.approx(1.0)


def test_no_interval_where_a_draw_may_hold_nothing() -> None:
    rare = Ratio(np.array([1.0, 0, 0]), np.array([1.0, 0, 0]))
    draws = Bootstrap(3, 200, seed=0).draw({"rare": rare})["rare"]
    assert np.isnan(draws).any()
    found = percentiles(1.0, draws)
    assert (found.low, found.high) == (None, None)
