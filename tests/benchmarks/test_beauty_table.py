"""The data table: every figure of a catalogue small enough to count by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import beauty_table
import pytest

SIDS = {
    0: ["a1", "b1", "c1", "d1"],
    1: ["a1", "b1", "c1", "d2"],
    2: ["a1", "b2", "c1", "d1"],
    3: ["a2", "b1", "c2", "d1"],
    4: ["a2", "b1", "c2", "d1"],
}
ROWS: list[dict[str, Any]] = [
    {"user": 1, "items": [0, 1, 2], "part": "train"},
    {"user": 1, "items": [3], "part": "valid"},
    {"user": 1, "items": [0, 4], "part": "test"},
    {"user": 2, "items": [2, 0], "part": "train"},
    {"user": 2, "items": [3], "part": "test"},
    {"user": 3, "items": [1], "part": "train"},
    {"user": 3, "items": [], "part": "test"},
]
BY_HAND = {
    "users": 3,
    "items": 5,
    "interactions": 10,
    "density": 10 / 15,
    "train interactions": 6,
    "valid interactions": 1,
    "test interactions": 3,
    "train share, %": 60,
    "valid share, %": 10,
    "test share, %": 30,
    "users with valid items": 1,
    "users with test items": 2,
    "train examples": 2,
    "train examples with sub-sequences": 3,
    "test targets per user": 1.5,
    "mean history": 3,  # four items of user 1, two of user 2
    "items absent from train": 2,
    "distinct codes, level 1": 2,
    "distinct codes, level 2": 2,
    "distinct codes, level 3": 2,
    "distinct codes, level 4": 2,
    "new tokens": 8,
    "unique tuples": 4,
    "colliding items": 2,
    "most items of one tuple": 2,
    "trie edges": 2 + 3 + 3 + 4,
    "mean branching, level 1": 2,
    "mean branching, level 2": 1.5,
    "mean branching, level 3": 1,
    "mean branching, level 4": 4 / 3,
    "items whose last token is forced, %": 60,  # items 2, 3 and 4
}


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    sids = [{"item": item, "sid": sid} for item, sid in SIDS.items()]
    sequences = lines(tmp_path / "sequences.jsonl", ROWS)
    return ["--sequences", sequences, "--sids", lines(tmp_path / "sids.jsonl", sids)]


def test_every_figure_is_the_one_counted_by_hand(files: list[str]) -> None:
    found = beauty_table.figures(Path(files[1]), Path(files[3]))
    assert found == pytest.approx(BY_HAND)
    assert found.keys() == beauty_table.REFERENCE.keys()


def test_figures_agree_when_they_round_to_the_reference() -> None:
    ours = {name: value for name, (value, _) in beauty_table.REFERENCE.items()}
    found = beauty_table.compare({**ours, "density": 5.953e-4, "mean history": 7.36})
    assert (found["compared"], found["agree"]) == (len(ours), len(ours) - 1)
    assert found["figures"]["mean history"] == {"reference": 7.3, "ours": 7.36, "agrees": False}


def test_the_script_writes_both_numbers(files: list[str], tmp_path: Path) -> None:
    beauty_table.main([*files, "--results", str(tmp_path)])
    kept = json.loads((tmp_path / "beauty-table.json").read_text())
    assert kept["figures"]["users"] == {"reference": 19_383, "ours": 3, "agrees": False}
