"""The benchmark of blends on a tiny model: planted habits are found, and its table is made."""

from __future__ import annotations

import json
from pathlib import Path

import blend
import genrec_tables
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.jobs.recommend.worlds import make_world


@pytest.mark.slow
def test_habits_that_item_item_sees_are_blended_in(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    rows = []
    for user in range(30):
        start = 10 + int(np.random.default_rng(user).integers(0, 50))
        items = {"train": range(start, start + 6), "valid": [start + 6], "test": [start + 7]}
        rows += [{"user": user, "items": list(i), "part": p} for p, i in items.items()]
    pq.write_table(pa.Table.from_pylist(rows), world.sequences)
    blend.main(
        [
            "--target", str(world.target), "--sequences", str(world.sequences), "--sids",
            str(world.sids), "--candidates", "8", "--batch", "4", "--check", "12", "--results",
            str(tmp_path / "results"),
        ]
    )  # fmt: skip
    found = json.loads((tmp_path / "results" / "blend-beauty.json").read_text())
    assert found["valid"]["users"] == found["test"]["users"] == 30
    ways, gain = found["test"]["ways"], found["test"]["gains"]["blend over target"]
    assert ways["blend"]["recall@10"] - ways["target"]["recall@10"] == pytest.approx(
        gain["recall@10"], abs=1e-5
    )
    assert gain["recall@10"] > 5 * gain["recall@10_error"] > 0
    assert ways["item-item"]["recall@20"] >= ways["item-item, fitted to train"]["recall@20"]
    assert found["strict"]["same_lists"] == found["strict"]["users"] == 12
    text = genrec_tables.blend(found)
    assert f"({found['weight']:g})" in text
    assert f"{ways['blend']['recall@10']:.4f}" in text
