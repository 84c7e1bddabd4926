"""The demo, small: strict keeps every token, files are there, page and summary agree."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from draftrec.cli.main import run
from draftrec.demo import output, story, summary, terminal
from draftrec.demo.story import Plan, Story
from draftrec.errors import DraftrecError
from draftrec.evaluate.report import Report
from draftrec.pool.store import Pool

PLAN = Plan(warm=12, held_out=3, repeats=2, max_new_tokens=40)


@pytest.fixture(scope="module")
def told() -> Story:
    seen: list[tuple[str, int, int]] = []
    result = story.tell(PLAN, lambda *event: seen.append(event))
    assert seen[0] == (story.WARMING, 0, 12)
    assert seen[-1] == (story.RACING, 18, 18)
    return result


@pytest.fixture(scope="module")
def report(told: Story) -> Report:
    return summary.make_report(told, Path("out"))


def test_strict_equals_the_baseline(told: Story) -> None:
    baseline, strict, relaxed = told.contenders
    assert strict.identical_to(baseline) == 3
    assert strict.total("relaxed_tokens") == 0
    assert strict.total("target_calls") < baseline.total("target_calls")
    assert relaxed.total("target_calls") < baseline.total("target_calls")
    assert baseline.total("drafted_tokens") == 0


def test_warm_and_held_out_readers_differ(told: Story) -> None:
    assert len(told.pool) == 12
    assert len({r.entity_id for r in told.requests}) == 3
    warm, held_out = story._split(PLAN)
    assert not {r["entity_id"] for r in warm} & {r["entity_id"] for r in held_out}
    assert [g.texts for g in told.growth] == [0, 1, 2, 4, 8, 12]


def test_another_seed_tells_of_other_readers() -> None:
    other = story._split(Plan(seed=1, warm=2, held_out=2))
    assert other != story._split(Plan(warm=2, held_out=2))


def test_report_says_what_happened(report: Report) -> None:
    assert [arm.name for arm in report.arms] == ["baseline", "strict", "relaxed"]
    assert "exactly as the baseline did" in report.findings[0]
    assert report.cost
    assert len(report.examples) == 3
    for example in report.examples:
        assert not any(piece.changed for piece in example.versions[1].pieces)


def test_terminal_shows_the_numbers(report: Report) -> None:
    out = io.StringIO()
    terminal.show(report, Path("out/report.html"), Console(file=out, width=80))
    text = out.getvalue()
    assert max(len(line) for line in text.splitlines() if "draftrec generate" not in line) <= 80
    for arm in report.arms:
        assert f"{arm.tokens_per_call:.2f}" in text
    assert "3 of 3" in text
    assert "out/report.html" in text


def test_files(told: Story, tmp_path: Path) -> None:
    report, numbers = output.write(told, tmp_path)
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
    assert all(finding in html.unescape(page) for finding in report.findings)
    rows = (tmp_path / "readers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["prompt"] for row in rows] == told.prompts
    assert len(Pool.load(tmp_path / "pool")) == 12


def test_command_prints_json_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, told: Story
) -> None:
    monkeypatch.setattr(story, "tell", lambda plan, watch: told)
    assert run(["demo", "--output", str(tmp_path / "new" / "folder"), "--json"]) == 0
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    assert json.loads(line)["arms"].keys() == {"baseline", "strict", "relaxed"}
    assert "walltime speedup" in captured.err


def test_unwritable_folder_is_refused_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def never(plan: Plan, watch: object) -> Story:
        raise AssertionError("the work began")

    monkeypatch.setattr(story, "tell", never)
    (tmp_path / "file").write_text("in the way")
    assert run(["demo", "--output", str(tmp_path / "file" / "sub")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written: not a directory" in line
    assert run(["demo", "--output", str(tmp_path / "file")]) == 2


def test_missing_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(DraftrecError, match="install draftrec again"):
        story.tell(Plan(model=tmp_path / "absent"))
