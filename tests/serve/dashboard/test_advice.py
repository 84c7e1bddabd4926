"""Advice: which figures lead to which sentence, and which to none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from draftrec.serve.dashboard import advice as rules
from draftrec.serve.dashboard.quality import Evaluation
from draftrec.serve.dashboard.run_data import Baseline, PoolUse, RunData, RunReader, with_baselines
from tests.serve.run_folders import RunWriter, write_pool

Change = Callable[..., RunData]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    """A run that nothing is wrong with, twice as fast as the plain one."""
    folder = tmp_path_factory.mktemp("runs")
    paths = [
        RunWriter(folder / "plain", draft="none", seconds=0.04).finish(),
        RunWriter(folder / "good", pool=write_pool(folder / "pool")).finish(),
    ]
    runs = [RunReader(path, path.name).read() for path in paths]
    return with_baselines([run for run in runs if run])[1]


@pytest.fixture
def change(good: RunData) -> Change:
    """The good run with some of its figures changed."""

    def changed(*, name: str = "run", totals: Any = (), rates: Any = (), settings: Any = (),
                by_source: Any = (), **others: Any) -> RunData:  # fmt: skip
        values = {
            "totals": {**good.totals, **dict(totals)},
            "rates": {**good.rates, **dict(rates)},
            "settings": {**good.settings, **dict(settings)},
            "by_source": {**good.by_source, **dict(by_source)},
        }
        return replace(good, name=name, **values, **others)

    return changed


def pool_of(texts: int, sizes: dict[str, int] | None = None) -> PoolUse:
    sizes = sizes or {}
    total = sum(sizes.values()) + 10
    return PoolUse("pool", total, texts, 100 * texts, 10, 5, 20, [0, 20], sizes, 10)


def test_a_good_run_is_told_so(good: RunData) -> None:
    [advice] = rules.advise([good], [])
    assert advice.weight == "good"
    assert advice.text.startswith("2.00 times as fast as plain.")


def test_a_run_that_has_hardly_begun_gets_no_advice(change: Change) -> None:
    assert rules.advise([change(totals={"new_tokens": 10})], []) == []


@pytest.mark.parametrize(("budget", "words"), [("auto", "--draft none"), (16, "--budget auto")])
def test_a_run_slower_than_plain(change: Change, budget: Any, words: str) -> None:
    slow = change(speedup=0.8, settings={"budget": budget})
    advice = rules.slower_than_plain(slow, [slow])
    assert advice is not None
    assert "0.80 times as fast as plain" in advice.text
    assert words in advice.text
    assert rules.slower_than_plain(change(speedup=1.01), []) is None
    estimate = Baseline("estimate", 1.0, "")
    assert rules.slower_than_plain(change(speedup=0.8, baseline=estimate), []) is None


def test_a_budget_that_is_too_large(change: Change) -> None:
    counts = {"draft_calls": 100, "drafted_tokens": 3200}
    wasteful = change(settings={"budget": 32}, totals=counts, rates={"acceptance_rate": 0.08})
    advice = rules.budget_too_large(wasteful, [wasteful])
    assert advice is not None
    assert "of 32 draft tokens" in advice.text
    assert "8 % are kept" in advice.text
    for fine in (
        change(settings={"budget": 32}, totals=counts, rates={"acceptance_rate": 0.4}),
        change(settings={"budget": "auto"}, totals=counts, rates={"acceptance_rate": 0.08}),
        change(settings={"budget": 4}, totals={"draft_calls": 800, "drafted_tokens": 3200},
               rates={"acceptance_rate": 0.1}),
    ):  # fmt: skip
        assert rules.budget_too_large(fine, [fine]) is None


def test_a_pool_that_is_too_small(change: Change) -> None:
    few = {"group": 10, "all": 40}
    small = change(by_source=few, pool=pool_of(90))
    advice = rules.pool_too_small(small, [small])
    assert advice is not None
    assert "its 90 texts foretold 5 % of the new tokens" in advice.text
    assert rules.pool_too_small(change(by_source=few, pool=pool_of(50_000)), []) is None
    assert rules.pool_too_small(change(pool=pool_of(90)), []) is None
    assert rules.pool_too_small(change(by_source=few, pool=None), []) is None


def test_relaxed_that_gains_nothing(change: Change, good: RunData) -> None:
    speed = good.rates["tokens_per_second"]

    def relaxed(gain: float, share: float = 0.09) -> RunData:
        rates = {"tokens_per_second": gain * speed, "relaxed_share": share}
        return change(settings={"accept": "relaxed"}, rates=rates)

    advice = rules.relaxed_gains_nothing(relaxed(1.02), [good, relaxed(1.02)])
    assert advice is not None
    assert "1.02 times the speed of good" in advice.text
    assert "9.0 % of the tokens" in advice.text
    assert rules.relaxed_gains_nothing(relaxed(1.4), [good]) is None
    assert rules.relaxed_gains_nothing(relaxed(1.02), []) is None
    other_drafts = change(same_drafts="another pool")
    assert rules.relaxed_gains_nothing(relaxed(1.02), [other_drafts]) is None
    rare = rules.relaxed_gains_nothing(relaxed(1.02, 0.001), [])
    assert rare is not None
    assert "0.10 % of the tokens" in rare.text
    assert rules.relaxed_gains_nothing(good, [good]) is None


def test_drafting_that_rests(change: Change) -> None:
    resting = change(totals={"draft_calls": 20, "target_calls": 100})
    advice = rules.drafting_rests(resting, [])
    assert advice is not None
    assert "only 20 % of the calls had a draft" in advice.text
    assert rules.drafting_rests(change(totals={"draft_calls": 80, "target_calls": 100}), []) is None
    fixed = change(settings={"budget": 4}, totals={"draft_calls": 20, "target_calls": 100})
    assert rules.drafting_rests(fixed, []) is None


@pytest.mark.parametrize(
    ("rule", "phase", "words"),
    [
        (rules.drafting_is_slow, "draft_seconds", "Drafting itself takes 60 %"),
        (rules.long_prompts, "prefill_seconds", "Prompts take 60 %"),
    ],
)
def test_time_spent_elsewhere(change: Change, rule: rules.Rule, phase: str, words: str) -> None:
    advice = rule(change(totals={phase: 6.0, "wall_seconds": 10.0}), [])
    assert advice is not None
    assert words in advice.text
    assert rule(change(totals={phase: 1.0, "wall_seconds": 10.0}), []) is None


def test_pools_that_gave_nothing(change: Change, good: RunData) -> None:
    used = good.groups[0].name
    idle = change(pool=pool_of(90, {used: 1_000_000, "a": 2_000_000, "b": 1_000_000}))
    advice = rules.idle_pools(idle, [])
    assert advice is not None
    assert advice.text.startswith("2 of 3 group pools gave this run nothing; they are 3.0 of")
    assert rules.idle_pools(change(pool=pool_of(90, {used: 9_000_000, "a": 1_000})), []) is None
    assert rules.idle_pools(replace(idle, state="running"), []) is None


def test_a_missing_baseline_and_a_closed_gate(change: Change) -> None:
    alone = change(baseline=Baseline("none", 0.0, ""), speedup=None)
    gate = Evaluation("compare", "comparison", "closed", (), ())
    found = rules.advise([alone], [gate, replace(gate, verdict="passed")])
    assert [(a.about, a.weight) for a in found] == [("compare", "act"), ("run", "consider")]
    assert "--draft none" in found[1].text


def test_drafts_are_the_same_from_the_same_pool_by_the_same_settings(tmp_path: Path) -> None:
    def drafts(name: str, pool: str | None = None, **settings: Any) -> str:
        writer = RunWriter(tmp_path / name, **settings)
        writer.manifest.fingerprints["pool"] = pool
        writer.folder.write_manifest(writer.manifest)
        run = RunReader(writer.finish(), name).read()
        assert run
        return run.same_drafts

    first = drafts("strict", "p1")
    assert drafts("relaxed", "p1", accept="relaxed") == first
    assert drafts("other pool", "p2", accept="relaxed") != first
    assert drafts("no pool", None) != first
    assert drafts("other budget", "p1", budget=3) != first


@pytest.mark.parametrize(
    ("speedup", "words"), [(1.005, "1.01"), (2.675, "2.68"), (1.125, "1.13"), (1234.5, "1,234.50")]
)
def test_figures_are_rounded_as_the_tiles_are(change: Change, speedup: float, words: str) -> None:
    """What browsers make of these numbers: halves of what is written go upward."""
    [advice] = rules.advise([change(speedup=speedup)], [])
    assert advice.text.startswith(f"{words} times as fast")
