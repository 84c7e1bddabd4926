"""The job: what it writes, and that no interruption changes a byte of it."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draftrec.config import (
    AcceptConfig,
    DraftConfig,
    GenerateConfig,
    JobConfig,
    ModelConfig,
    RecordsConfig,
)
from draftrec.core import SOURCES
from draftrec.data.files import writers
from draftrec.errors import DraftrecError, Interrupted
from draftrec.jobs.knowledge import job
from draftrec.jobs.knowledge.job import JobSpec, run_job
from draftrec.jobs.knowledge.plan import lag_to_use
from draftrec.jobs.knowledge.shards import RunFolder
from draftrec.jobs.ledger import JobResult
from draftrec.models.prompting import ChatTemplate
from tests.fakes import EOS, FakeGenerator, FakePool, Killed
from tests.locks import held_elsewhere

DATA = ("part-*.parquet", "stats-*.parquet", "rejected.jsonl")


def write_rows(path: Path, count: int = 23) -> Path:
    """Records of which every seventh has no prompt and every eleventh one that is too long."""
    with path.open("w") as file:
        for i in range(count):
            prompt = None if i % 7 == 6 else "x" * 300 if i % 11 == 10 else f"about {i}"
            row = {"entity_id": f"u{i}", "prompt": prompt, "group": f"g{i % 2}" if i % 3 else None}
            file.write(json.dumps(row) + "\n")
    return path


def make_spec(folder: Path, output: str = "run", **options: Any) -> JobSpec:
    """A job over `folder/in.jsonl`, in shards of five records."""
    model = GenerateConfig(
        target=ModelConfig(model="fake", pass_=options.pop("pass_", "auto")),
        accept=AcceptConfig(
            **{n: options.pop(n) for n in AcceptConfig.model_fields if n in options}
        ),
        draft=DraftConfig(draft=options.pop("draft", "pool"), budget=options.pop("budget", 8)),
    )
    given = {n: options.pop(n) for n in RecordsConfig.model_fields if n in options}
    records = RecordsConfig(**given)
    about = {n: options.pop(n) for n in ("pool_lag",) if n in options}
    size = options.pop("shard_size", 5)
    config = JobConfig(generate=model, records=records, shard_size=size, **about)
    source = options.pop("input", folder / "in.jsonl")
    return JobSpec(config=config, input=str(source), output=folder / output, **options)


def do(spec: JobSpec, generator: FakeGenerator | None = None, **options: Any) -> JobResult:
    """Run a job with a generator that opens pools as the real one does."""

    def load(asked: JobSpec, cost_state: dict[str, Any] | None) -> FakeGenerator:
        made = generator or FakeGenerator(relaxed=spec.config.generate.accept.accept == "relaxed")
        if asked.config.generate.draft.draft != "pool":
            made.pool = None
        elif asked.pool:
            made.pool = FakePool.load(asked.pool)
        made.cost_state = cost_state or {"measured": 1}
        return made

    return run_job(spec, load=load, **options)


def data_of(folder: Path) -> dict[str, bytes]:
    """The run's data files, byte for byte."""
    return {p.name: p.read_bytes() for pattern in DATA for p in sorted(folder.glob(pattern))}


def forbidden(spec: JobSpec, cost_state: Any) -> FakeGenerator:
    raise AssertionError("no model is needed here")


def refusal(run: Callable[[], Any]) -> str:
    with pytest.raises(DraftrecError) as caught:
        run()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_texts_leave_in_input_order_with_the_contracts_columns(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(make_spec(tmp_path))
    parts = [pq.read_table(p) for p in sorted((tmp_path / "run").glob("part-*.parquet"))]
    assert [len(p) for p in parts] == [5, 4, 3, 5, 1]
    assert [(f.name, str(f.type)) for f in parts[0].schema] == [
        ("entity_id", "string"),
        ("group", "string"),
        ("text", "string"),
        ("token_ids", "list<element: int32>"),
        ("finish_reason", "string"),
        ("prompt_tokens", "int32"),
        ("new_tokens", "int32"),
    ]
    rows = [row for part in parts for row in part.to_pylist()]
    ids = [i for i in range(23) if i % 7 != 6 and i % 11 != 10]
    assert [row["entity_id"] for row in rows] == [f"u{i}" for i in ids]
    for i, row in zip(ids, rows, strict=True):
        assert row["group"] == (f"g{i % 2}" if i % 3 else None)
        assert row["new_tokens"] == len(row["token_ids"])
        assert row["text"] == "".join(chr(t) for t in row["token_ids"] if t != EOS)
        assert (row["finish_reason"] == "eos") == (row["token_ids"][-1] == EOS)
        assert row["prompt_tokens"] == len(f"about {i}")


def test_statistics_lie_beside_the_data_and_add_up_to_the_summary(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    summary = do(make_spec(tmp_path)).summary
    folder = tmp_path / "run"
    stats = [r for p in sorted(folder.glob("stats-*")) for r in pq.read_table(p).to_pylist()]
    parts = [r for p in sorted(folder.glob("part-*")) for r in pq.read_table(p).to_pylist()]
    assert [s["entity_id"] for s in stats] == [p["entity_id"] for p in parts]
    for name in ("target_calls", "drafted_tokens", "accepted_tokens", "relaxed_tokens"):
        assert summary[name] == sum(s[name] for s in stats)
    for source in SOURCES:
        total = sum(s[f"accepted_{source}"] for s in stats)
        assert summary["accepted_by_source"][source] == total
    assert summary["entities"] == len(parts)
    assert summary["rejected"] == 23 - len(parts)
    assert summary["new_tokens"] == sum(p["new_tokens"] for p in parts)
    assert summary["tokens_per_call"] == summary["new_tokens"] / summary["target_calls"]
    assert summary["acceptance_rate"] == summary["accepted_tokens"] / summary["drafted_tokens"]
    assert summary["verify_seconds"] == pytest.approx(0.001 * len(parts))
    assert summary["peak_memory_bytes"] > 1 << 20
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_the_summary_has_the_contracts_keys(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    counts = {"entities", "rejected", "new_tokens", "target_calls"}
    rates = {"tokens_per_call", "mean_accepted_tokens", "acceptance_rate", "relaxed_share"}
    seconds = {"wall_seconds", "draft_seconds", "verify_seconds", "prefill_seconds"}
    rest = {"tokens_per_second", "peak_memory_bytes", "device", "dtype", "model", "accept", "draft"}
    assert counts | rates | seconds | rest <= set(do(make_spec(tmp_path)).summary)


def test_rejected_records_are_listed_with_line_and_reason(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(make_spec(tmp_path))
    lines = (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()
    rejected = [json.loads(line) for line in lines]
    assert [r["entity_id"] for r in rejected] == ["u6", "u10", "u13", "u20", "u21"]
    assert [r["line"] for r in rejected] == [7, 11, 14, 21, 22]
    assert rejected[0]["reason"] == "prompt is null"
    assert rejected[1]["reason"] == (
        "the prompt has 300 tokens, the model's context takes at most 199"
    )


def test_a_job_of_rejected_records_only_still_finishes(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"entity_id": 1, "prompt": null}\n' * 1)
    spec = make_spec(tmp_path)
    assert do(spec).summary["entities"] == 0
    assert pq.read_table(tmp_path / "run" / "part-00000.parquet").num_rows == 0
    assert RunFolder(spec.output).texts(0) == []


def test_metrics_have_one_object_per_shard(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    summary = do(make_spec(tmp_path)).summary
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    shards = [m for m in map(json.loads, lines) if m["kind"] == "shard"]
    assert [m["shard"] for m in shards] == [0, 1, 2, 3, 4]
    assert sum(m["new_tokens"] for m in shards) == summary["new_tokens"]
    assert sum(m["wall_seconds"] for m in shards) == pytest.approx(summary["wall_seconds"])
    steps = [m for m in map(json.loads, lines) if m["kind"] == "steps"]
    assert sum(m["new_tokens"] for m in steps) == summary["new_tokens"]
    assert sum(m["drafted_tokens"] for m in steps) == summary["drafted_tokens"]


@pytest.mark.slow
def test_never_more_than_a_shard_is_held(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        write_rows(tmp_path / "in.jsonl", count)
        generator = FakeGenerator()
        tracemalloc.start()
        try:
            do(make_spec(tmp_path, f"run{count}", shard_size=50, draft="none"), generator)
            assert generator.largest_run <= 50
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)
    assert peak(4000) < peak(400) + 200_000


class Kill:
    """Ends the job at the n-th moment worth ending at: before a decode or at a forced write."""

    def __init__(self, moment: int) -> None:
        self.left = moment

    def tick(self, *_: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


def tear(folder: Path, lost: int) -> None:
    """What a crash of the machine leaves of the last things written."""
    for path in folder.glob(".journal-*"):
        os.truncate(path, max(0, path.stat().st_size - lost))


def run_killed(spec: JobSpec, moments: list[int], lost: int = 0) -> JobResult:
    """Run to the end through a kill at each of the moments, counted from the last restart; each
    takes the last bytes of the journal with it."""
    fsync = os.fsync
    relaxed = spec.config.generate.accept.accept == "relaxed"
    for moment in moments:
        kill = Kill(moment)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writers.os, "fsync", lambda fd, kill=kill: (kill.tick(), fsync(fd)))
            try:
                do(spec, FakeGenerator(relaxed=relaxed, on_request=kill.tick))
            except Killed:
                tear(spec.output, lost)
    return do(spec)


@pytest.mark.slow
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    moments=st.lists(st.integers(0, 60), max_size=6),
    accept=st.sampled_from(["strict", "relaxed"]),
    lost=st.sampled_from([0, 0, 1, 7, 400]),
)
def test_killed_jobs_end_with_the_bytes_of_an_unbroken_one(
    tmp_path_factory: pytest.TempPathFactory, moments: list[int], accept: str, lost: int
) -> None:
    folder = tmp_path_factory.mktemp("kill")
    write_rows(folder / "in.jsonl")
    whole = do(make_spec(folder, "whole", accept=accept)).summary
    broken = run_killed(make_spec(folder, "broken", accept=accept), moments, lost).summary
    assert data_of(folder / "broken") == data_of(folder / "whole")
    timed = ("seconds", "per_second", "peak_memory", "times_plain")
    assert {k: v for k, v in broken.items() if not any(t in k for t in timed)} == {
        k: v for k, v in whole.items() if not any(t in k for t in timed)
    }
    for path in (folder / "broken").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            json.loads(line)
    left = {p.name for p in (folder / "broken").iterdir()}
    assert not [name for name in left if name.endswith(".tmp") or name.startswith(".journal")]


def test_killed_jobs_resume_from_a_given_pool_and_save_what_grew(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    FakePool([([1, 2, 3], "g0")]).save(tmp_path / "warm")
    for name in ("whole", "broken"):
        options = {"pool": tmp_path / "warm", "save_pool": tmp_path / f"{name}-pool"}
        spec = make_spec(tmp_path, name, accept="relaxed", **options)
        run_killed(spec, [9, 9, 9] if name == "broken" else [])
    assert data_of(tmp_path / "broken") == data_of(tmp_path / "whole")
    pools = [FakePool.load(tmp_path / f"{name}-pool") for name in ("whole", "broken")]
    assert pools[0] == pools[1]
    assert len(pools[0]) == 19


def test_a_pool_saved_over_itself_grows_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "in.jsonl")
    FakePool([([1, 2, 3], "g0")]).save(tmp_path / "pool")
    spec = make_spec(tmp_path, pool=tmp_path / "pool", save_pool=tmp_path / "pool")

    def cut_off(self: RunFolder, summary: dict[str, Any]) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_summary", cut_off)
        with pytest.raises(Killed):
            do(spec)
    assert len(FakePool.load(tmp_path / "pool")) == 19
    assert do(spec).summary["entities"] == 18
    assert len(FakePool.load(tmp_path / "pool")) == 19


def test_interruption_keeps_finished_shards_and_the_same_command_goes_on(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(make_spec(tmp_path, "whole"))
    generator = FakeGenerator()
    spec = make_spec(tmp_path)
    with pytest.raises(Interrupted) as caught:
        do(spec, generator, should_stop=lambda: generator.decoded >= 7)
    assert (caught.value.progress.records_done, caught.value.kept) == (5, 2)
    assert not (tmp_path / "run" / "summary.json").exists()
    again = FakeGenerator()
    assert do(spec, again).summary["entities"] == 18
    assert again.decoded == 11
    assert data_of(tmp_path / "run") == data_of(tmp_path / "whole")
    assert not list((tmp_path / "run").glob(".journal*"))


def test_a_finished_job_run_again_writes_nothing_and_loads_no_model(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    spec = make_spec(tmp_path)
    first = do(spec)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in spec.output.iterdir()}
    again = run_job(spec, load=forbidden)
    assert again.summary == first.summary
    assert first.fresh
    assert not again.fresh
    after = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before}
    assert after == before


def test_other_settings_are_refused_by_name_and_leave_the_run_alone(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(make_spec(tmp_path))
    before = data_of(tmp_path / "run")
    write_rows(tmp_path / "other.jsonl", 22)
    (tmp_path / "groups.csv").write_text("entity_id,group\nu1,a\n")
    FakePool([([1], None)]).save(tmp_path / "pool")
    changes: dict[str, dict[str, Any]] = {
        "accept was strict, now relaxed": {"accept": "relaxed"},
        "budget was 8, now auto": {"budget": "auto"},
        "shard_size was 5, now 6": {"shard_size": 6},
        "limit was unset, now 9": {"limit": 9},
        "chat was unset, now False": {"chat": False},
        "input changed": {"input": tmp_path / "other.jsonl"},
        "groups added": {"groups": tmp_path / "groups.csv"},
        "pool added": {"pool": tmp_path / "pool"},
    }
    for words, options in changes.items():
        spec = make_spec(tmp_path, **options)
        message = refusal(lambda spec=spec: run_job(spec, load=forbidden))
        assert words in message
        assert "--overwrite" in message
    assert data_of(tmp_path / "run") == before


def test_another_model_of_the_same_name_is_refused_on_resume(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    generator = FakeGenerator()
    spec = make_spec(tmp_path)
    with pytest.raises(Interrupted):
        do(spec, generator, should_stop=lambda: generator.decoded >= 7)
    other = FakeGenerator(fingerprint={"model": "new", "tokenizer": "bytes"})
    assert "model changed" in refusal(lambda: do(spec, other))


def test_overwrite_removes_our_files_only_and_only_once_the_model_is_there(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(make_spec(tmp_path))
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "run" / "part-x.parquet").write_text("mine")
    before = data_of(tmp_path / "run")
    spec = make_spec(tmp_path, accept="relaxed", limit=4, overwrite=True)

    def broken(asked: JobSpec, cost_state: Any) -> FakeGenerator:
        raise DraftrecError("no weights")

    refusal(lambda: run_job(spec, load=broken))
    assert data_of(tmp_path / "run") == before
    assert do(spec).summary["entities"] == 4
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"notes.txt", "part-x.parquet", "part-00000.parquet"} <= names
    assert "part-00001.parquet" not in names


def test_a_run_without_a_finished_text_binds_nobody(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    with pytest.raises(Interrupted):
        do(make_spec(tmp_path), should_stop=lambda: True)
    assert do(make_spec(tmp_path, limit=4)).summary["entities"] == 4


def test_the_first_finished_text_binds_as_a_shard_does(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    generator = FakeGenerator()
    with pytest.raises(Interrupted) as caught:
        do(make_spec(tmp_path), generator, should_stop=lambda: generator.decoded >= 2)
    assert caught.value.kept == 2
    assert "limit was unset, now 4" in refusal(lambda: do(make_spec(tmp_path, limit=4)))
    other = FakeGenerator(fingerprint={"model": "new", "tokenizer": "bytes"})
    assert "model changed" in refusal(lambda: do(make_spec(tmp_path), other))
    assert do(make_spec(tmp_path, limit=4, overwrite=True)).summary["entities"] == 4
    assert not list((tmp_path / "run").glob(".journal*"))


def test_so_does_the_lag_that_it_was_written_with(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    generator = FakeGenerator(relaxed=True)
    spec = make_spec(tmp_path, accept="relaxed", pool_lag=0)
    with pytest.raises(Interrupted):
        do(spec, generator, should_stop=lambda: generator.decoded >= 2)
    assert lag_to_use(tmp_path / "run", 4, overwrite=False) == 0
    assert lag_to_use(tmp_path / "run", 4, overwrite=True) == 4


def test_the_cost_curve_is_measured_once_per_run(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    generator = FakeGenerator()
    spec = make_spec(tmp_path)
    seen = []
    with pytest.raises(Interrupted):
        do(spec, generator, should_stop=lambda: generator.decoded >= 7)

    def load(asked: JobSpec, cost_state: dict[str, Any] | None) -> FakeGenerator:
        seen.append(cost_state)
        return FakeGenerator(cost_state=cost_state)

    run_job(spec, load=load)
    assert seen == [{"measured": 1}]


def test_chat_templates_apply_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"entity_id": 1, "prompt": "hi"}\n')
    assert "no chat template" in refusal(lambda: do(make_spec(tmp_path, chat=True)))
    for chat, tokens in ((None, 15), (True, 15), (False, 2)):
        spec = make_spec(tmp_path, f"run-{chat}", chat=chat)
        do(spec, FakeGenerator(has_chat_template=True))
        part = pq.read_table(spec.output / "part-00000.parquet").to_pylist()
        assert part[0]["prompt_tokens"] == tokens


DATED = {"has_chat_template": True, "chat_template": ChatTemplate("a", dated=True)}


@pytest.mark.slow
def test_a_job_goes_on_with_the_date_on_which_it_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        day = 1

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2026, 1, cls.day, 23, 59)

    monkeypatch.setattr(job, "datetime", Clock)
    write_rows(tmp_path / "in.jsonl")
    whole, parted, later = (make_spec(tmp_path, name) for name in ("whole", "parted", "later"))
    do(whole, FakeGenerator(**DATED))
    generator = FakeGenerator(**DATED)
    with pytest.raises(Interrupted):
        do(parted, generator, should_stop=lambda: generator.decoded >= 7)
    Clock.day = 2
    do(parted, FakeGenerator(**DATED))
    do(later, FakeGenerator(**DATED))
    assert data_of(whole.output) == data_of(parted.output) != data_of(later.output)
    manifest = json.loads((parted.output / "manifest.json").read_text())
    assert manifest["chat_date"] == "2026-01-01T23:59:00"


def test_another_chat_template_is_another_run(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")

    def generator(template: str) -> FakeGenerator:
        return FakeGenerator(
            has_chat_template=True, chat_template=ChatTemplate(template, dated=False)
        )

    for chat in (None, False):
        spec, begun = make_spec(tmp_path, f"run-{chat}", chat=chat), generator("a")
        with pytest.raises(Interrupted):
            do(spec, begun, should_stop=lambda begun=begun: begun.decoded >= 7)
        if chat is None:
            assert "chat_template changed" in refusal(lambda s=spec: do(s, generator("b")))
        else:
            do(spec, generator("b"))  # it is not used


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    spec = make_spec(tmp_path)
    with held_elsewhere(spec.output, inside=True):
        assert "another process" in refusal(lambda: do(spec))
    do(spec)


def test_folders_with_other_peoples_parts_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "part-00000.parquet").write_text("not ours")
    assert "no manifest.json" in refusal(lambda: do(make_spec(tmp_path, overwrite=True)))
    (tmp_path / "run" / "manifest.json").write_text('{"format": "something else"}')
    assert "was not written by" in refusal(lambda: do(make_spec(tmp_path, overwrite=True)))
    assert (tmp_path / "run" / "part-00000.parquet").read_text() == "not ours"


def test_input_inside_the_output_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_rows(tmp_path / "run" / "in.jsonl")
    spec = make_spec(tmp_path, input=tmp_path / "run" / "in.jsonl")
    assert "lies in the output folder" in refusal(lambda: do(spec))


def test_a_lost_part_is_noticed_before_going_on(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(make_spec(tmp_path))
    (tmp_path / "run" / "part-00001.parquet").unlink()
    assert "part-00001.parquet is missing" in refusal(lambda: do(make_spec(tmp_path)))


def test_pools_that_cannot_be_kept_are_refused_before_the_work(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    (tmp_path / "busy").mkdir()
    spec = make_spec(tmp_path, save_pool=tmp_path / "busy")
    assert "is not a pool" in refusal(lambda: run_job(spec, load=forbidden))
    spec = make_spec(tmp_path, save_pool=tmp_path / "new", draft="none")
    assert "--draft pool" in refusal(lambda: run_job(spec, load=forbidden))
    spec = make_spec(tmp_path, pool=tmp_path / "nowhere")
    assert "is not a pool" in refusal(lambda: run_job(spec, load=forbidden))


def test_save_pool_for_a_finished_run_points_to_the_texts(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(make_spec(tmp_path))
    spec = make_spec(tmp_path, save_pool=tmp_path / "late")
    assert "pool build" in refusal(lambda: run_job(spec, load=forbidden))


def test_a_job_that_goes_on_knows_where_things_lie_now(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    generator = FakeGenerator()
    with pytest.raises(Interrupted):
        do(make_spec(tmp_path), generator, should_stop=lambda: generator.decoded >= 7)
    write_rows(tmp_path / "moved.jsonl")
    spec = make_spec(tmp_path, input=tmp_path / "moved.jsonl", save_pool=tmp_path / "pool")
    do(spec)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["paths"]["input"] == str(tmp_path / "moved.jsonl")
    assert not run_job(spec, load=forbidden).fresh  # its pool was kept


def test_records_that_come_while_a_job_runs_are_not_its(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(make_spec(tmp_path, "whole"))

    def more(decoded: int) -> None:
        with (tmp_path / "in.jsonl").open("a") as file:
            file.write('{"entity_id": "late", "prompt": "about"}\n' * (decoded < 3))

    do(make_spec(tmp_path), FakeGenerator(on_request=more))
    assert data_of(tmp_path / "run") == data_of(tmp_path / "whole")


def test_records_that_go_while_a_job_runs_are_missed(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(make_spec(tmp_path, "whole"))

    def cut(*_: Any) -> FakeGenerator:
        write_rows(tmp_path / "in.jsonl", 12)
        return FakeGenerator()

    spec = make_spec(tmp_path)
    assert "held 23 records when it was counted, and 12 now" in refusal(
        lambda: run_job(spec, load=cut)
    )
    write_rows(tmp_path / "in.jsonl")
    do(spec)
    assert data_of(tmp_path / "run") == data_of(tmp_path / "whole")


@pytest.mark.slow
def test_no_finished_text_is_written_twice(tmp_path: Path) -> None:
    """Not after any number of kills, each right before a text."""
    write_rows(tmp_path / "in.jsonl")
    for accept in ("strict", "relaxed"):
        spec = make_spec(tmp_path, accept, accept=accept, shard_size=12)
        decoded: list[int] = []
        for _ in range(40):
            generator = FakeGenerator(relaxed=accept == "relaxed", on_request=Kill(2).tick)
            try:
                do(spec, generator)
            except Killed:
                decoded.append(generator.decoded)
            else:
                break
        assert sum(decoded) + generator.decoded == 18
        assert max(decoded) == 2


def test_strict_texts_join_the_pool_when_they_are_finished_and_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    sizes: dict[str, list[int]] = {}
    for accept in ("strict", "relaxed"):
        pool, seen = FakePool(), sizes.setdefault(accept, [])
        look = lambda _, pool=pool, seen=seen: seen.append(len(pool))  # noqa: E731
        do(make_spec(tmp_path, accept, accept=accept), FakeGenerator(pool=pool, on_request=look))
        texts = [str(ids) for ids, _ in pool.texts]
        assert len(texts) == len(set(texts))
    assert sizes["strict"] == list(range(18))
    assert sizes["relaxed"] == [0] * 5 + [5] * 4 + [9] * 3 + [12] * 5 + [17]


def test_texts_of_an_interrupted_shard_are_drafted_from_at_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    spec = make_spec(tmp_path, shard_size=23)
    generator = FakeGenerator()
    with pytest.raises(Interrupted):
        do(spec, generator, should_stop=lambda: generator.decoded >= 7)
    seen: list[int] = []
    pool = FakePool()
    do(spec, FakeGenerator(pool=pool, on_request=lambda _: seen.append(len(pool))))
    assert seen == list(range(7, 18))


@pytest.mark.slow
def test_automatic_shards_grow_where_texts_wait_for_them(tmp_path: Path) -> None:
    """And are a matter of settings alone, so that a run goes on at the same boundaries."""

    def sizes(count: int, **options: Any) -> list[int]:
        config = make_spec(tmp_path, shard_size="auto", **options).config
        return [config.records_of_shard(i) for i in range(count)]

    assert sizes(8, accept="relaxed") == [32, 64, 128, 256, 512, 1024, 1024, 1024]
    assert sizes(2) == sizes(2, accept="relaxed", draft="none") == [1024, 1024]
    lagging = make_spec(tmp_path, shard_size="auto", accept="relaxed").config
    lagging = lagging.model_copy(update={"pool_lag": 2})
    assert [lagging.records_of_shard(i) for i in range(7)] == [32, 32, 32, 64, 64, 64, 128]
    write_rows(tmp_path / "in.jsonl", 150)
    for name, moments in (("whole", []), ("broken", [40, 40, 60])):
        run_killed(make_spec(tmp_path, name, accept="relaxed", shard_size="auto"), moments)
    shards = json.loads((tmp_path / "broken" / "manifest.json").read_text())["shards"]
    assert [s["records"] for s in shards] == [32, 64, 54]
    assert data_of(tmp_path / "broken") == data_of(tmp_path / "whole")


def test_prompts_are_kept_on_request_as_the_model_is_sent_them(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    spec = make_spec(tmp_path)
    records = spec.config.records.model_copy(update={"keep_prompts": True})
    kept = JobSpec(
        config=spec.config.model_copy(update={"records": records}),
        input=spec.input,
        output=tmp_path / "kept",
    )
    for each in (spec, kept):
        do(each, FakeGenerator(has_chat_template=True))
    for path in sorted(spec.output.glob("part-*.parquet")):
        plain, more = pq.read_table(path), pq.read_table(kept.output / path.name)
        assert more.drop_columns("prompt").equals(plain)
        assert str(more.schema.field("prompt").type) == "string"
        ids = [i.removeprefix("u") for i in more["entity_id"].to_pylist()]
        assert more["prompt"].to_pylist() == [f"<user>about {i}</user>" for i in ids]
