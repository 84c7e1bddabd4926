"""Draft nodes are spent where they pay, and only there."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.core import EMPTY_TREE, DraftTree, Verdict
from draftrec.engine.costs import CostCurve
from draftrec.engine.text.budget import AutoBudget, Calibration, FixedBudget
from draftrec.engine.tree import chain, check_tree, make_tree
from draftrec.pool.costs import measure_cost
from tests.models import zoo
from tests.strategies import trees

FREE = CostCurve((1, 1000), (1.0, 1.0 + 1e-9))
DEAR = CostCurve((1, 2), (1.0, 2.0))


def curves() -> st.SearchStrategy[CostCurve]:
    """Noisy measurements: times may fall here and there."""
    rows = st.lists(st.integers(1, 500), min_size=1, max_size=8, unique=True).map(sorted)
    return rows.flatmap(
        lambda r: st.lists(st.floats(1e-4, 1.0), min_size=len(r), max_size=len(r)).map(
            lambda s: CostCurve(tuple(r), tuple(s))
        )
    )


@given(curves())
def test_cost_never_falls_with_rows_nor_below_what_was_measured(curve: CostCurve) -> None:
    seconds = curve(np.arange(1, 1200))
    assert (np.diff(seconds) >= 0).all()
    at = curve(np.array(curve.rows))
    assert (at >= np.array(curve.seconds) - 1e-12).all()
    assert float(curve(curve.rows[0])) == pytest.approx(curve.seconds[0])


def test_cost_is_linear_between_points_and_beyond_the_last() -> None:
    curve = CostCurve((2, 4, 8), (1.0, 2.0, 10.0))
    assert curve([1, 2, 3, 4, 6, 8, 10]).tolist() == [1.0, 1.0, 1.5, 2.0, 6.0, 10.0, 14.0]
    assert CostCurve((4,), (2.0,))([1, 4, 8]).tolist() == [2.0, 2.0, 4.0]


def test_more_rows_than_measured_are_never_free() -> None:
    flat = CostCurve((1, 64), (1.0, 1.0))
    assert float(flat(640)) > 2.0


@given(curves())
def test_cost_survives_json(curve: CostCurve) -> None:
    assert CostCurve.from_json(curve.to_json()) == curve


def tree_batches() -> st.SearchStrategy[list[DraftTree]]:
    return st.lists(trees(9, 8), min_size=1, max_size=4)


@given(tree_batches(), st.floats(0.0, 0.3))
def test_chosen_trees_are_the_drafted_ones_cut(batch: list[DraftTree], slope: float) -> None:
    budget = AutoBudget(CostCurve((1, 101), (1.0, 1.0 + 100 * slope)))
    chosen = budget.choose(batch, len(batch))
    assert len(chosen) == len(batch)
    least, most_dropped = 1.0, 0.0
    for before, after in zip(batch, chosen, strict=True):
        check_tree(after)
        kept = paths_of(after)
        assert kept.items() <= paths_of(before).items()
        dropped = [p for path, p in paths_of(before).items() if path not in kept]
        least = min([least, *kept.values()])
        most_dropped = max([most_dropped, *dropped])
    assert least >= most_dropped, "a node was spent on while a likelier one was dropped"


def paths_of(tree: DraftTree) -> dict[tuple[int, ...], float]:
    """Path probability by the tokens of the path, which shows that paths are whole."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        paths.append((*paths[parent], token) if parent >= 0 else (token,))
    return dict(zip(paths, tree.probs.tolist(), strict=True))


def test_free_rows_are_all_used_and_dear_ones_not_at_all() -> None:
    tree = make_tree(range(6), [-1, 0, 1, -1, 3, -1], [0.8, 0.6, 0.4, 0.1, 0.05, 0.01])
    assert [len(t) for t in AutoBudget(FREE).choose([tree, tree], 2)] == [6, 6]
    assert AutoBudget(DEAR).choose([tree, tree], 2) == [EMPTY_TREE, EMPTY_TREE]


def test_rows_that_seem_too_dear_are_tried_now_and_then() -> None:
    """Else nobody would ever see that they are not."""
    budget = AutoBudget(DEAR)
    tree = make_tree([1, 2, 3], [-1, -1, -1], [0.6, 0.3, 0.1])
    sizes = [[len(t) for t in budget.choose([tree, tree], 2)] for _ in range(400)]
    tried = [i for i, size in enumerate(sizes) if size != [0, 0]]
    assert [sizes[i] for i in tried] == [[1, 1]] * 3
    assert set(np.diff(tried)) == {129}


def test_likely_nodes_are_kept_and_unlikely_ones_dropped_across_the_batch() -> None:
    """At 0.3 plain passes a row, a node must bring 0.3 tokens."""
    budget = AutoBudget(CostCurve((1, 101), (1.0, 31.0)))
    sure, unsure = chain([1, 2, 3, 4], 0.9), chain([1, 2, 3, 4], 0.05)
    assert [len(t) for t in budget.choose([sure], 1)] == [4]
    assert [len(t) for t in budget.choose([unsure], 1)] == [0]
    assert [len(t) for t in AutoBudget(FREE).choose([unsure, sure], 2)] == [4, 4]


def test_spending_stops_when_drafts_turn_out_worthless() -> None:
    budget = AutoBudget(CostCurve((1, 101), (1.0, 6.0)))
    tree = chain([1, 2, 3, 4, 5, 6], 0.5)
    assert len(budget.choose([tree], 1)[0]) == 6
    nothing = Verdict(np.empty(0, np.int32), np.array([9], np.int32))
    for _ in range(200):
        kept = budget.choose([tree], 1)
        budget.observe(kept, [nothing], 1 + len(kept[0]))
    assert len(budget.choose([tree], 1)[0]) == 0


def test_limit_follows_what_was_verified_and_never_passes_most() -> None:
    dear = AutoBudget(DEAR, most=40)
    assert dear.limit() == dear.most == 40
    for _ in range(60):
        dear.choose([chain([1, 2, 3], 0.1)], 1)
    assert dear.limit() < 20
    assert AutoBudget(FREE, most=4).limit() == 4


def test_a_batch_without_drafts_stays_without() -> None:
    assert AutoBudget(FREE).choose([EMPTY_TREE, EMPTY_TREE], 2) == [EMPTY_TREE, EMPTY_TREE]


def test_fixed_budget_takes_whatever_is_drafted() -> None:
    budget = FixedBudget(5)
    tree = chain([1, 2], 0.01)
    assert budget.limit() == budget.most == 5
    assert budget.choose([tree], 1000) == [tree]


def observe(calibration: Calibration, probs: Seq[float], real: Seq[float], times: int) -> None:
    """`times` flat trees whose nodes are accepted as often as `real` says."""
    random = np.random.default_rng(0)
    tree = make_tree(range(len(probs)), [-1] * len(probs), probs)
    for _ in range(times):
        path = np.flatnonzero(random.random(len(real)) < real).astype(np.int32)
        calibration.observe([tree, EMPTY_TREE], [Verdict(path, path), Verdict(path[:0], path[:0])])


def test_calibration_starts_as_the_estimate_itself() -> None:
    probs = np.array([1e-3, 0.1, 0.5, 0.9, 0.999], np.float32)
    np.testing.assert_allclose(Calibration()(probs), probs, rtol=1e-6)


def test_calibration_learns_a_planted_bias() -> None:
    calibration = Calibration()
    observe(calibration, [0.05, 0.3, 0.8], [0.2, 0.3, 0.4], 1500)
    found = calibration(np.array([0.05, 0.3, 0.8], np.float32))
    np.testing.assert_allclose(found, [0.2, 0.3, 0.4], atol=0.06)


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.floats(1e-4, 1), st.floats(0, 1)), min_size=1, max_size=6),
    st.integers(1, 300),
)
def test_calibration_never_puts_a_node_before_a_likelier_one(
    seen: list[tuple[float, float]], times: int
) -> None:
    calibration = Calibration()
    observe(calibration, [p for p, _ in seen], [r for _, r in seen], times)
    found = calibration(np.linspace(1e-5, 1, 500, dtype=np.float32))
    assert (np.diff(found) >= -1e-12).all()
    assert ((found >= 0) & (found <= 1)).all()


def test_measured_curve_covers_plain_rows_and_drafts() -> None:
    target = zoo.target("llama")
    curve = measure_cost(target, slots=2, context=20, nodes=8, seconds=2.0)
    assert curve.rows[0] == 1
    assert 2 in curve.rows
    assert curve.rows[-1] <= 2 * 9
    assert all(0 < s < 1 for s in curve.seconds)
    assert target.slab is not None
    assert target.slab.capacity >= 20 + 9


def _run(budget: AutoBudget, steps: int, accepted: int) -> list[bool]:
    """In which steps one sequence was drafted for, if `accepted` of a chain's nodes are kept."""
    drafted: list[bool] = []
    for _ in range(steps):
        drafted.append(budget.limit() > 0)
        tree = chain([1, 2, 3], 0.5) if drafted[-1] else EMPTY_TREE
        path = np.arange(accepted if drafted[-1] else 0, dtype=np.int32)
        verdict = Verdict(path, np.ones(len(path) + 1, np.int32))
        budget.observe([tree], [verdict], 1 + len(tree))
    return drafted


def test_drafting_rests_while_it_costs_more_than_it_gains() -> None:
    budget = AutoBudget(CostCurve((1, 64), (1.0, 1.1), draft_seconds=2.0))
    assert _run(budget, 64, accepted=1) == [i % 16 == 0 for i in range(64)]


def test_drafting_never_rests_while_it_pays() -> None:
    budget = AutoBudget(CostCurve((1, 64), (1.0, 1.1), draft_seconds=0.5))
    assert all(_run(budget, 64, accepted=1))


def test_drafting_wakes_up_once_it_pays() -> None:
    budget = AutoBudget(CostCurve((1, 64), (1.0, 1.1), draft_seconds=0.5))
    assert not all(_run(budget, 40, accepted=0))
    assert all(_run(budget, 200, accepted=3)[-100:])


def test_prompts_in_the_first_pass_do_not_make_nodes_cheap() -> None:
    curve = CostCurve((1, 101, 1001), (1.0, 51.0, 501.0))  # half a plain step per row
    tree = chain([1, 2, 3, 4, 5, 6, 7, 8], 0.4)
    assert AutoBudget(curve).choose([tree], 1) == [EMPTY_TREE]
    assert AutoBudget(curve).choose([tree], 500) == [EMPTY_TREE]


def test_what_was_set_aside_counts_in_its_own_step_alone() -> None:
    """Also where prompts kept that step from being observed."""
    kept, lost = AutoBudget(DEAR), AutoBudget(DEAR)
    for budget in (kept, lost):
        budget.limit()
        budget.observe([EMPTY_TREE], [Verdict(np.empty(0, np.int32), np.ones(1, np.int32))], 1)
    lost.set_aside(100.0)
    for budget in (kept, lost):
        budget.limit()
        budget.observe([EMPTY_TREE], [Verdict(np.empty(0, np.int32), np.ones(1, np.int32))], 1)
    assert lost.rate(1) == kept.rate(1)
    lost.limit()
    lost.set_aside(100.0)
    lost.observe([EMPTY_TREE], [Verdict(np.empty(0, np.int32), np.ones(1, np.int32))], 1)
    assert lost.rate(1) < 0.5 * kept.rate(1)
