"""The benchmark of structured output, dry: the shipped model on a few records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import structured
from jsonschema import Draft202012Validator

from draftrec.demo.shop import demo_model_path


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    few = ["--users", "3", "--items", "2", "--batch", "2", "--max-new-tokens", "200"]
    short = ["--sample", "1", "--steps", "3", "--rounds", "1", "--results", str(tmp_path)]
    assert structured.main(["--model", str(demo_model_path()), *few, *short]) == 0
    result = json.loads((tmp_path / "structured.json").read_text())
    assert result["texts"] == 5
    assert 0 < result["ended"] == result["valid_of_ended"]
    for side in result["sides"].values():
        assert side["sample"]["equal_to_plain"] == 1
        assert side["share_by_source"]["grammar"] > 0.02
        assert 0 < side["masks"]["share_of_verification"] < 1
    assert result["step"]["1"]["ratio"]["n"] == 1


def test_faults_are_named() -> None:
    validator = Draft202012Validator({"type": "object", "required": ["a"]})
    assert structured._fault('{"a": 1', validator) == "not JSON"
    assert structured._fault("{}", validator) == "required at $"
    assert structured._fault('{"a": 1}', validator) is None
