"""A dry run of the benchmark of steps, on the shipped model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_steps_are_measured(tmp_path: Path) -> None:
    model = ROOT / "src" / "draftrec" / "assets" / "demo-lm"
    line = [
        sys.executable, "benchmarks/steps.py", "--model", str(model), "--no-random", "--batch", "2",
        "--context", "20", "--rounds", "2", "--results", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "steps.json").read_text())
    cells = found["models"]["demo-lm"]
    assert set(cells["batch_2_plain"]) == {"transformers", "packed", "by_hand"}
    assert cells["batch_2_drafts"]["by_hand"]["ms"]["n"] == 2
