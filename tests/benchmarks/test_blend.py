"""The benchmark of blends on a tiny model: planted habits are found, and its table is made."""

from __future__ import annotations

import json
from pathlib import Path

import blend
import genrec_tables
import pytest

from tests.jobs.recommend.worlds import make_world, write_habits


@pytest.mark.slow
def test_habits_that_item_item_sees_are_blended_in(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    write_habits(world)
    line = [
            "--target", str(world.target), "--sequences", str(world.sequences), "--sids",
            str(world.sids), "--candidates", "8", "--batch", "4", "--check", "12", "--results",
            str(tmp_path / "results"), "--newer", str(world.target),
            "--wide", "30",
        ]  # fmt: skip
    blend.main(line)
    found = json.loads((tmp_path / "results" / "blend-beauty.json").read_text())
    assert found["valid"]["users"] == found["test"]["train, both"]["users"] == 30
    test = found["test"]["train, item-item to train and valid"]
    ways, gain = test["ways"], test["gains"]["blend over target"]
    assert ways["blend"]["recall@20"] - ways["target"]["recall@20"] == pytest.approx(
        gain["recall@20"], abs=1e-5
    )
    assert gain["recall@20"] > 5 * gain["recall@20_error"] > 0
    older = found["test"]["train, both"]["ways"]
    assert ways["item-item"]["recall@20"] >= older["item-item"]["recall@20"]
    assert ways["target"] == older["target"]
    assert found["test"]["train and valid, both"] == test  # the same target
    assert found["strict"]["same_lists"] == found["strict"]["users"] == 12
    text = genrec_tables.blend(found)
    assert f"({found['weight']:g})" in text
    assert f"{ways['blend']['recall@10']:.4f}" in text
    kept = str(tmp_path / "results" / "blend-beauty.json")
    blend.main([*line, "--keep", kept, "--results", str(tmp_path / "again")])
    again = json.loads((tmp_path / "again" / "blend-beauty.json").read_text())
    assert again["valid"].pop("chosen_at_commit") == found["machine"]["commit"]
    assert {**again, "machine": found["machine"]} == found
