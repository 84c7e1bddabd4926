"""Limits: what they refuse, and every verdict that there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftrec.errors import DraftrecError
from draftrec.evaluate.compare.limits import (
    Limits,
    Measured,
    Outcome,
    default_limits,
    judge,
    passed,
    read_limits,
)
from draftrec.evaluate.compare.quality import Estimate


def verdicts(limits: Limits, *, equal: bool = False, **measured: Measured) -> dict[str, Outcome]:
    return {f"{v.metric}.{v.key}": v.outcome for v in judge("r", measured, limits, equal=equal)}


def limits(**content: object) -> Limits:
    return Limits.model_validate({"limits": content})


@pytest.mark.parametrize(
    ("found", "samples", "outcome"),
    [
        (Estimate(0.05, 0.04, 0.06), 50, "kept"),
        (Estimate(0.05, 0.04, 0.11), 50, "undecided"),
        (Estimate(0.12, 0.08, 0.16), 50, "broken"),
        (Estimate(0.05, 0.04, 0.06), 3, "undecided"),
        (Estimate(0.12, 0.08, 0.16), 3, "broken"),
        (Estimate(0.05), 50, "undecided"),
        (Estimate(0.1, 0.1, 0.1), None, "kept"),
    ],
)
def test_noise_and_lack_of_data_keep_no_limit(
    found: Estimate, samples: int | None, outcome: Outcome
) -> None:
    bound = limits(repetition={"max_change": 0.1})
    measured = Measured(Estimate(0.5), change=found, samples=samples)
    assert verdicts(bound, repetition=measured) == {"repetition.max_change": outcome}
    judged = judge("r", {"repetition": measured}, bound, equal=False)
    assert passed(judged, bound) == (outcome == "kept")
    lenient = bound.model_copy(update={"undecided": "pass"})
    assert passed(judged, lenient) == (outcome != "broken")


def test_a_figure_of_the_whole_run_needs_no_interval() -> None:
    measured = Measured(Estimate(0.2), relative=Estimate(-0.1), samples=50)
    bound = limits(distinct_2={"min_relative": -0.2, "min": 0.3})
    assert verdicts(bound, distinct_2=measured) == {
        "distinct_2.min": "broken",
        "distinct_2.min_relative": "kept",
    }


def test_the_lower_end_counts_for_what_must_not_fall() -> None:
    loss = Measured(Estimate(0.7), change=Estimate(-0.001, -0.004, 0.002), samples=5)
    assert verdicts(limits(auc={"min_change": -0.003}), auc=loss) == {"auc.min_change": "undecided"}
    assert verdicts(limits(auc={"min_change": -0.005}), auc=loss) == {"auc.min_change": "kept"}
    few = Measured(Estimate(0.7), change=Estimate(0.0, -0.001, 0.001), samples=2)
    assert verdicts(limits(auc={"min_change": -0.005}), auc=few) == {"auc.min_change": "undecided"}


def test_what_is_not_measured_counts_only_where_it_is_required() -> None:
    assert verdicts(limits(auc={"min": 0.5})) == {"auc.min": "not measured"}
    assert verdicts(limits(auc={"min": 0.5, "required": True})) == {"auc.min": "broken"}
    lost = Measured(Estimate(0.1, 0.0, 0.2), samples=50)
    assert verdicts(limits(repetition={"max_relative": 0.1}), repetition=lost) == {
        "repetition.max_relative": "undecided"
    }


def test_strict_limits_hold_for_runs_that_must_be_equal() -> None:
    one_off = Measured(Estimate(0.99, 0.97, 1.0), samples=100)
    found = default_limits()
    assert "exact_match.min" not in verdicts(found, exact_match=one_off)
    assert verdicts(found, equal=True, exact_match=one_off)["exact_match.min"] == "broken"


def test_a_file_changes_single_limits(tmp_path: Path) -> None:
    path = tmp_path / "l.yaml"
    path.write_text("undecided: pass\nlimits:\n  self_bleu: null\n  new_tokens: {max: 9}\n")
    found, base = read_limits(path), default_limits()
    assert found.undecided == "pass"
    assert "self_bleu" not in found.limits
    assert list(found.limits["new_tokens"].bounds()) == [("max", 9.0)]
    assert found.limits["repetition"] == base.limits["repetition"]
    assert found.strict == base.strict
    path.write_text("")
    assert read_limits(path) == base


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("limits: {self_blue: {max: 1}}", "'self_blue' is no metric; known are new_tokens"),
        ("limits: {auc: {most: 1}}", r"unknown key 'limits.auc.most'; known are min, max"),
        ("limit: {}", "unknown key 'limit'; known are min_entities"),
        ("limits: {auc: {}}", "auc has no bound"),
        ("limits: {auc: {min: high}}", "limits.auc.min"),
        ("limits: {auc: {min: .nan}}", "limits.auc.min"),
        ("limits: [auc]", "a line per metric"),
        ("min_seeds: 1", "min_seeds"),
        ("undecided: maybe", "undecided"),
        ("columns: [speed]", "'speed' is no metric"),
        ("form: {framework: karr}", "form.framework"),
        ("[]\n", "must hold"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "l.yaml"
    path.write_text(content)
    with pytest.raises(DraftrecError, match=words) as refusal:
        read_limits(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)
