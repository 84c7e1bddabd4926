"""The benchmark of prompts: what it counts is what jobs compute, and a dry run to its result."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import prompts
import pytest
import tables

from draftrec.demo.shop import demo_model_path
from draftrec.models import loading


@pytest.mark.slow
def test_a_job_computes_hardly_more_rows_than_any_order_could() -> None:
    tokenizer = loading.load_tokenizer(demo_model_path())
    found = {
        name: prompts.counted(requests, 4, 0)
        for name, requests in prompts.workloads(tokenizer, 24, 0)
        if name in ("kar_user", "four_questions_each", "instructions_first", "instructions_last")
    }
    for each in found.values():
        assert each["least"] <= each["computed"] <= each["computed_as_they_come"] <= each["rows"]
        assert each["computed"] <= 1.1 * each["least"]
    asked = found["four_questions_each"]
    assert asked["computed"] < 0.75 * asked["computed_as_they_come"]
    first, last = (found[f"instructions_{place}"] for place in ("first", "last"))
    assert first["computed"] < 0.8 * last["computed"]


@pytest.mark.slow
def test_a_dry_run_writes_a_result_with_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["prompts.py", "--records", "8", "--slots", "2", "--texts", "4", "--rounds", "1"]
    line += ["--max-new-tokens", "6", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", line)
    prompts.main()
    result = json.loads((tmp_path / "prompts.json").read_text())
    for way in ("plain", "drafted"):
        parts = result["shares"][way]
        assert 0.0 < sum(parts[n]["median"] for n in ("prompts", "verifying", "drafting")) <= 1.0
    page = tables.render(tmp_path)
    assert "| four_questions_each | 8 |" in page
    assert "| drafted |" in page
