"""A job's metrics agree with the summary that the same run writes."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from draftrec.cli.main import run
from draftrec.config import AcceptConfig, DraftConfig, GenerateConfig, JobConfig, ModelConfig
from draftrec.core import SOURCES
from draftrec.demo.shop import demo_model_path
from draftrec.jobs.knowledge.job import JobSpec, Watcher, run_job
from draftrec.jobs.knowledge.manifest import Manifest
from draftrec.jobs.knowledge.worker import load_generator
from draftrec.jobs.ledger import JobResult
from draftrec.serve.metrics import MeasuredJob, ServiceMetrics
from tests.serve.test_metrics import scraped


def write_records(path: Path, count: int) -> Path:
    lines = (
        json.dumps(
            {
                "entity_id": f"u{i}",
                "prompt": f"A user's rated books, oldest first:\n- The Iron Orbit: {1 + i % 5}\n",
                "group": f"g{i % 2}",
            }
        )
        for i in range(count)
    )
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_a_relaxed_job_counts_what_its_summary_says(tmp_path: Path) -> None:
    model = GenerateConfig(
        target=ModelConfig(model=str(demo_model_path())),
        accept=AcceptConfig(accept="relaxed"),
        draft=DraftConfig(draft="pool", budget=8),
    )
    source = write_records(tmp_path / "in.jsonl", 12)
    spec = JobSpec(JobConfig(generate=model, shard_size=5), str(source), tmp_path / "run")
    watcher = MeasuredJob(ServiceMetrics(), Watcher())
    result: JobResult = run_job(spec, watcher, load=watcher.loader(load_generator))
    found, summary = scraped(watcher.metrics), result.summary
    totals = {"texts": summary["entities"]}
    for name in ("new", "drafted", "accepted", "relaxed"):
        totals[f"{name}_tokens"] = summary[f"{name}_tokens"]
    for name in ("target_calls", "draft_calls"):
        totals[name] = summary[name]
    assert min(totals.values()) > 0
    assert {name: found[f"draftrec_{name}_total"] for name in totals} == totals
    for source_name in SOURCES:
        name = f"draftrec_source_accepted_tokens_total{{source={source_name}}}"
        assert found.get(name, 0) == summary["accepted_by_source"][source_name]
    for phase in ("draft", "verify", "prefill"):
        seconds = found[f"draftrec_phase_seconds_total{{phase={phase}}}"]
        assert seconds == pytest.approx(summary[f"{phase}_seconds"])
    assert 0 < found["draftrec_kv_tokens"] < found["draftrec_kv_capacity_tokens"]
    assert found["draftrec_kv_capacity_bytes"] > found["draftrec_kv_capacity_tokens"]
    assert found["draftrec_depth_accepted_tokens_total{depth=1}"] > 0
    groups = [found[f"draftrec_group_accepted_tokens_total{{group=g{i}}}"] for i in range(2)]
    assert sum(groups) == summary["accepted_tokens"]
    assert found["draftrec_pool_texts"] > 0
    assert found["draftrec_pool_bytes"] > 0
    assert 0 < found["draftrec_pool_hit_ratio"] <= 1


@pytest.mark.slow
def test_generate_serves_metrics_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies: list[str] = []
    shard = MeasuredJob.shard

    def look(self: MeasuredJob, manifest: Manifest) -> None:
        shard(self, manifest)
        told = capsys.readouterr().err
        address = next(word for word in told.split() if word.startswith("http://127.0.0.1:"))
        with urllib.request.urlopen(address, timeout=10) as answer:
            bodies.append(answer.read().decode())

    monkeypatch.setattr(MeasuredJob, "shard", look)
    source = write_records(tmp_path / "in.jsonl", 2)
    assert run(arguments(source, "--metrics-port", "0")) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert f"draftrec_new_tokens_total {summary['new_tokens']}.0" in bodies[0]


def test_a_port_that_is_taken_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_records(tmp_path / "in.jsonl", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert run(arguments(source, "--metrics-port", port)) == 2
    assert f"port {port}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def arguments(source: Path, *more: str) -> list[Any]:
    model, output = str(demo_model_path()), str(source.parent / "run")
    return ["generate", str(source), "--model", model, "--output", output, "--budget", "8", *more]
