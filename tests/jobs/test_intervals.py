"""Intervals against a table of Student's t."""

from __future__ import annotations

import pytest

from draftrec.jobs.trials import Interval, interval, paired


def test_known_values() -> None:
    # n = 5: t(4, 97.5 %) = 2.776445; std of 1..5 is sqrt(2.5).
    found = interval([1, 2, 3, 4, 5])
    half = 2.776445 * 2.5**0.5 / 5**0.5
    assert found.mean == 3
    assert found.std == pytest.approx(2.5**0.5)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))


def test_one_value_has_no_interval() -> None:
    assert interval([0.7]) == Interval(0.7, None, None, None)
    assert interval([0.7]).as_dict() == {"mean": 0.7, "std": None, "low": None, "high": None}


def test_pairs_cancel_what_seeds_share() -> None:
    a, b = [0.5, 0.7, 0.9], [0.51, 0.71, 0.91]
    found = paired(a, b)
    assert found.mean == pytest.approx(0.01)
    assert found.low == pytest.approx(0.01)
    assert found.high == pytest.approx(0.01)


def test_a_wider_confidence_is_a_wider_interval() -> None:
    narrow, wide = interval([1, 2, 4], 0.9), interval([1, 2, 4], 0.99)
    assert narrow.high is not None
    assert wide.high is not None
    assert wide.high > narrow.high


@pytest.mark.parametrize("pair", [([], []), ([1.0], [1.0, 2.0])])
def test_values_that_cannot_be_used(pair: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="value"):
        paired(*pair)
