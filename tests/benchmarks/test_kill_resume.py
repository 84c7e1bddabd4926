"""The kill-and-resume benchmark: finds what a careless job does wrong, and nothing in ours."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import kill_resume
import pytest
from kill_resume import Job
from stand_in import save_tiny_model

from draftrec.cli import main

# A job of six shards that resumes; a careless one appends what it did before to the next shard.
FAKE = """
import json, sys, time
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
out, careless = Path(sys.argv[1]), sys.argv[2] == "careless"
out.mkdir(exist_ok=True)
manifest = out / "manifest.json"
state = json.loads(manifest.read_text()) if manifest.exists() else {"shards": []}
resumed = bool(state["shards"])
def put(path, write):
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    time.sleep(0.003)
    temporary.replace(path)
manifest.exists() or put(manifest, lambda p: p.write_text(json.dumps(state)))
(out / "rejected.jsonl").write_text(json.dumps({"entity_id": "bad"}) + chr(10))
for i in range(len(state["shards"]), 6):
    time.sleep(0.05)
    ids = [f"e{i}"] * (2 if careless and resumed else 1)
    for name in ("part", "stats"):
        put(out / f"{name}-{i:05d}.parquet",
            lambda p: pq.write_table(pa.table({"entity_id": ids}), p))
    state["shards"].append(i)
    state["finished"] = i == 5
    put(manifest, lambda p: p.write_text(json.dumps(state)))
"""


def fake_job(folder: Path, kind: str) -> Job:
    return Job([sys.executable, "-c", FAKE, str(folder), kind], folder, folder.with_suffix(".log"))


def records(folder: Path) -> Path:
    path = folder / "records.jsonl"
    names = ["e0", "bad", *(f"e{i}" for i in range(1, 6))]
    path.write_text("".join(json.dumps({"entity_id": n}) + "\n" for n in names))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["careful", "careless"])
def test_torment_tells_careful_from_careless(tmp_path: Path, kind: str) -> None:
    alone, killed = fake_job(tmp_path / "alone", kind), fake_job(tmp_path / "killed", kind)
    alone.undisturbed()
    assert 0 < alone.startup < alone.seconds
    killed.startup, killed.seconds = alone.startup, alone.seconds
    expected = kill_resume.outcome(alone.output)
    report = kill_resume.torment(killed, 5, random.Random(0), expected)
    assert report["kills"] == len(report["history"]) == 5
    complete = kill_resume.check_complete(kill_resume.outcome(killed.output), records(tmp_path))
    if kind == "careful":
        assert report["differences"] == []
        assert complete["in_order"]
        assert complete["finished"]
        assert (complete["texts"], complete["rejected"]) == (6, 1)
    else:
        assert "parts" in report["differences"]


def test_duplicates_and_missing_ids_are_counted(tmp_path: Path) -> None:
    result = {
        "ids": ["e0", "e0", "e1", "e2", "e3"], "stats_ids": [],
        "rejected": ['{"entity_id": "bad"}'], "finished": True, "leavings": [],
    }  # fmt: skip
    report = kill_resume.check_complete(result, records(tmp_path))
    assert (report["duplicates"], report["missing"], report["in_order"]) == (1, 2, False)


def test_a_job_that_fails_is_no_success(tmp_path: Path) -> None:
    job = Job([sys.executable, "-c", "raise SystemExit('no')"], tmp_path, tmp_path / "log")
    with pytest.raises(kill_resume.UnexpectedExitError, match="no"):
        job.undisturbed()


def undisturbed(job: Job) -> None:
    """The command in this process: one that is killed alone needs a process of its own."""
    began = time.perf_counter()
    code = main.run(job.arguments[3:])
    job.startup = job.seconds = time.perf_counter() - began
    job.check(code)


@pytest.mark.slow
def test_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "undisturbed", undisturbed)
    monkeypatch.setattr(kill_resume, "KINDS", ("writing",))
    model = save_tiny_model(tmp_path / "model")
    few = ["--records", "12", "--shard-size", "4", "--max-new-tokens", "4", "--kills", "1"]
    where = ["--model", str(model), "--results", str(tmp_path), "--only", "relaxed_budget_12"]
    assert kill_resume.main([*few, *where]) == 0
    job = json.loads((tmp_path / "kill-resume.json").read_text())["jobs"]["relaxed_budget_12"]
    assert job["byte_identical"]
    assert job["data_files"] == 3
    assert job["by_kind"] == {"writing": 1}
