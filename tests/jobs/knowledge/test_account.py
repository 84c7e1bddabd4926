"""What a job says of itself: endings, the estimate of its speedup, reasons, lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftrec.config import StructureConfig
from draftrec.core import SOURCES, Counts, Generation
from draftrec.engine.costs import CostCurve
from draftrec.engine.text.stats import Spent, StepStats, summed
from draftrec.errors import Interrupted
from draftrec.jobs.knowledge.account import (
    Endings,
    curve_seconds,
    exactness,
    lines,
    loops,
    pool_note,
)
from draftrec.jobs.knowledge.job import Watcher, run_job
from tests.fakes import FakeGenerator
from tests.jobs.knowledge.test_job import do, make_spec, write_rows

CURVE = CostCurve((1, 4, 8, 100), (1.0, 1.0, 2.0, 25.0))


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ([7] * 32, True),
        ([7] * 31, False),
        ([1, 2, 3] + [4, 5, 6, 7, 8, 9, 10, 11] * 4, True),
        ([1, 2, 3] + [4, 5, 6, 7, 8, 9, 10, 11] * 3 + [4, 5, 6, 7, 8, 9, 10], False),
        (list(range(9)) * 5 + [0, 1], True),  # the last time is cut
        (list(range(9)) * 5 + [8], False),
        (list(range(100)), False),
        ([1, 2] * 40 + [3, 1, 2], False),  # it came out of it
        ([], False),
    ],
)
def test_loops_are_the_same_tokens_four_times_and_more(text: list[int], looping: bool) -> None:  # noqa: FBT001
    assert loops(np.array(text, np.int32)) is looping


def test_endings_are_counted_without_the_end_token() -> None:
    endings = Endings()

    def add(ids: list[int], reason: Any, text: str) -> None:
        endings.add(Generation("x", np.array(ids, np.int32), reason, 3, Counts()), text)

    add([5] * 40 + [0], "eos", "la " * 40)
    add([5] * 40, "length", "la " * 40)
    add([0], "eos", "")
    add([8, 8, 0], "eos", " \n ")
    add([1, 2, 3, 0], "eos", "a b c")
    assert endings == Endings(texts=5, cut=1, empty=2, looping=2)
    assert endings.warning(40) is None
    assert "--max-new-tokens" in (Endings(10, cut=6).warning(40) or "")
    assert "--chat" in (Endings(10, empty=6).warning(40) or "")
    assert "loop" in (Endings(10, cut=9, looping=6).warning(40) or "")
    assert Endings(10, cut=5).warning(40) is None


def step(scored: int, drafted: int, new: int, prompt: int = 0) -> StepStats:
    rows = scored + drafted + prompt
    return StepStats(1, 0, 0, rows, new, scored, drafted, new - scored, scored=scored)


def test_plain_seconds_are_those_of_as_many_passes_over_the_same_texts() -> None:
    assert curve_seconds(CURVE, step(4, 0, 4), 4) == (1.0, 1.0)
    # Four texts got three tokens each from a pass over eight rows: three passes of four rows.
    assert curve_seconds(CURVE, step(4, 4, 12), 4) == pytest.approx((2.0, 3.0))
    # Rows of prompts are there in either case, and share the first pass.
    passes, plain = curve_seconds(CURVE, step(2, 2, 4, prompt=4), 2)
    assert passes == pytest.approx(2.0 * 4 / 8)
    assert plain == pytest.approx(float(CURVE(6)) * 2 / 6 + 1.0)
    # What the first texts of a job are ahead would be written beside those that are still read.
    many = step(2, 2, 4, prompt=4)
    assert curve_seconds(CURVE, many, 8)[1] == pytest.approx(
        float(CURVE(6)) * 2 / 6 + 2 * float(CURVE(8)) / 8
    )
    # At its end nobody joins: few texts go on alone, with drafts or without.
    assert curve_seconds(CURVE, step(2, 2, 4), 8) == curve_seconds(CURVE, step(2, 2, 4), 2)
    assert curve_seconds(CURVE, step(0, 0, 0, prompt=8), 4) == (0.0, 0.0)


def test_without_drafts_the_estimate_is_one() -> None:
    for prompt in (0, 3, 50):
        passes, plain = curve_seconds(CURVE, step(4, 0, 4, prompt), 8)
        assert passes == pytest.approx(plain)
    assert Spent(0.0, 2.0, 3.0, 0.5, 0.5).times_plain == 1.0


def test_drafting_counts_as_time_and_the_clock_sets_the_scale() -> None:
    spent = Spent(draft=1.0, verify=4.0, prefill=5.0, passes=2.0, plain=6.0)
    assert spent.times_plain == pytest.approx((5.0 + 4.0 * 3.0) / 10.0)
    assert Spent(verify=1.0).times_plain is None
    both = summed([step(1, 0, 1), step(1, 0, 1)])
    assert both.scored == 2
    assert (spent + spent) - spent == spent


def test_the_summary_says_what_the_job_did(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    summary = do(make_spec(tmp_path), FakeGenerator(has_chat_template=True, threads=3)).summary
    assert summary["times_plain_kind"] == "estimated"
    assert summary["times_plain"] > 1.0
    assert (summary["chat"], summary["threads"], summary["exact"]) == (True, 3, "token for token")
    shares = summary["share_by_source"]
    assert summary["pool_share"] == shares["group"] + shares["all"] == 0.0
    assert sum(shares.values()) == summary["accepted_tokens"] / summary["new_tokens"]
    assert "too few phrases" in summary["pool_note"]
    told = "\n".join(lines(summary))
    for words in ("times as fast", "nothing came from the pool", "with chat", "threads: 3"):
        assert words in told
    plain = do(make_spec(tmp_path, "plain", draft="none")).summary
    assert (plain["times_plain"], plain["times_plain_kind"]) == (1.0, "measured")
    assert "--draft none" in plain["pool_note"]
    assert "--budget 0" in do(make_spec(tmp_path, "zero", budget=0)).summary["pool_note"]


@pytest.mark.parametrize(("texts", "words"), [(1, "no other text"), (2, "written together, 16")])
def test_a_text_by_itself_was_not_written_beside_others(texts: int, words: str) -> None:
    summary = {"new_tokens": 5, "pool_share": 0.0, "draft": "pool", "texts": texts, "kept": 0}
    settings = {"budget": "auto", "batch_size": 16, "n": 1, "known": False}
    assert words in (pool_note(summary, settings, None) or "")


def test_the_summary_says_why_drafts_do_not_pay(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    state = {"slots": 4, "rows": [1, 4, 8], "seconds": [0.001, 0.002, 0.004]}

    class Resting(FakeGenerator):
        def _write(self, request: Any) -> Generation:
            text = super()._write(request)
            text.counts.drafted_tokens = text.counts.accepted_tokens = 0
            text.counts.accepted_by_source = [0] * len(SOURCES)
            return text

    spec = make_spec(tmp_path, budget="auto")
    note = run_job(spec, load=lambda *_: Resting(cost_state=state)).summary["pool_note"]
    assert "4 rows takes 2 ms and one over 8 rows 4 ms" in note


def test_a_finished_run_of_an_older_version_says_what_it_knows(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(make_spec(tmp_path))
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in ("curve_seconds", "plain_seconds", "cut_texts", "empty_texts", "looping_texts"):
        del manifest["totals"][name]
    del manifest["chat"], manifest["threads"]
    path.write_text(json.dumps(manifest))
    summary = do(make_spec(tmp_path)).summary
    assert summary["times_plain"] is None
    assert "threads: unknown" in "\n".join(lines(summary))


def test_what_strict_means_follows_the_precision() -> None:
    assert exactness("strict", "float32") == "token for token"
    assert exactness("strict", "bfloat16") == "up to rounding"
    assert exactness("relaxed", "float32") == "no"
    assert exactness("relaxed", "float32", exact=True) == "no"
    assert exactness("strict", "bfloat16", exact=True) == "bit for bit"


def test_relaxed_tokens_are_told_for_what_they_are(tmp_path: Path) -> None:
    """Also where texts are sampled, of which many a token is no first choice."""
    write_rows(tmp_path / "in.jsonl")
    summary = do(make_spec(tmp_path)).summary
    told = lines({**summary, "accept": "relaxed", "relaxed_share": 0.015})[-1]
    assert told.endswith("relaxed: 1.5% of tokens are drafts in place of the model's own choice")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["json_schema", "regex", "grammar"])
def test_cut_texts_are_said_to_lack_the_form_that_was_asked_for(tmp_path: Path, form: str) -> None:
    write_rows(tmp_path / "in.jsonl")
    without = do(make_spec(tmp_path, "without")).summary
    assert without["structure"] is None
    assert without["cut_texts"] > 0
    assert "need not have" not in "\n".join(lines(without))
    spec = make_spec(tmp_path)
    structure = StructureConfig.model_validate({form: "{}"})
    generate = spec.config.generate.model_copy(update={"structure": structure})
    spec = replace(spec, config=spec.config.model_copy(update={"generate": generate}))
    summary = do(spec).summary
    assert summary["structure"] == form
    said = f"cut at the limit: {summary['cut_texts']} (unfinished, so they need not have the form"
    assert f"{said} of --{form.replace('_', '-')})" in "\n".join(lines(summary))
    assert "need not have" not in "\n".join(lines({**summary, "cut_texts": 0}))


class Heard(Watcher):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_texts_that_nobody_wants_are_said_while_the_job_runs(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", 60)
    for length, expected in ((1, "were cut at 512"), (40, "")):
        heard = Heard()
        spec = make_spec(tmp_path, f"run{length}", shard_size=60)
        do(spec, FakeGenerator(max_new_tokens=length), watcher=heard)
        assert len(heard.warnings) == bool(expected)
        assert all(w.startswith("so far, ") and expected in w for w in heard.warnings)


def test_the_texts_of_the_journal_count_once_with_their_time(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    whole = do(make_spec(tmp_path, "whole", shard_size=23)).summary
    generator = FakeGenerator()
    spec = make_spec(tmp_path, shard_size=23)
    with pytest.raises(Interrupted):
        do(spec, generator, should_stop=lambda: generator.decoded >= 7)
    broken = do(spec).summary
    assert broken["verify_seconds"] == pytest.approx(whole["verify_seconds"])
    assert broken["times_plain"] == pytest.approx(whole["times_plain"])
    for name in ("new_tokens", "target_calls", "cut_texts", "accepted_by_source"):
        assert broken[name] == whole[name]
