"""The measured cost curve covers what a run can ask, and leaves the target usable."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.engine.costs import CostCurve, smoothed
from draftrec.engine.target import Target
from draftrec.engine.text.budget import AutoBudget
from draftrec.pool import costs
from draftrec.pool.costs import _stairs, _uneven, measure_cost
from tests.models import zoo


@given(st.integers(1, 40), st.integers(1, 64), st.data())
def test_shares_add_up_fall_and_stay_below_the_most(
    sequences: int, most: int, data: st.DataObject
) -> None:
    nodes = data.draw(st.integers(0, sequences * most))
    shares = _uneven(nodes, sequences, most)
    assert sum(shares) == nodes
    assert len(shares) == sequences
    assert all(0 <= share <= most for share in shares)


def test_a_few_sequences_carry_most_nodes() -> None:
    shares = _uneven(16, 16, 64)
    assert shares[0] >= 4
    assert shares[-1] <= 1


def test_a_row_above_a_step_costs_the_next_step() -> None:
    """Passes are padded to multiples of four here: 17 rows cost what 20 do."""
    rows, seconds = _stairs(
        [1, 4, 16, 24, 32], [1.0, 1.0, 4.0, 6.0, 10.0], lambda r: -(-r // 4) * 4
    )
    curve = CostCurve(tuple(rows), tuple(seconds))
    for r in range(1, 33):
        assert curve(r) == curve(-(-r // 4) * 4) or r > 28
    assert curve([16, 17, 20, 21, 24]).tolist() == [4.0, 5.0, 5.0, 6.0, 6.0]
    assert curve(40) > curve(32) == 10.0
    assert _stairs([1, 2, 8], [1.0, 2.0, 3.0], int) == ([1, 2, 8], [1.0, 2.0, 3.0])


def test_a_text_alone_is_measured_before_time_is_over() -> None:
    assert costs._order(16, 64)[:3] == [16, 64, 1]
    assert costs._order(1, 8)[:2] == [1, 4]


@pytest.mark.slow
def test_costs_are_measured_from_one_row_to_full_trees() -> None:
    curve = measure_cost(Target(zoo.build("llama")), 4, 20, nodes=8, seconds=60.0)
    assert curve.rows[0] == 1
    assert 4 in curve.rows
    assert max(curve.rows) <= 4 * 9
    assert len(curve.rows) == len(curve.seconds)
    assert all(s > 0 for s in curve.seconds)
    assert curve.draft_seconds > 0


@pytest.mark.slow
def test_what_the_budget_takes_of_a_step_is_part_of_drafting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose = AutoBudget.choose

    def slow(self: AutoBudget, *given: Any) -> Any:
        time.sleep(0.1)
        return choose(self, *given)

    monkeypatch.setattr(AutoBudget, "choose", slow)
    assert costs._draft_seconds() > 0.1 / 32  # shared by 32 trees


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=12))
def test_smoothed_values_never_fall_and_keep_their_mean(values: list[float]) -> None:
    found = smoothed(values)
    assert (np.diff(found) >= 0).all()
    assert found.mean() == pytest.approx(np.mean(values))
    assert smoothed(sorted(values)).tolist() == sorted(values)


class Machine:
    """Passes that take `plain` seconds and a share more by the row, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, plain: float, row: float) -> None:
        self.plain, self.row, self.now, self.passes = plain, row, 0.0, []
        monkeypatch.setattr(costs, "_timed", self.timed)
        monkeypatch.setattr(costs, "_clock", lambda: self.now)

    def timed(self, _: Any, __: int, rows: int, *___: Any) -> float:
        self.passes.append(rows)
        took = self.plain * (1.0 + self.row * rows)
        self.now += took
        return took


@pytest.mark.parametrize("plain", [0.001, 0.1, 3.0])
def test_a_small_job_is_measured_for_a_small_part_of_its_time(
    monkeypatch: pytest.MonkeyPatch, plain: float
) -> None:
    machine = Machine(monkeypatch, plain, 0.02)
    target = Target(zoo.build("llama"))
    few = measure_cost(target, 4, 20, passes=100)
    assert len(machine.passes) <= 1 + 4 + 3, "a plain pass and one with drafts, twice each"
    assert {4, 16} <= set(few.rows)
    assert float(few(16) / few(4)) == pytest.approx(1.32 / 1.08)
    machine.now, machine.passes = 0.0, []
    measure_cost(target, 4, 20, passes=10_000)
    least = 10 * plain * 1.1
    assert machine.now < max(4.0, least) + 5 * plain * 1.1


def test_rows_that_cost_five_plain_passes_end_the_measuring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch, 0.001, 1.0)
    curve = measure_cost(Target(zoo.build("llama")), 4, 20)
    assert max(curve.rows) <= 32
    assert max(machine.passes) <= 96
    assert [float(s) for s in curve.seconds] == pytest.approx([0.001 * (1 + r) for r in curve.rows])


def test_one_disturbed_point_does_not_bend_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass of plain decoding that something else held up would make all drafts look free; one of
    a draft's, dear. Whatever falls with rows is measured again."""
    calls: dict[int, int] = {}

    def timed(_: Any, __: int, rows: int, *___: Any) -> float:
        calls[rows] = calls.get(rows, 0) + 1
        held_up = calls[rows] <= 5 and rows in (4, 6)
        return (1.0 + 0.25 * rows) * (3.0 if held_up else 1.0)

    monkeypatch.setattr(costs, "_timed", timed)
    target = Target(zoo.build("llama"))
    curve = measure_cost(target, 4, 20, nodes=8, seconds=60.0)
    assert calls[4] > 5, "the warm-up counts as one"
    for rows in (1, 2, 4, 6, 8, 12, 16, 24):
        assert float(curve(rows)) == pytest.approx(1.0 + 0.25 * rows, rel=0.05)
