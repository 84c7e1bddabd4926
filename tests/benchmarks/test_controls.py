"""The benchmark of controls, dry: one architecture, short texts."""

from __future__ import annotations

import json
from pathlib import Path

import controls
import job_tables
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.demo.shop import demo_model_path


@pytest.mark.slow
def test_exactness_counts_differences(tmp_path: Path) -> None:
    argv = ["--part", "exactness", "--architectures", "llama", "--tiny-tokens", "24"]
    assert controls.main([*argv, "--results", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "controls-exactness.json").read_text())
    assert result["different"] == 0
    assert result["texts"] == 4 * 4 * len(controls.SETTINGS)
    assert all(r["accepted_draft_tokens"] for r in result["architectures"]["llama"].values())
    assert "| repetition penalty | 16 | 0 |" in job_tables.controls_exactness(result)


@pytest.mark.slow
def test_costs_of_every_setting(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([
        {"task": "t", "split": "heldout", "entity_id": str(i), "prompt": f"Reader {i} likes"}
        for i in range(3)
    ]), tmp_path / "prompts.parquet")  # fmt: skip
    small = ["--texts", "2", "--slots", "2", "--new-tokens", "3", "--budgets", "0", "--rounds", "1"]
    model = ["--model", str(demo_model_path()), "--prompts", str(tmp_path / "prompts.parquet")]
    assert controls.main(["--part", "costs", *model, *small, "--results", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "controls-costs.json").read_text())
    assert set(result["per_pass"]["budget 0"]) == set(controls.COSTS)
    assert all(r["passes"] > 0 for r in result["per_pass"]["budget 0"].values())
    assert job_tables.controls_costs(result).count("\n| ") == 2 + len(controls.COSTS)
