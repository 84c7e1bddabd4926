"""The memory benchmark: it sees what a child process takes, and runs real jobs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import memory
import pytest
from jobs import environment, write_records
from stand_in import save_tiny_model


@pytest.mark.slow
def test_peak_is_the_childs(tmp_path: Path) -> None:
    # From a small process, as the benchmark is one: a forked child begins with its parent's peak.
    folder = Path(memory.__file__).parent
    script = (
        "import sys; from pathlib import Path; import memory; "
        "print(memory.peak_of([sys.executable, '-c', sys.argv[1]], Path(sys.argv[2]))[0])"
    )
    command = [sys.executable, "-c", script, "x = b'1' * (1 << 29)", str(tmp_path / "log")]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, check=True)
    assert 1 << 29 < int(done.stdout) < 3 << 28


def test_a_child_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 4"):
        memory.peak_of([sys.executable, "-c", "raise SystemExit(4)"], tmp_path / "log")


def test_records_are_prompts_and_some_have_none(tmp_path: Path) -> None:
    path = write_records(tmp_path / "records.jsonl", 10, side="item", reject_every=5)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [i for i, row in enumerate(rows) if row["prompt"] is None] == [4, 9]
    assert len({row["entity_id"] for row in rows}) == 10


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    few = ["--sizes", "4", "12", "--shard-size", "4", "--max-new-tokens", "3"]
    assert memory.main([*few, "--model", str(model), "--results", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "memory.json").read_text())
    assert set(result["peak_resident_bytes"]) == {"4", "12"}
    assert 0.5 < result["ratio"] < 2
    assert [run["texts"] for run in result["runs"]] == [4, 12]
