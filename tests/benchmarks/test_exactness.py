"""The exactness benchmark, dry: a tiny random model on the bookshop's prompts."""

from __future__ import annotations

import json
from pathlib import Path

import exactness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tables
import torch
from bookshop.world import stream_records
from stand_in import save_tiny_model
from transformers import AutoModelForCausalLM

from draftrec.core import Counts, Generation, Request
from draftrec.engine.passes.frozen import FrozenRunner


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {
            "task": ("a", "b")[i % 2],
            "entity_id": record["entity_id"],
            "prompt": f"{record['title']} is about\n",
            "split": "train" if i < 8 else "heldout",
        }
        for i, record in enumerate(stream_records("item", 16))
    ]
    path = tmp_path_factory.mktemp("data") / "prompts.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.slow
def test_dry_run(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrozenRunner, "backend", "eager")  # traced, and run as it is
    arguments = ["--model", str(model), "--prompts", str(prompts), "--results", str(tmp_path)]
    few = ["--limit", "5", "--warm", "2", "--batch", "1", "3", "--max-new-tokens", "12"]
    ways = ["--passes", "auto", "frozen"]
    assert exactness.main([*arguments, *few, *ways, "--budget", "6"]) == 0
    result = json.loads((tmp_path / "exactness.json").read_text())
    assert result["pool_texts"] == 4
    for batch in ("1", "3"):
        for found in (result["batch"], result["passes"]["frozen"]):
            assert found[batch]["identical"] == 5
            assert found[batch]["drafted_tokens"] > 0


def test_a_difference_is_named(model: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    requests = [Request(name, np.array([1, 40], np.int32)) for name in ("same", "other")]
    expected = {"same": [5, 6], "other": [5, 6, 7]}
    done = [
        Generation(name, np.array(ids, np.int32), "length", 2, Counts())
        for name, ids in {"same": [5, 6], "other": [5, 9, 7]}.items()
    ]
    report = exactness.compare(loaded, requests, expected, done)
    assert (report["identical"], report["different"]) == (1, ["other"])
    first = report["first_difference"]
    assert (first["entity"], first["position"]) == ("other", 1)
    assert (first["expected"], first["found"]) == ([6], [9])
    assert first["logit_gap"] >= 0


def test_a_text_that_is_cut_short_differs(model: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = exactness.first_difference(loaded, np.array([1, 40], np.int32), [5, 6, 7], [5, 6])
    assert (found["position"], found["expected"], found["found"]) == (2, [7], [])


def test_tasks_take_turns(prompts: Path) -> None:
    rows = exactness.read_prompts(prompts, "heldout", 3)
    assert [row["task"] for row in rows] == ["a", "b"] * 3


@pytest.mark.slow
def test_bits_dry(model: Path, tmp_path: Path) -> None:
    few = ["--limit", "3", "--batch", "1", "3", "--max-new-tokens", "6", "--budget", "4", "auto"]
    more = ["--timed", "2", "--rounds", "1", "--model", str(model), "--results", str(tmp_path)]
    for part in ("bits", "bits-cost"):
        assert exactness.main(["--part", part, *few, *more]) == 0
    found = json.loads((tmp_path / "exactness-bits.json").read_text())["models"][model.name]
    assert found.keys() == {"float32", "bfloat16"}
    for of_dtype in found.values():
        assert of_dtype["promised"]
        assert len(of_dtype["exact"]) == 8
        assert {r["equal"] for r in of_dtype["exact"].values()} == {3}
        assert of_dtype["ordinary"].keys() == {
            "strict auto, batch 1", "plain, batch 3", "strict auto, batch 3"
        }  # fmt: skip
    costs = json.loads((tmp_path / "exactness-bits-cost.json").read_text())["models"][model.name]
    assert costs["bfloat16"]["batch_3"]["exact_over_ordinary"]["plain"]["median"] > 0
    table = tables.render(tmp_path)
    assert table.count("| 8 | 3 of 3 (") == 2
