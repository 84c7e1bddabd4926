"""The benchmark of blends with an item model on tiny models: planted habits are found, and its
table is made."""

from __future__ import annotations

import json
from pathlib import Path

import blend_items as blend
import genrec_tables
import pytest

from tests.jobs.recommend.worlds import make_world, save_item_model, write_habits


@pytest.mark.slow
def test_habits_that_item_item_sees_are_blended_in(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    model = save_item_model(world, tmp_path / "items")
    write_habits(world)
    line = [
            "--target", str(world.target), "--sequences", str(world.sequences), "--sids",
            str(world.sids), "--candidates", "8", "--batch", "4", "--check", "12", "--results",
            str(tmp_path / "results"), "--newer", str(world.target),
            "--item-model", str(model), "--newer-item-model", str(model),
        ]  # fmt: skip
    blend.main(line)
    found = json.loads((tmp_path / "results" / "blend-items-beauty.json").read_text())
    assert found["valid"]["users"] == found["test"]["train"]["users"] == 30
    test = found["test"]["train, item-item to train and valid"]
    ways, gain = test["ways"], test["gains"]["all three over target"]
    assert list(ways) == [*blend.ALONE, *blend.BLENDS]
    assert ways["all three"]["recall@20"] - ways["target"]["recall@20"] == pytest.approx(
        gain["recall@20"], abs=1e-5
    )
    assert gain["recall@20"] > 5 * gain["recall@20_error"] > 0
    weights = found["weights"]
    assert weights["target and item-item"][1] == 0
    assert sum(weights["item-item and item model"]) == pytest.approx(1)
    valid = {name: way["recall@20"] for name, way in found["valid"]["ways"].items()}
    best = valid[", ".join(f"{w:g}" for w in weights["all three"])]
    assert best == max(value for name, value in valid.items() if "alone" not in name)
    older = found["test"]["train"]["ways"]
    assert ways["item-item"]["recall@20"] >= older["item-item"]["recall@20"]
    assert (ways["target"], ways["item model"]) == (older["target"], older["item model"])
    assert found["test"]["train and valid"] == test  # the same models
    assert found["strict"]["same_lists"] == found["strict"]["users"] == 12
    text = genrec_tables.blend_items(found)
    assert f"share {weights['all three'][0]:g}" in text
    assert f"{ways['all three']['recall@10']:.4f}" in text
    kept = str(tmp_path / "results" / "blend-items-beauty.json")
    blend.main([*line, "--keep", kept, "--results", str(tmp_path / "again")])
    again = json.loads((tmp_path / "again" / "blend-items-beauty.json").read_text())
    assert again["valid"].pop("chosen_at_commit") == found["machine"]["commit"]
    assert {**again, "machine": found["machine"]} == found
