"""The texts' demo, small: strict keeps every token, files are there, page and summary agree."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from draftrec.demo import output, texts
from draftrec.demo.texts import Size, Story
from draftrec.demo.texts_report import findings, make_arms, make_report
from draftrec.errors import DraftrecError
from draftrec.pool.store import Pool
from draftrec.report.blocks import Cards, Report
from draftrec.report.show import show

pytestmark = pytest.mark.slow

PLAN = Size(warm=12, held_out=3, repeats=2, max_new_tokens=40)


@pytest.fixture(scope="module")
def told() -> Story:
    seen: list[tuple[str, int, int]] = []
    result = texts.tell(PLAN, lambda *event: seen.append(event))
    assert seen[0] == (texts.WARMING, 0, 12)
    assert seen[-1] == (texts.RACING, 18, 18)
    return result


@pytest.fixture(scope="module")
def report(told: Story) -> Report:
    return make_report(told, Path("out"))


def test_strict_equals_the_baseline(told: Story) -> None:
    baseline, strict, relaxed = told.contenders
    assert strict.identical_to(baseline) == 3
    assert strict.counts.relaxed_tokens == 0
    # What is drafted is what pays on this machine now, which may be nothing; but not for probes.
    assert strict.counts.target_calls <= baseline.counts.target_calls
    assert relaxed.counts.target_calls <= baseline.counts.target_calls
    assert baseline.counts.drafted_tokens == 0
    probed = told.growth[-1].tokens_per_call
    assert 1.2 < probed["strict"] <= probed["relaxed"]


def test_warm_and_held_out_readers_differ(told: Story) -> None:
    assert len(told.pool) == 12
    assert len({r.entity_id for r in told.requests}) == 3
    warm, held_out = texts._split(PLAN)
    assert not {r["entity_id"] for r in warm} & {r["entity_id"] for r in held_out}
    assert [g.texts for g in told.growth] == [0, 1, 2, 4, 8, 12]


def test_another_seed_tells_of_other_readers() -> None:
    other = texts._split(Size(seed=1, warm=2, held_out=2))
    assert other != texts._split(Size(warm=2, held_out=2))


def test_report_says_what_happened(report: Report, told: Story) -> None:
    arms = make_arms(told)
    assert [arm.name for arm in arms] == ["baseline", "strict", "relaxed"]
    assert "exactly as the baseline did" in findings(told, arms)[0]
    plots = next(one for one in report.sections if one.title == "Plots")
    assert "Cost of a forward pass" in [figure.title for figure in plots.blocks]
    (examples,) = (one.blocks for one in report.sections if one.title == "Texts")
    assert len(examples) == 3
    for example in examples:
        assert isinstance(example, Cards)
        assert not any(piece.marked for piece in example.cards[1].text)


def test_terminal_shows_the_numbers(report: Report, told: Story) -> None:
    out = io.StringIO()
    show(report, Console(file=out, width=80))
    text = out.getvalue()
    assert max(len(line) for line in text.splitlines() if "draftrec generate" not in line) <= 80
    for arm in make_arms(told):
        assert f"{arm.tokens_per_call:.2f}" in text
    assert "3 of 3" in text


def test_files(told: Story, tmp_path: Path) -> None:
    _, numbers = output.write(tmp_path, told)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "pool", "readers.jsonl", "report.html", "summary.json",
    ]  # fmt: skip
    written = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(numbers))
    strict = written["arms"]["strict"]
    assert strict["identical"] == strict["texts"] == 3
    assert strict["tokens_per_call"] == pytest.approx(strict["new_tokens"] / strict["target_calls"])
    assert strict["walltime_speedup"]["low"] <= strict["walltime_speedup"]["median"]
    assert sum(strict["accepted_by_source"].values()) == strict["accepted_tokens"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(finding in html.unescape(page) for finding in numbers["findings"])
    rows = (tmp_path / "readers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["prompt"] for row in rows] == told.prompts
    assert len(Pool.load(tmp_path / "pool")) == 12


def test_missing_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(DraftrecError, match="install draftrec again"):
        texts.tell(Size(model=tmp_path / "absent"))
