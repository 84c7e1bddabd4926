"""A job on a cluster writes what the same job writes in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from draftrec.config import (
    AcceptConfig,
    DraftConfig,
    GenerateConfig,
    JobConfig,
    ModelConfig,
)
from draftrec.data.records import Entity
from draftrec.errors import DraftrecError, Interrupted
from draftrec.jobs.knowledge.job import Watcher, run_job
from draftrec.jobs.knowledge.plan import JobSpec, lag_to_use
from draftrec.jobs.knowledge.worker import ShardTask, ShardWork
from draftrec.jobs.ledger import JobResult
from draftrec.jobs.ray import ClusterSpec, Share, on_ray
from draftrec.models.prompting import PromptForm
from draftrec.pool.store import Pool
from tests.jobs.ray.works import LoadFake, fake_pool

pytestmark = pytest.mark.slow

DATA = ("part-*.parquet", "stats-*.parquet", "rejected.jsonl")
WORKERS = ClusterSpec(workers=2)


def make_spec(folder: Path, output: str, lag: Any, accept: str = "strict", **more: Any) -> JobSpec:
    source = folder / "in.jsonl"
    if not source.exists():
        rows = [
            {"entity_id": f"u{i}", "prompt": None if i == 8 else f"about {i}", "group": f"g{i % 2}"}
            for i in range(32)
        ]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draft = DraftConfig(draft=more.pop("draft", "pool"), budget=8)
    n = more.pop("n", 1)
    rule = AcceptConfig(accept=accept, n=n, temperature=1.0 if n > 1 else 0.0)
    generate = GenerateConfig(target=ModelConfig(model="fake"), accept=rule, draft=draft)
    config = JobConfig(generate=generate, shard_size=4, pool_lag=lag)
    return JobSpec(config=config, input=str(source), output=folder / output, **more)


def data_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for pattern in DATA for p in sorted(folder.glob(pattern))}


def in_one_process(spec: JobSpec, *, relaxed: bool = False) -> JobResult:
    return run_job(spec, load=LoadFake(relaxed))


def on_cluster(spec: JobSpec, load: LoadFake, **options: Any) -> tuple[JobResult, list[str]]:
    notes: list[str] = []
    start = on_ray(WORKERS, notes.append)
    return run_job(spec, start=start, load=load, given=fake_pool, **options), notes


@pytest.mark.usefixtures("share")
@pytest.mark.parametrize("accept", ["strict", "relaxed"])
def test_the_files_are_those_of_a_local_job_with_the_same_lag(tmp_path: Path, accept: str) -> None:
    relaxed = accept == "relaxed"
    here, there = (make_spec(tmp_path, name, 3, accept) for name in ("here", "there"))
    expected = in_one_process(here, relaxed=relaxed).summary
    found = on_cluster(there, LoadFake(relaxed))[0].summary
    assert data_of(tmp_path / "there") == data_of(tmp_path / "here")
    counted = ("entities", "rejected", "new_tokens", "target_calls", "accepted_by_source")
    assert {k: found[k] for k in counted} == {k: expected[k] for k in counted}
    assert found["verify_seconds"] == pytest.approx(0.001 * found["entities"])
    steps = [json.loads(x) for x in (tmp_path / "there" / "metrics.jsonl").read_text().splitlines()]
    assert sum(s["finished"] for s in steps if s["kind"] == "steps") == found["entities"]


@pytest.mark.usefixtures("share")
def test_several_texts_of_each_record_are_those_of_a_local_job(tmp_path: Path) -> None:
    expected = in_one_process(make_spec(tmp_path, "here", 3, n=3)).summary
    found = on_cluster(make_spec(tmp_path, "there", 3, n=3), LoadFake())[0].summary
    assert data_of(tmp_path / "there") == data_of(tmp_path / "here")
    assert (found["entities"], found["texts"], found["rejected"]) == (31, 93, 1)
    assert found["new_tokens"] == expected["new_tokens"]


@pytest.mark.usefixtures("share")
def test_strict_texts_draft_from_whatever_is_finished(tmp_path: Path) -> None:
    in_one_process(make_spec(tmp_path, "here", "auto"))
    in_one_process(make_spec(tmp_path, "lag0", 0))
    assert data_of(tmp_path / "lag0") == data_of(tmp_path / "here")
    on_cluster(make_spec(tmp_path, "there", "auto"), LoadFake())
    assert data_of(tmp_path / "there") == data_of(tmp_path / "here")  # a fake's drafts are its own


def test_relaxed_texts_depend_on_the_lag_and_strict_ones_do_not(tmp_path: Path) -> None:
    for accept in ("strict", "relaxed"):
        for lag in (0, 3):
            spec = make_spec(tmp_path, f"{accept}{lag}", lag, accept)
            in_one_process(spec, relaxed=accept == "relaxed")
    assert data_of(tmp_path / "strict0") == data_of(tmp_path / "strict3")
    assert data_of(tmp_path / "relaxed0") != data_of(tmp_path / "relaxed3")


@pytest.mark.usefixtures("share")
@pytest.mark.parametrize("kill_at", [0, 5, 9])
def test_a_killed_worker_changes_no_byte(tmp_path: Path, kill_at: int) -> None:
    in_one_process(make_spec(tmp_path, "here", 3, "relaxed"), relaxed=True)
    load = LoadFake(relaxed=True, kill_at=kill_at, marker=tmp_path / "killed")
    _, notes = on_cluster(make_spec(tmp_path, "there", 3, "relaxed"), load)
    assert data_of(tmp_path / "there") == data_of(tmp_path / "here")
    assert [n for n in notes if "was lost" in n]


def test_a_lost_workers_shard_drafts_from_no_more_than_it_would_have(tmp_path: Path) -> None:
    """Also when it goes to a worker that has learned more meanwhile."""
    spec = make_spec(tmp_path, "here", 3, "relaxed")
    in_one_process(spec, relaxed=True)
    records = [Entity(f"v{i}", f"about {i}", None, "in", i) for i in range(4)]
    early, late = (ShardTask(i, records, i - 3, form=PromptForm(), keep=False) for i in (4, 7))

    def written(work: Any, task: ShardTask) -> list[list[int]]:
        for journal in (tmp_path / "here").glob(".journal-*"):
            journal.unlink()  # or the texts of another worker would be taken over
        return [text.generation.token_ids.tolist() for text in work(task).texts]

    made = ShardWork(spec, LoadFake(relaxed=True), fake_pool)
    expected = written(made(), early)
    worker = made()
    assert written(worker, late) != expected
    assert written(worker, early) == expected
    lenient = ShardWork(make_spec(tmp_path, "here", "auto"), LoadFake(relaxed=True), fake_pool)()
    written(lenient, late)  # strict: what it has learned, and its own texts, stay
    assert written(lenient, early) != expected


class StopAfter(Watcher):
    """Asks the job to stop after so many shards."""

    def __init__(self, shards: int) -> None:
        self._left = shards

    def shard(self, manifest: Any) -> None:
        self._left -= 1

    def __call__(self) -> bool:
        return self._left <= 0


@pytest.mark.usefixtures("share")
@pytest.mark.parametrize("resume", ["cluster", "local"])
def test_an_interrupted_job_goes_on_on_either_engine(tmp_path: Path, resume: str) -> None:
    in_one_process(make_spec(tmp_path, "here", 3, "relaxed"), relaxed=True)
    spec = make_spec(tmp_path, "there", 3, "relaxed")
    stop = StopAfter(4)
    with pytest.raises(Interrupted) as caught:
        on_cluster(spec, LoadFake(relaxed=True), watcher=stop, should_stop=stop)
    assert 4 <= len(caught.value.progress.shards) < 8
    if resume == "local":
        in_one_process(spec, relaxed=True)
    else:
        on_cluster(spec, LoadFake(relaxed=True))
    assert data_of(tmp_path / "there") == data_of(tmp_path / "here")


@pytest.mark.usefixtures("share")
def test_the_saved_pool_holds_all_texts(tmp_path: Path) -> None:
    summary = on_cluster(make_spec(tmp_path, "there", 3, save_pool=tmp_path / "pool"), LoadFake())[
        0
    ].summary
    pool = Pool.load(tmp_path / "pool", "bytes")
    assert len(pool) == summary["entities"] == 31


@pytest.mark.usefixtures("share")
def test_few_shards_under_way_are_said(tmp_path: Path) -> None:
    _, notes = on_cluster(make_spec(tmp_path, "there", 0), LoadFake())
    assert [n for n in notes if "only 1 workers have work" in n]


def test_a_worker_elsewhere_must_see_the_output(share: Share, tmp_path: Path) -> None:
    with pytest.raises(DraftrecError, match="storage that all nodes"):
        ShardWork(make_spec(tmp_path, "nowhere", 0), LoadFake(), fake_pool, alone=False)()


def test_a_run_goes_on_with_the_lag_that_its_texts_depend_on(tmp_path: Path) -> None:
    assert lag_to_use(tmp_path / "new", 8, overwrite=False) == 8
    in_one_process(make_spec(tmp_path, "strict", "auto"))
    assert lag_to_use(tmp_path / "strict", 8, overwrite=False) == 8
    in_one_process(make_spec(tmp_path, "relaxed", 2, "relaxed"))
    assert lag_to_use(tmp_path / "relaxed", 8, overwrite=False) == 2
    assert lag_to_use(tmp_path / "relaxed", 8, overwrite=True) == 8
    with pytest.raises(DraftrecError, match="pool_lag was 2, now 8"):
        in_one_process(make_spec(tmp_path, "relaxed", 8, "relaxed"))
    assert not in_one_process(make_spec(tmp_path, "strict", 8)).fresh
