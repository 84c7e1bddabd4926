"""A job on a cluster whose workers draft with a learned drafter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from draftrec.config import BatchConfig, DraftConfig, GenerateConfig, JobConfig, ModelConfig
from draftrec.core import HEAD, SOURCES
from draftrec.jobs.knowledge.generator import Generator
from draftrec.jobs.knowledge.job import run_job
from draftrec.jobs.knowledge.plan import JobSpec
from draftrec.jobs.ray import ClusterSpec, on_ray
from tests.models import zoo
from tests.models.folders import save, save_head, word

pytestmark = pytest.mark.slow


def parts_of(folder: Path) -> dict[str, bytes]:
    """The texts. What was drafted of them depends on what else a worker has written before."""
    return {p.name: p.read_bytes() for p in sorted(folder.glob("part-*.parquet"))}


@pytest.mark.usefixtures("share")
def test_workers_find_it_and_write_what_a_local_job_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(zoo.build("llama"), tmp_path / "llama")
    made = Generator.from_pretrained(model, device="cpu", draft="none")
    save_head(tmp_path / "drafter", made.target.model.config, made.fingerprint)
    rows = [
        {"entity_id": f"e{i}", "prompt": " ".join(word(j) for j in range(5 + 7 * i, 14 + 7 * i))}
        for i in range(8)
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)  # workers are elsewhere

    def job(output: str, drafter: str | None, **more: Any) -> dict[str, Any]:
        generate = GenerateConfig(
            target=ModelConfig(model="llama", drafter=drafter, device="cpu"),
            draft=DraftConfig(budget=8),
            batch=BatchConfig(batch_size=2, max_new_tokens=16),
        )
        config = JobConfig(generate=generate, shard_size=2, pool_lag=2)
        spec = JobSpec(config=config, input=str(source), output=tmp_path / output)
        return run_job(spec, **more).summary

    here = job("here", "drafter")
    there = job("there", "drafter", start=on_ray(ClusterSpec(workers=2), lambda note: None))
    assert len(parts_of(tmp_path / "here")) == 4
    assert parts_of(tmp_path / "there") == parts_of(tmp_path / "here")
    assert here["accepted_by_source"][SOURCES[HEAD]] > 0
    assert there["accepted_by_source"][SOURCES[HEAD]] > 0
