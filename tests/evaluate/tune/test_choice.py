"""Frontier, choice and settings file on trials whose answers are plain."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from draftrec.evaluate.tune.choice import LossLimits, Row, choose, chosen_yaml, frontier, unrest

LIMITS = LossLimits(max_loss_per_token=0.05, min_similarity=0.9, max_length_drift=0.1)


def row(rule: str, speedup: float, loss: float = 0.0, **more: Any) -> Row:
    knobs = {"top_k": 2, "min_prob": 0.1, "max_deviations": None} if rule == "relaxed" else {}
    figures = {
        "speedup_low": speedup, "speedup_high": speedup, "cpu_speedup": speedup,
        "tokens_per_call": 2.0,
        "loss_per_token": loss, "similarity_kept": 1.0, "exact_match": 1.0, "length_drift": 0.0,
    }  # fmt: skip
    return {"rule": rule, "budget": 16, **knobs, "speedup": speedup, **figures, **more}


STRICT = row("strict", 1.5)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12))
def test_the_frontier_is_what_no_row_beats(points: list[tuple[int, int]]) -> None:
    rows = [row("relaxed", 1.0 + s, 0.1 * c, place=i) for i, (s, c) in enumerate(points)]

    def beaten(a: Row) -> bool:
        return any(
            b["speedup"] >= a["speedup"]
            and b["loss_per_token"] <= a["loss_per_token"]
            and (b["speedup"], b["loss_per_token"]) != (a["speedup"], a["loss_per_token"])
            for b in rows
        )

    found = frontier(rows, lambda r: r["loss_per_token"])
    kept = {(r["speedup"], r["loss_per_token"]) for r in rows if not beaten(r)}
    assert [(r["speedup"], r["loss_per_token"]) for r in found] == sorted(
        kept, key=lambda p: (p[1], p[0])
    )


def test_the_fastest_within_the_limits_is_chosen() -> None:
    best = row("relaxed", 1.9, 0.04)
    rows = [STRICT, row("relaxed", 1.7, 0.01), best, row("typical", 3.0, 0.06)]
    assert choose(rows, LIMITS) is best


@pytest.mark.parametrize(
    "broken",
    [{"loss": 0.051}, {"similarity_kept": 0.89}, {"length_drift": -0.11}, {"length_drift": 0.2}],
)
def test_each_limit_binds(broken: dict[str, float]) -> None:
    assert choose([STRICT, row("relaxed", 9.0, **broken)], LIMITS) is STRICT


def test_strict_stays_unless_it_is_beaten_in_every_round() -> None:
    lucky = row("relaxed", 1.8, 0.01, speedup_low=1.45)
    sure = row("relaxed", 1.6, 0.01, speedup_low=1.55)
    assert choose([STRICT, lucky], LIMITS) is STRICT
    assert choose([STRICT, lucky, sure], LIMITS) is sure


def test_strict_stays_where_only_the_clock_says_otherwise() -> None:
    assert choose([STRICT, row("relaxed", 1.8, 0.01, cpu_speedup=1.4)], LIMITS) is STRICT


def test_a_busy_machine_is_named() -> None:
    quiet = [STRICT, row("relaxed", 1.8, speedup_low=1.75)]
    assert unrest(quiet) is None
    busy = [row("strict", 1.5, speedup_low=1.0), row("relaxed", 1.8, speedup_low=0.9)]
    assert "differed by 1.75 times" in str(unrest(busy))


def test_the_faster_strict_budget_is_the_bar() -> None:
    fast = row("strict", 2.0, budget=48)
    assert choose([STRICT, fast, row("relaxed", 1.9, 0.01)], LIMITS) is fast


def test_the_settings_file_holds_the_rule_and_its_own_knobs() -> None:
    text = chosen_yaml(row("relaxed", 1.9, 0.01), LIMITS, depth=24)
    assert yaml.safe_load(text) == {
        "accept": "relaxed", "budget": 16, "depth": 24, "top_k": 2, "min_prob": 0.1,
    }  # fmt: skip
    assert "1.90 times plain decoding" in text
    capped = chosen_yaml(row("relaxed", 1.9, max_deviations=4), LIMITS, depth=24)
    assert yaml.safe_load(capped)["max_deviations"] == 4
    drafted = chosen_yaml(STRICT, LIMITS, depth=12, drafter="run 1: #2/head")
    assert yaml.safe_load(drafted)["drafter"] == "run 1: #2/head"
    strict = yaml.safe_load(chosen_yaml(STRICT, LIMITS, depth=12))
    assert "drafter" not in strict
    assert strict == {"accept": "strict", "budget": 16, "depth": 12}
    asked = yaml.safe_load(chosen_yaml(STRICT, LIMITS, 12, asked={"batch_size": 4}))
    assert asked == strict | {"batch_size": 4}


def test_drafting_that_does_not_pay_is_switched_off() -> None:
    assert yaml.safe_load(chosen_yaml(row("strict", 0.9), LIMITS, 24)) == {"draft": "none"}
