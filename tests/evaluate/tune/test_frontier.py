"""The page of a study."""

from __future__ import annotations

import re

import pytest

from draftrec.evaluate.tune.choice import LossLimits, knobs_label
from draftrec.evaluate.tune.frontier import Study, report_of
from draftrec.report.blocks import Table
from draftrec.report.show import render
from tests.evaluate.tune.test_choice import STRICT, row

ROWS = (
    STRICT,
    row("relaxed", 1.9, 0.01, distinct_2_drift=None),
    row("relaxed", 2.4, 0.2, min_prob=0.03, distinct_2_drift=-0.1),
)
ROWS = tuple({"relaxed_share": 0.1, "distinct_2_drift": 0.0, **r} for r in ROWS)


def page(chosen: int) -> str:
    facts = {"Study": {"texts": "<3>"}}
    return render(report_of(Study(ROWS, ROWS[chosen], LossLimits(), facts, "s.yaml")))


def test_the_page_shows_every_setting_and_needs_no_other_file() -> None:
    html = page(1)
    assert re.findall(r"</i>(\w+), budget 16", html) == ["relaxed", "relaxed", "strict"]
    for one in ROWS[1:]:
        assert knobs_label(one) in html
    assert not re.search(r"(src|href)=|https?://", html)
    assert len(re.findall(r"<svg", html)) == 2
    assert "&lt;3&gt;" in html
    assert "--config s.yaml" in html
    assert "No other setting" not in html


@pytest.mark.slow
def test_settings_outside_the_limits_and_the_chosen_one_are_marked() -> None:
    html = page(1)
    assert re.findall(r"([^>]+); outside the limits", html) == [knobs_label(ROWS[2])]
    assert re.findall(r"(\w+), budget 16 \(chosen\)", html) == ["relaxed"]
    assert html.index("(chosen)") > html.index(knobs_label(ROWS[2]))


def test_a_choice_of_strict_is_explained() -> None:
    assert "No other setting within the limits was faster than strict" in page(0)


def test_a_terminal_shows_the_frontier_and_the_chosen_setting() -> None:
    beaten = ({**ROWS[1], "speedup": 0.5}, {**ROWS[1], "speedup": 0.6})
    for chosen, shown in ((ROWS[0], 3), (beaten[0], 4)):
        study = Study((*ROWS, *beaten), chosen, LossLimits(), {})
        tables = [b for s in report_of(study, short=True).sections for b in s.blocks]
        (table,) = (b for b in tables if isinstance(b, Table))
        assert len(table.rows) == shown


def test_a_pool_that_holds_the_texts_themselves_is_named() -> None:
    said = "25% of the model&#39;s own texts are in the pool token for token"
    assert said not in page(1)
    rows = tuple({**one, "in_pool": 0.25} for one in ROWS)
    assert said in render(report_of(Study(rows, rows[1], LossLimits(), {})))
