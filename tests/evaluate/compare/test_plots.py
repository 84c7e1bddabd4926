"""How much of a limit's room is used up, and which plots there are."""

from __future__ import annotations

import pytest

from draftrec.evaluate.compare.comparison import Comparison, RunResult
from draftrec.evaluate.compare.limits import Measured, Verdict, default_limits, judge
from draftrec.evaluate.compare.quality import Estimate
from draftrec.evaluate.compare.report import draw, used


@pytest.mark.parametrize(
    ("metric", "key", "bound", "value", "part"),
    [
        ("self_bleu", "max_change", 0.1, 0.05, 0.5),
        ("self_bleu", "max_change", 0.1, -0.3, 0.0),
        ("distinct_2", "min_relative", -0.2, -0.3, 1.5),
        ("relaxed_share", "max", 0.2, 0.05, 0.25),
        ("similarity_kept", "min", 0.2, 0.6, 0.5),
        ("exact_match", "min", 1.0, 0.9, None),
        ("missing_share", "max", 0.0, 0.1, None),
        ("new_tokens", "min", 0.5, 0.9, None),
    ],
)
def test_one_is_at_the_bound(
    metric: str, key: str, bound: float, value: float, part: float | None
) -> None:
    verdict = Verdict("r", metric, key, bound, None, "kept")
    assert used(verdict, value) == (None if part is None else pytest.approx(part))


def comparison(change: float) -> Comparison:
    limits, changed = default_limits(), Estimate(change, change, change)
    measured = {
        "new_tokens": Measured(Estimate(9.0), relative=changed),
        "self_bleu": Measured(Estimate(0.5, 0.4, 0.6), changed),
        "similarity_kept": Measured(Estimate(1.0 - change, 1.0 - change, 1.0 - change)),
    }
    base = RunResult("base", {"self_bleu": Measured(Estimate(0.5, 0.4, 0.6))}, {})
    verdicts = tuple(judge("run", measured, limits, equal=False))
    return Comparison(base, (RunResult("run", measured, {}, verdicts),), 99, limits, {})


def test_an_equal_run_has_no_plot_of_zeros() -> None:
    assert [plot.title for plot in draw(comparison(0.0))] == ["Similarity kept", "Self-BLEU"]


def test_bars_say_which_way_a_figure_went_where_both_are_limited() -> None:
    plot = draw(comparison(0.06))[0]
    assert plot.title == "run: use of the limits"
    assert "Dashed: the limit" in plot.caption
    assert "length down 0 %" in plot.svg
    assert "length up 40 %" in plot.svg
    assert "self-BLEU 60 %" in plot.svg
