"""Runs as the dashboard reads them: known figures in, the same figures out, whatever the moment."""

from __future__ import annotations

import itertools
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.pool.store import Pool
from draftrec.serve.dashboard import lines as run_lines
from draftrec.serve.dashboard import metrics as run_metrics
from draftrec.serve.dashboard.lines import Rows, rows_of
from draftrec.serve.dashboard.metrics import MetricsTail, Progress
from draftrec.serve.dashboard.run_data import (
    QUIET_SECONDS,
    RunData,
    RunReader,
    read_pool,
    with_baselines,
)
from tests.serve.run_folders import GROUPS, TOKENS, RunWriter, write_pool


def read(path: Path) -> RunData:
    found = RunReader(path, path.name).read()
    assert found is not None
    return found


def steps(seconds: float, tokens: int, **more: Any) -> dict[str, Any]:
    return {"kind": "steps", "seconds": seconds, "new_tokens": tokens, "target_calls": 10, **more}


def lines(*tokens: int) -> str:
    return "".join(json.dumps(steps(1.0, n)) + "\n" for n in tokens)


def speeds(progress: Progress) -> list[float]:
    return progress.curves().tokens_per_second


def progress_of(records: list[dict[str, Any]], most: int = 120) -> Progress:
    found = Progress(most)
    found.take(rows_of("".join(json.dumps(record) + "\n" for record in records).encode(), few=0))
    return found


def test_a_tail_reads_what_was_added_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert speeds(tail.read()) == []
    whole = lines(2)
    path.write_text(lines(1) + whole[:9])
    assert speeds(tail.read()) == [1]
    with path.open("a") as file:
        file.write(whole[9:] + "not json\n[3]\n" + lines(4))
    assert speeds(tail.read()) == [1, 2, 4]
    assert tail.read().odd == 2


def test_a_tail_reads_in_blocks_and_keeps_no_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_metrics, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(run_metrics, "_PART_BYTES", 100)
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(*range(1000)))
    found = MetricsTail(path).read()
    assert found.pending.new_tokens == sum(range(1000))
    points = found.curves()
    assert 60 <= len(points.seconds) <= 120
    assert points.seconds[-1] == 1000
    assert points.tokens_per_second[0] == pytest.approx(np.mean(range(16)))


def test_a_tail_starts_again_with_a_file_that_was_cut_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(1, 2))
    tail = MetricsTail(path)
    assert speeds(tail.read()) == [1, 2]
    os.truncate(path, len(lines(1)))
    assert speeds(tail.read()) == [1]
    other = tmp_path / "new"
    other.write_text(lines(3, 4, 5))
    other.replace(path)
    assert speeds(tail.read()) == [3, 4, 5]
    path.unlink()
    assert speeds(tail.read()) == []


def test_odd_lines_are_counted_and_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = steps(1.0, 5)
    odd = [{**good, "seconds": bad} for bad in (None, float("nan"), "long", -1, [1], 10**400)]
    odd += [{**good, "new_tokens": bad} for bad in (None, float("inf"), {})]
    odd += [{**good, "accepted_by_source": bad} for bad in (3, [None], {"a": 1})]
    content = [json.dumps(record) for record in (good, *odd, good)]
    path.write_text("\n".join([*content, "[" * 100_000, '{"a":' * 100_000, "\0"]) + "\n")
    found = MetricsTail(path).read()
    assert found.odd == len(odd) + 3
    assert speeds(found) == [5, 5]
    assert found.pending.new_tokens == 10


MOMENTS = st.one_of(
    st.datetimes(timezones=st.just(UTC)).map(lambda at: at.isoformat(timespec="milliseconds")),
    st.datetimes(timezones=st.just(UTC)).map(lambda at: at.isoformat()),
    st.integers(0, 40).map(lambda s: f"2026-01-01T00:00:{s:02d}.000+00:00"),
    st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-01", "", "x", "2026-01-01T01:00:00+01:00"]),
)
COUNTS = st.one_of(st.integers(0, 50), st.integers(0, 2**40))
NUMBERS = ("new_tokens", "target_calls", "accepted_tokens", "finished", "texts", "entities")
PLAIN = st.fixed_dictionaries(
    {"kind": st.sampled_from(["steps", "steps", "shard", "begun"])},
    optional={
        "at": MOMENTS,
        "seconds": st.floats(0, 20) | st.integers(0, 9) | st.floats(0, 1e12),
        "wall_seconds": st.floats(0, 20),
        "active": COUNTS,
        "other": st.integers() | st.text(st.characters(codec="ascii"), max_size=5),
        "accepted_by_source": st.lists(COUNTS, max_size=8),
        **dict.fromkeys(NUMBERS, COUNTS),
    },
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
ODD = st.one_of(
    st.tuples(
        PLAIN,
        st.dictionaries(
            st.sampled_from(["kind", "at", "seconds", "active", "accepted_by_source", *NUMBERS]),
            SCALARS | st.lists(SCALARS, max_size=3) | st.just({"a": [[1]]}),
            max_size=2,
        ),
    ).map(lambda pair: json.dumps({**pair[0], **pair[1]})),
    st.sampled_from(
        ["", "{}", "{}{}", '{"kind": "steps", "seconds": 1} ', '{"kind":"steps","kind":"shard"}',
         '{"kind": "steps", "new_tokens": 1e2}', '{"kind": "steps", "new_tokens": -0}', "[", "\r",
         '{"kind": "steps", "x": [[[', "[" * 5000, '{"kind": "steps", "x": Inf, "seconds": 1}',
         '{"kind": "st\\u0065ps", "seconds": 1}', '{"kind": "steps", "seconds": 1e400}',
         '{"kind": "steps", "x": ' + "9" * 5000 + "}", '{"kind": "steps", "seconds": 4e9}',
         '{"kind": "steps", "new_tokens": 9007199254740991, "seconds": 4294967295}', "\0",
         '{"kind": "steps"\n"seconds": 1}', '{"kind": "steps", "a": "}\n{"}', "{\n}"]
    ),
    st.text(max_size=8),
)  # fmt: skip
LINES = st.lists(st.one_of(PLAIN.map(json.dumps), PLAIN.map(json.dumps), ODD), max_size=20)


def figures(progress: Progress) -> tuple[object, ...]:
    pending = progress.pending
    whole = (pending.seconds, pending.finished, pending.new_tokens, pending.counts)
    return progress.curves(), whole, pending.active, pending.at, progress.odd


def one_by_one(content: bytes, most: int) -> Progress:
    """What the records come to, each taken by itself."""
    found = Progress(most)
    for line in content.split(b"\n")[:-1]:
        found.take(rows_of(line + b"\n"))
    return found


def same(quick: Rows, slow: Rows) -> bool:
    names = ("kinds", "at", "active", "numbers", "odd")
    return all(np.array_equal(getattr(quick, n), getattr(slow, n)) for n in names)


@st.composite
def nearly_alike(draw: st.DrawFn) -> list[str]:
    """A line, and some that differ from it in a few letters, most of them digits."""
    line = draw(st.one_of(PLAIN.map(json.dumps), ODD))
    found = [line]
    for _ in range(draw(st.integers(0, 3))):
        letters = list(line)
        for place in draw(st.lists(st.integers(0, max(len(line) - 1, 0)), max_size=3)):
            letters[place : place + draw(st.integers(0, 1))] = draw(
                st.sampled_from('0123456789.-eE ,"{}[]:+')
            )
        found.append("".join(letters))
    return found


@pytest.mark.slow
@given(st.lists(nearly_alike(), max_size=4))
def test_lines_read_at_once_say_what_each_does_by_itself(groups: list[list[str]]) -> None:
    content = "".join(line + "\n" for lines in groups for line in lines)
    encoded = content.encode(errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_lines, "_FEW_LINES", 1)
        assert same(rows_of(encoded, few=0), rows_of(encoded, few=len(encoded)))


def test_what_jobs_write_is_read_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments of every day, and every kind of line that a job writes, need no other reader."""
    writer = RunWriter(tmp_path / "run")
    writer.finish()
    content = (tmp_path / "run" / "metrics.jsonl").read_bytes() * 20
    days = [datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC) + timedelta(n) for n in range(3000)]
    content += "".join(
        json.dumps({**steps(1.5, 5), "at": day.isoformat(timespec="milliseconds")}) + "\n"
        for day in days
    ).encode()
    with monkeypatch.context() as patch:
        patch.setattr(run_lines, "from_json", None)  # what the other reader would read
        found = rows_of(content, few=0)
    assert same(found, rows_of(content, few=len(content)))
    assert found.at[-len(days) :].tolist() == [day.timestamp() for day in days]


@pytest.mark.slow
@given(LINES, st.integers(2, 5), st.data())
def test_many_lines_at_once_come_to_what_each_does_by_itself(
    lines: list[str], most: int, data: st.DataObject
) -> None:
    content = "".join(line + "\n" for line in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=3)))
    whole = [content.rfind(b"\n", 0, cut) + 1 for cut in cuts]
    found = Progress(most)
    for start, end in itertools.pairwise([0, *whole, len(content)]):
        found.take(rows_of(content[start:end], few=0))
    assert figures(found) == figures(one_by_one(content, most))


@pytest.mark.slow
@given(st.lists(PLAIN, max_size=20), st.integers(2, 5))
def test_points_and_what_is_under_way_follow_their_definition(
    records: list[dict[str, Any]], most: int
) -> None:
    """The rules said record by record, over what the readers say of each."""
    stretches: list[int] = []
    pending, ended, told = 0, None, False
    for record in records:
        rows = rows_of(json.dumps(record).encode() + b"\n")
        if not len(rows):
            continue
        spent, at = int(rows.numbers[0, 0]), float(rows.at[0])
        if record["kind"] != "begun" and spent and (record["kind"] == "steps" or not told):
            stretches.append(spent)
        told = record["kind"] == "steps" if record["kind"] != "begun" else told
        if record["kind"] != "steps":
            pending, ended = 0, None
            continue
        follows = ended is None or abs(at - spent / 1e9 - ended) <= 2
        pending, ended = (pending if follows else 0) + spent, at
    found = progress_of(records, most)
    assert found.pending.seconds == pending / 1e9
    size = 1
    while -(-len(stretches) // size) > most:
        size *= 2
    points = [sum(stretches[i : i + size]) for i in range(0, len(stretches), size)]
    clock = [round(end, 3) for end in itertools.accumulate(point / 1e9 for point in points)]
    assert found.curves().seconds == clock


def test_curves_follow_steps_and_shards_without_steps() -> None:
    shard = {"kind": "shard", "wall_seconds": 2.0, "new_tokens": 100, "target_calls": 50}
    found = progress_of([steps(1, 40), steps(1, 60), shard, shard]).curves()
    assert found.seconds == [1.0, 2.0, 4.0]
    assert found.tokens_per_second == [40.0, 60.0, 50.0]
    assert found.tokens_per_call == [4.0, 6.0, 2.0]
    merged = progress_of([steps(1, 40), steps(3, 60), shard, shard], most=2).curves()
    assert merged.seconds == [4.0, 6.0]
    assert merged.tokens_per_second == [25.0, 50.0]
    assert progress_of([]).curves().seconds == []


def test_work_before_an_interruption_does_not_count_as_under_way() -> None:
    def ended(end: str, tokens: int) -> dict[str, Any]:
        return steps(5.0, tokens, at=f"2026-01-01T00:00:{end}+00:00")

    shard = {"kind": "shard", "at": "2026-01-01T00:00:01+00:00", "new_tokens": 999}
    records = [shard, ended("10", 1), ended("45", 20), ended("50", 300)]
    assert progress_of(records).pending.new_tokens == 320
    assert progress_of([*records, shard]).pending.new_tokens == 0


def test_a_finished_run_shows_its_summary(tmp_path: Path) -> None:
    path = RunWriter(tmp_path / "run", accept="relaxed").finish()
    summary = json.loads((path / "summary.json").read_text())
    run = read(path)
    assert run.state == "finished"
    assert run.records_done == run.records == 24
    for name in ("new_tokens", "target_calls", "accepted_tokens", "relaxed_tokens", "wall_seconds"):
        assert run.totals[name] == summary[name]
    for name in ("tokens_per_call", "acceptance_rate", "relaxed_share", "tokens_per_second"):
        assert run.rates[name] == summary[name]
    assert run.by_source == summary["accepted_by_source"]
    assert len(run.curves.seconds) == 6
    assert run.curves.seconds[-1] == pytest.approx(summary["wall_seconds"])
    assert run.settings["top_k"] == 2
    assert run.facts == {"model": "toy-lm", "device": "cpu", "dtype": "float32"}


def test_a_run_with_a_learned_drafter_names_it(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    assert "drafter" not in read(tmp_path / "run").settings
    prints = writer.manifest.fingerprints | {"drafter": "0123456789abcdef"}
    writer.folder.write_manifest(writer.manifest.model_copy(update={"fingerprints": prints}))
    assert read(tmp_path / "run").settings["drafter"] == "head 0123456789ab"


def test_the_shard_under_way_counts_while_the_run_is_running(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", records=40)
    assert read(tmp_path / "run").totals["new_tokens"] == 0
    writer.shard()
    writer.steps(3, finished=2)
    run = read(tmp_path / "run")
    assert run.state == "running"
    assert run.records_done == 10
    assert run.totals["new_tokens"] == 11 * TOKENS
    before = time.time() - 2 * QUIET_SECONDS
    for name in ("manifest.json", "metrics.jsonl"):
        os.utime(tmp_path / "run" / name, (before, before))
    run = read(tmp_path / "run")
    assert run.state == "quiet"
    assert run.totals["new_tokens"] == 8 * TOKENS  # what was under way is lost


def test_a_reader_follows_a_growing_run_and_one_that_starts_again(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    reader = RunReader(tmp_path / "run", "run")
    texts = []
    for _ in range(3):
        writer.shard()
        found = reader.read()
        assert found is not None
        texts.append(sum(g.texts for g in found.groups))
    assert texts == [8, 16, 24]
    writer.folder.clear()
    assert reader.read() is None
    RunWriter(tmp_path / "run").shard(5)
    found = reader.read()
    assert found is not None
    assert sum(g.texts for g in found.groups) == 5
    assert found.totals["new_tokens"] == 5 * TOKENS


def test_a_run_that_starts_again_is_noticed_whatever_its_files_sizes(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    writer.shard()
    reader = RunReader(tmp_path / "run", "run")
    before = reader.read()
    assert before is not None
    writer.folder.clear()
    again = RunWriter(tmp_path / "run", accept="relaxed")
    again.shard()
    again.manifest.shards[:] = writer.manifest.shards
    again.folder.write_manifest(again.manifest)
    after = reader.read()
    assert after is not None
    assert sum(g.relaxed_tokens for g in before.groups) == 0
    assert sum(g.relaxed_tokens for g in after.groups) > 0


def test_groups_and_their_pools(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool")
    path = RunWriter(tmp_path / "run", pool=pool).finish()
    run = read(path)
    assert [g.name for g in run.groups] == list(reversed(GROUPS))  # most accepted tokens first
    best = run.groups[0]
    assert (best.texts, best.new_tokens, best.accepted_tokens) == (8, 8 * TOKENS, 8 * 33)
    assert (best.from_pool, best.pool_bytes, best.per_mb) == (8 * 11, 4_000_000, 22.0)
    assert run.everyone is not None
    assert run.everyone.from_pool == run.by_source["all"]
    assert run.everyone.per_mb == pytest.approx(run.by_source["all"] / 10, abs=0.05)
    assert run.pool is not None
    assert (run.pool.texts, run.pool.hits, run.pool.by_length) == (50, 60, [0, 100, 200])


def test_a_real_pool_is_read_without_its_arrays(tmp_path: Path) -> None:
    pool = Pool("tokenizer")
    pool.add([(np.arange(3, 40, dtype=np.int32), "a"), (np.arange(3, 60, dtype=np.int32), "b")])
    pool.save(tmp_path / "pool")
    found = read_pool(tmp_path / "pool")
    assert found is not None
    assert (found.texts, found.tokens) == (2, 37 + 57)
    assert set(found.sizes) == {"a", "b"}
    size = (tmp_path / "pool" / "group-00001.safetensors").stat().st_size
    assert found.sizes["b"] == size
    assert read_pool(tmp_path) is None


def test_a_plain_run_of_the_same_job_is_the_baseline(tmp_path: Path) -> None:
    runs = [
        read(RunWriter(tmp_path / "plain", draft="none", seconds=0.03).finish()),
        read(RunWriter(tmp_path / "fast", seconds=0.01).finish()),
        read(RunWriter(tmp_path / "other", source="other input").finish()),
    ]
    plain, fast, other = with_baselines(runs)
    assert plain.baseline.kind == "self"
    assert plain.speedup is None
    assert (fast.baseline.kind, fast.baseline.name) == ("run", "plain")
    assert fast.speedup == pytest.approx(3.0)
    assert other.baseline.kind == "none"
    assert other.speedup is None


def test_the_best_plain_run_of_the_same_work_is_chosen(tmp_path: Path) -> None:
    runs = [
        read(RunWriter(tmp_path / "slow", draft="none", seconds=0.05).finish()),
        read(RunWriter(tmp_path / "best", draft="none", seconds=0.03).finish()),
        read(RunWriter(tmp_path / "sampled", draft="none", seconds=0.02, temperature=1.0).finish()),
        read(RunWriter(tmp_path / "fast", seconds=0.01).finish()),
    ]
    fast = with_baselines(runs)[-1]
    assert fast.baseline.name == "best"
    assert fast.speedup == pytest.approx(3.0)


def test_while_one_runs_rates_are_compared(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "fast", seconds=0.01)
    writer.shard()
    plain = RunWriter(tmp_path / "plain", draft="none", seconds=0.03).finish()
    fast, _ = with_baselines([read(tmp_path / "fast"), read(plain)])
    assert fast.speedup == pytest.approx(3.0)


def test_without_one_the_baseline_is_an_estimate_that_says_so(tmp_path: Path) -> None:
    costs = {"slots": 4, "rows": [1, 4, 16], "seconds": [0.010, 0.012, 0.020]}
    [run] = with_baselines([read(RunWriter(tmp_path / "run", cost_state=costs).finish())])
    assert run.baseline.kind == "estimate"
    assert "estimate" in run.baseline.words
    seconds = run.totals["prefill_seconds"] + 24 * TOKENS * 0.012 / 4
    assert run.baseline.tokens_per_second == pytest.approx(24 * TOKENS / seconds)
    assert run.speedup == pytest.approx(seconds / run.totals["wall_seconds"], rel=1e-3)


def test_a_run_that_kept_account_is_compared_as_its_own_last_lines_are(tmp_path: Path) -> None:
    costs = {"slots": 4, "rows": [1, 4, 16], "seconds": [0.010, 0.012, 0.020]}
    writer = RunWriter(tmp_path / "run", cost_state=costs)
    # Passes took ten times what the curve says: the machine was busy, and so it would have been.
    totals = writer.manifest.totals
    totals.verify_seconds, totals.prefill_seconds, totals.draft_seconds = 40.0, 1.0, 2.0
    totals.curve_seconds, totals.plain_seconds = 4.0, 6.0
    [run] = with_baselines([read(writer.finish())])
    own = writer.manifest.summary()["times_plain"]
    assert own > 1
    assert run.baseline.kind == "estimate"
    assert run.speedup == pytest.approx(own, abs=1e-3)
    assert run.baseline.seconds == pytest.approx(run.totals["wall_seconds"] * own)
