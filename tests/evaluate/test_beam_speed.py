"""Beam searches side by side: every figure computed by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from draftrec.evaluate.beam_speed import (
    Agreement,
    EngineRun,
    Spread,
    UserBeams,
    agreement,
    beam_figures,
    paired_speedup,
)


def beams(items: list[int], calls: int, steps: int, *, invalid: int = 0) -> UserBeams:
    scores = [-0.5 * place for place in range(len(items))]
    return UserBeams(np.array(items, np.int64), scores, calls, steps, len(items), invalid)


PLAIN = EngineRun([beams([1, 2, 3], 4, 0), beams([4, 5, 6], 4, 0)], [4.0, 6.0, 5.0])
SLOW = EngineRun(PLAIN.users, [8.0, 18.0, 5.0])
STRICT = EngineRun([beams([1, 2, 3], 1, 3), beams([4, 6, 5], 2, 2)], [2.0, 2.0, 2.0])
RUNS = {"hf": SLOW, "plain": PLAIN, "strict": STRICT}


def test_calls_times_and_fidelity() -> None:
    found = beam_figures(RUNS, "plain", ["hf", "plain"])
    strict = found["strict"]
    assert (strict.users, strict.target_calls, strict.accepted_steps) == (2, 1.5, 2.5)
    assert strict.accepted_steps_per_call == 5 / 3
    assert strict.seconds == Spread(2.0, 2.0, 2.0, 3)
    assert strict.ms_per_user == 1000
    assert strict.speedup["plain"] == Spread(2.5, 2.0, 3.0, 3)
    assert strict.speedup["hf"] == Spread(4.0, 2.5, 9.0, 3)
    assert strict.agreement == Agreement(0.5, 1.0, 0.0)
    assert found["plain"].agreement == Agreement(1.0, 1.0, 0.0)
    assert found["plain"].accepted_steps_per_call == 0
    assert found["hf"].speedup["hf"] == Spread(1.0, 1.0, 1.0, 3)
    assert strict.recall == {}


def test_quality_counts_every_target() -> None:
    targets = [np.array([1, 9]), np.array([6])]
    found = beam_figures(RUNS, "plain", [], targets, [1, 2])
    assert found["plain"].recall == {1: 0.25, 2: 0.25}
    assert found["strict"].recall == {1: 0.25, 2: 0.75}
    assert found["strict"].ndcg[1] == 0.5


def test_the_share_of_ids_that_are_no_item() -> None:
    run = EngineRun([beams([1, 2], 1, 0, invalid=1), beams([3, 4, 5], 1, 0)], [1.0])
    assert beam_figures({"free": run}, "free", [])["free"].invalid_rate == 1 / 5
    empty = EngineRun([beams([], 0, 0)], [1.0])
    found = beam_figures({"empty": empty}, "empty", [])["empty"]
    assert (found.invalid_rate, found.accepted_steps_per_call) == (0.0, 0.0)


def test_scores_are_compared_where_both_lists_have_them() -> None:
    one = beams([1, 2, 3], 1, 0)
    moved = replace(one, scores=[0.25, -0.5, -1.0])
    assert agreement([one], [moved]) == Agreement(1.0, 1.0, 0.25)
    shorter = replace(one, items=one.items[:2], scores=one.scores[:2])
    assert agreement([one], [shorter]) == Agreement(0.0, 0.0, 0.0)
    nothing = beams([], 1, 0)
    assert agreement([nothing], [nothing]) == Agreement(1.0, 1.0, 0.0)


def test_the_summary_is_json() -> None:
    found = beam_figures(RUNS, "plain", ["hf"], [np.array([1])] * 2, [3])["strict"].summary()
    again = json.loads(json.dumps(found))
    assert again["recall"] == {"3": 0.5}
    assert again["speedup"]["hf"]["median"] == 4.0
    assert again["agreement"]["exact_match_rate"] == 0.5


def test_runs_that_cannot_be_compared_are_refused() -> None:
    fewer = EngineRun(STRICT.users, STRICT.seconds[:2])
    with pytest.raises(ValueError, match="different numbers"):
        beam_figures({"plain": PLAIN, "fewer": fewer}, "plain", [])
    with pytest.raises(ValueError, match="different numbers"):
        beam_figures({"plain": EngineRun([], [1.0])}, "plain", [])
    with pytest.raises(KeyError):
        beam_figures(RUNS, "plain", ["none"])
    with pytest.raises(ValueError, match="longer"):
        paired_speedup([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="nothing"):
        Spread.of([])
