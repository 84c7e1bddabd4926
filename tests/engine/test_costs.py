"""What passes cost goes on being learnt, whatever else the machine does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.engine.costs import CostCurve, LearningCurve

FIRST = CostCurve((1, 16, 64, 256), (1.0, 1.0, 2.0, 6.0), draft_seconds=0.5)


def feed(curve: LearningCurve, rows: int, seconds: float, times: int = 48) -> None:
    for _ in range(times):
        curve.observe(rows, seconds)


def test_until_something_was_seen_it_is_the_first_curve() -> None:
    curve = LearningCurve(FIRST)
    rows = np.arange(1, 400)
    assert curve(rows).tolist() == FIRST(rows).tolist()
    feed(curve, 16, 3.0, times=2)
    assert curve(rows).tolist() == FIRST(rows).tolist(), "two passes say nothing"
    assert curve.to_json() == FIRST.to_json()


def test_a_machine_that_is_slower_on_the_whole_is_no_reason_to_draft() -> None:
    """Only plain passes were seen; all others are taken to be slower as well."""
    curve = LearningCurve(FIRST)
    feed(curve, 16, 3.0)
    ratio = curve([64, 256]) / curve(16)
    assert ratio == pytest.approx([2.0, 6.0], rel=1e-6)
    assert float(curve(16)) == pytest.approx(3.0)


@pytest.mark.parametrize("took", [1.05, 4.0])
def test_a_wrong_place_is_mended_by_the_runs_own_passes(took: float) -> None:
    """It was measured at a disturbed moment, or the model's long texts make rows dear."""
    curve = LearningCurve(FIRST)
    for _ in range(60):
        curve.observe(16, 1.0)
        curve.observe(64, took)
    assert float(curve(64) / curve(16)) == pytest.approx(took, rel=0.12)


def test_passes_that_something_held_up_count_for_nothing() -> None:
    random = np.random.default_rng(0)
    curve = LearningCurve(FIRST)
    for _ in range(200):
        rows = int(random.choice([16, 24, 32, 64]))
        held_up = random.choice([1.0, 2.0, 9.0], p=[0.6, 0.2, 0.2])
        curve.observe(rows, float(FIRST(rows)) * held_up)
    assert curve([16, 24, 32, 64]) == pytest.approx(FIRST([16, 24, 32, 64]), rel=0.02)


def test_what_was_long_ago_counts_less() -> None:
    """64 rows were seen on a busy machine; since then only plain passes, on a quiet one."""
    curve = LearningCurve(FIRST)
    feed(curve, 16, 1.0)
    feed(curve, 64, 20.0)
    assert float(curve(64) / curve(16)) > 10.0
    feed(curve, 16, 1.0, times=3000)
    assert float(curve(64) / curve(16)) < 2.5


def test_drafting_is_timed_as_well() -> None:
    curve = LearningCurve(FIRST)
    for seconds in [0.02] * 30 + [9.0] + [0.02] * 30:
        curve.observe(16, 1.0, seconds)
    assert curve.draft_seconds == pytest.approx(0.02)


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(1, 600), st.floats(1e-5, 100.0)), min_size=32, max_size=200))
def test_whatever_was_seen_more_rows_never_cost_less(seen: list[tuple[int, float]]) -> None:
    curve = LearningCurve(FIRST)
    for rows, seconds in seen:
        curve.observe(rows, seconds)
    found = curve(np.arange(1, 1200))
    assert (np.diff(found) >= 0).all()
    assert (found > 0).all()
    assert np.isfinite(found).all()
    again = CostCurve.from_json(curve.to_json())
    assert again(np.arange(1, 1200)).tolist() == found.tolist()
