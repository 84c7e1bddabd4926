"""Drafting goes as far and as wide as pays, and stops where it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from draftrec.engine.beams import pace as paces
from draftrec.engine.beams.pace import AutoPace, Costs, FixedPace, measure_passes, whole
from draftrec.engine.beams.state import BeamRequest, BeamTree, Scored, UserSearch
from draftrec.engine.costs import CostCurve, LearningCurve

DEPTH, K, N = 4, 4, 16
FLAT = CostCurve((1, 10_000), (1.0, 1.001))  # rows are free, passes are dear
STEEP = CostCurve((1, 1001), (0.001, 10.0))  # every row costs
CHEAP = CostCurve((1, 10_000), (0.001, 0.0011))


def a_search(order: int, level: int = 0) -> UserSearch:
    tree, request = BeamTree(DEPTH), BeamRequest(order, np.ones(1, np.int32))
    return UserSearch(order, request, tree, Scored(0, request, tree), level=level)


def verified(needed: list[int | None], widths: list[int]) -> UserSearch:
    """A search that was drafted `widths` and of which the target kept beams, the last of them at
    place `needed` of every level (None: one was not drafted)."""
    s = a_search(1)
    for need, width in zip(needed, widths, strict=True):
        drafted = np.arange(width, dtype=np.int32)
        s.levels.append(drafted)
        s.complete.append(False)
        kept = np.array([0, width + 9 if need is None else need - 1], np.int32)
        s.trail.append(np.unique(kept))
        s.level += 1
        if need is None:
            break
    return s


def pace(target: CostCurve, draft: CostCurve | None) -> AutoPace:
    return AutoPace(N, DEPTH, Costs(target, draft, users=2, prompt=8, kept=K))


def test_fixed_widths_end_before_the_last_level() -> None:
    fixed = FixedPace(9, 2, DEPTH)
    assert [list(fixed.widths(a_search(0, level), 1)) for level in range(DEPTH)] == [
        [9, 9], [9, 9], [9], [],
    ]  # fmt: skip


def test_dear_passes_are_saved_and_dear_rows_are_not_spent() -> None:
    assert pace(FLAT, CHEAP).widths(a_search(1), 2) == (N, N, N)
    assert pace(STEEP, CHEAP).widths(a_search(1), 2) == ()
    assert pace(FLAT, FLAT).widths(a_search(1), 2) == (), "a draft as dear as the target never pays"


def unlucky(costs: Costs) -> AutoPace:
    """Drafts that could pay, if they ever held anything."""
    auto = AutoPace(N, DEPTH, costs)
    for _ in range(200):
        auto.observe([verified([None], [N])])
    return auto


def test_where_nothing_is_held_few_users_try() -> None:
    auto = unlucky(Costs(FLAT, CHEAP, users=2, prompt=8, kept=K, propose=0.02))
    tried = [i for i in range(1, 200) if auto.widths(a_search(0), 2)]
    assert tried == [64, 128, 192], "whatever their order in one call: calls may be of one user"
    assert all(auto.widths(a_search(0, level=1), 2) == auto.plans(2)[1] for _ in range(200))


def test_until_drafts_were_seen_tries_come_sooner() -> None:
    """What is expected at first pays nothing: a draft has to be seen to be believed."""
    dear = CostCurve((1, 10_000), (0.85, 0.8509))
    auto = AutoPace(N, DEPTH, Costs(FLAT, dear, users=2, prompt=8, kept=K))
    assert auto.plans(1) == [()] * DEPTH
    apart = auto._users_between_tries(1)
    assert apart is not None
    tried = np.flatnonzero([bool(auto.widths(a_search(0), 1)) for _ in range(4 * apart)]) + 1
    expected = np.cumsum([apart >> i for i in range(6, 0, -1)] + [apart] * 3)
    assert tried.tolist() == expected[expected <= 4 * apart].tolist()


def test_drafts_that_are_good_against_expectation_are_found_in_a_few_users() -> None:
    dear = CostCurve((1, 10_000), (0.85, 0.8509))
    auto = AutoPace(N, DEPTH, Costs(FLAT, dear, users=1, prompt=8, kept=K))
    assert auto.plans(1) == [()] * DEPTH
    for _ in range(40):
        if widths := auto.widths(a_search(0), 1):
            auto.observe([verified([1] * len(widths), list(widths))])
    assert auto.plans(1)[0], "always accepted"


def test_dear_tries_are_rarer() -> None:
    """A plain user takes 2 seconds (4 passes, 2 users at once), a try 1.6 more: one in 80 users."""
    draft = CostCurve((1, 10_000), (0.2, 0.2002))
    costs = Costs(FLAT, draft, users=2, prompt=8, kept=K, propose=1.0)
    assert costs.alone([N] * 3) == pytest.approx(1.6, rel=0.01)
    auto = unlucky(costs)
    tried = [i for i in range(1, 400) if auto.widths(a_search(0), 2)]
    assert tried == pytest.approx([80, 160, 240, 320], abs=4)


def test_nobody_tries_where_even_perfect_drafts_would_lose() -> None:
    auto = pace(STEEP, CHEAP)
    assert not any(auto.widths(a_search(0), 2) for _ in range(1000))


def test_levels_that_are_never_accepted_are_given_up() -> None:
    auto = pace(FLAT, CostCurve((1, 10_000), (0.2, 0.2002)))
    assert len(auto.widths(a_search(1), 2)) > 1
    for _ in range(60):
        auto.observe([verified([N // 2, None], [N, N, N][:2])])
    assert len(auto.widths(a_search(1), 2)) == 1, "the second level never came right"


def test_narrow_drafts_do_where_they_hold_everything() -> None:
    """Rows cost something: as soon as the first K drafts are enough, no more are drafted."""
    slope = CostCurve((1, 201), (1.0, 3.0))
    auto = AutoPace(N, DEPTH, Costs(slope, CHEAP, users=1, prompt=8, kept=K))
    for _ in range(80):
        auto.observe([verified([K, K, K], [N, N, N])])
    assert auto.widths(a_search(1), 2) == (K, K, K)
    for _ in range(400):
        auto.observe([verified([N - 1, N - 1, N - 1], [N, N, N])])
    assert auto.widths(a_search(1), 2) == (N, N, N)


def test_every_level_gets_the_width_that_it_needs() -> None:
    """Rows cost something, and only the second level needs many: others stay narrow."""
    slope = CostCurve((1, 201), (1.0, 3.0))
    auto = AutoPace(N, DEPTH, Costs(slope, None, users=1, prompt=8, kept=K))
    for _ in range(200):
        auto.observe([verified([K, N - 1, N // 2], [N, N, N])])
    assert auto.widths(a_search(1), 1) == (K, N, N // 2)


def test_no_draft_has_more_nodes_than_there_is_room_for() -> None:
    costs = Costs(FLAT, None, users=2, prompt=8, kept=K, branching=(6.0, 9.0, 9.0, 9.0))
    auto = AutoPace((N, 4 * N, N), DEPTH, costs, rows=80)
    for level in range(DEPTH):
        widths = auto.widths(a_search(1, level), 2)
        levels = range(level + 1, DEPTH)
        most = [min(whole(w), 6 * 9 ** (i - 1)) for i, w in zip(levels, widths, strict=False)]
        assert sum(most) <= 80
    assert len(auto.widths(a_search(1), 2)) == DEPTH - 1
    assert auto.rows == 80
    assert auto.grid[1] == [K], "six first tokens are drafted whole by the narrowest draft"


def test_a_level_that_is_drafted_whole_is_held_by_widths_that_would_do_so_too() -> None:
    auto = pace(FLAT, None)
    s = verified([2 * K], [2 * K])  # the last of 2 K nodes was needed, and they are all there are
    s.complete = [True]
    before = auto.held[1].copy()
    auto.observe([s])
    assert auto.grid[1][0] == K
    assert auto.held[1, 0] == pytest.approx(before[0] * 0.995 + 1)


def test_plans_are_for_as_many_users_as_run() -> None:
    """One user's rows cost nothing beside a pass; those of 32 cost more than it."""
    costs = Costs(CostCurve((1, 64, 2000), (1.0, 1.0, 30.0)), None, users=32, prompt=8, kept=K)
    auto = AutoPace(N, DEPTH, costs)
    assert len(auto.widths(a_search(1), 1)) == DEPTH - 1
    assert auto.widths(a_search(1), 32) == auto.widths(a_search(1), 17) == ()


def test_a_narrow_draft_says_nothing_of_a_wider_one() -> None:
    auto = pace(FLAT, CHEAP)
    before = auto.tried.copy(), auto.held.copy()
    auto.observe([verified([None], [K])])
    wider = auto.grid[1].index(N)
    assert auto.tried[1, wider] == pytest.approx(before[0][1, wider] * 0.995)
    assert auto.tried[1, 0] == pytest.approx(before[0][1, 0] * 0.995 + 1)
    auto.observe([verified([K], [K])])
    assert auto.held[1, wider] > before[1][1, wider], "what a narrow one holds, a wide one does"


def test_beams_have_more_continuations_than_prefixes_on_the_mean() -> None:
    """Asked of the trie to begin with, then of what was drafted."""
    sizes = (30.0, 20.0, 1.5, 1.1)
    costs = Costs(FLAT, None, users=1, prompt=8, kept=K, branching=sizes)
    costs = replace(costs, followed=(30.0, 22.0, 5.0, 1.4))
    assert costs.rows(2, [16]) == [20.0]
    assert costs.rows(0, [16, 600]) == [30.0, 600.0], "no more than there are"
    auto = AutoPace(N, DEPTH, costs)
    s = verified([1, 1, 1], [30, N, 9 * N])
    s.complete = [True, False, True]
    for _ in range(64):
        auto.observe([s])
    rows = auto.costs.rows(2, [40])
    assert rows == [pytest.approx(9 * K, rel=0.05)]
    assert auto.costs.rows(0, [16]) == [pytest.approx(30.0)]


def test_rows_count_levels_that_are_drafted_whole() -> None:
    """30 first tokens, 20 continuations of each, then hardly any."""
    costs = Costs(FLAT, None, users=1, prompt=8, kept=4, branching=(30.0, 20.0, 1.5, 1.1))
    assert costs.rows(0, [16, 16, 16]) == [30.0, 16.0, 24.0]
    assert costs.rows(0, [8]) == [8.0]
    assert costs.rows(2, [16]) == [6.0]


def test_host_work_counts_against_drafting() -> None:
    plain = Costs(FLAT, None, users=1, prompt=8, kept=4)
    busy = Costs(FLAT, None, users=1, prompt=8, kept=4, propose=0.5)
    assert busy.passes(0, []) == plain.passes(0, [])
    assert busy.passes(0, [8]) == pytest.approx(plain.passes(0, [8]) + 0.5)
    assert AutoPace(N, DEPTH, plain).widths(a_search(1), 2) == (N, N, N)
    dear = Costs(FLAT, None, users=1, prompt=8, kept=4, propose=5.0)
    assert AutoPace(N, DEPTH, dear).widths(a_search(1), 2) == ()


def test_proposals_beside_a_draft_count_as_rows_of_the_pass() -> None:
    slope = CostCurve((1, 1001), (1.0, 11.0))
    alone, beside = (
        Costs(slope, CHEAP, users=2, prompt=8, kept=4, extra=extra) for extra in (0, 16)
    )
    assert beside.passes(0, []) == alone.passes(0, [])
    more = beside.passes(0, [8, 40]) - alone.passes(0, [8, 40])
    assert more == pytest.approx((8 + 16) * 0.01)


def test_few_rows_are_considered_where_few_beams_are_kept() -> None:
    """The second row holds what the first has missed; each costs a tenth of a pass."""
    dear = CostCurve((1, 1001), (1.0, 101.0))
    auto = AutoPace(N, DEPTH, Costs(dear, None, users=1, prompt=8, kept=1))
    for _ in range(200):
        auto.observe([verified([2, 2, 2], [N, N, N])])
    assert auto.widths(a_search(1), 1) == (2, 2, 2)


def test_what_passes_take_in_a_run_is_asked_again() -> None:
    """Rows looked free while they were measured, and are not."""
    target = LearningCurve(FLAT)
    auto = AutoPace(N, DEPTH, Costs(target, CHEAP, users=1, prompt=8, kept=K))
    assert auto.plans(1)[0]
    for passes in range(1, 65):
        for rows in (K, 8, 8 + N, 8 + 3 * N):
            target.observe(rows, float(STEEP(rows)))
        auto.observe([])
        if passes == 31:
            assert auto.plans(1)[0], "asking takes a while"
    assert auto.plans(1) == [()] * DEPTH


def test_dear_passes_are_measured_once_and_the_others_three_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    clock = 0.0

    def timed(model: object, at_once: int, prompt: int, count: int) -> float:
        nonlocal clock
        made.append(count)
        took = 0.01 if made.count(count) > 2 else 0.02  # a third time shows what it is
        clock += took if count < 256 else 0.4
        return took if count < 256 else 0.4

    monkeypatch.setattr(paces, "_timed", timed)
    monkeypatch.setattr(paces.time, "perf_counter", lambda: clock)
    model = type("Model", (), {"target": type("T", (), {"reserve": lambda *_: None})()})
    curve = measure_passes(model, 1, 8, 512)  # type: ignore[arg-type]
    assert [made.count(n) for n in (4, 64, 128, 256, 512)] == [3, 3, 3, 1, 1]
    assert curve(64) == pytest.approx(0.01)
    assert curve(512) == pytest.approx(0.4)
