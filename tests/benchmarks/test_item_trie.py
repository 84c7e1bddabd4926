"""The item trie benchmark: a dry run to its result."""

from __future__ import annotations

import json
from pathlib import Path

import item_trie
import numpy as np
import pytest


def test_codes_of_different_levels_are_different_tokens() -> None:
    rows = item_trie.catalogue(5000, [4, 8, 16], 0)
    assert rows.dtype == np.int32
    assert [(c.min(), c.max()) for c in rows.T] == [(1000, 1003), (1004, 1011), (1012, 1027)]


@pytest.mark.slow
def test_a_small_trie_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    item_trie.main(["--tiny", "--vocabulary", "5000", "--results", str(tmp_path)])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    kept = json.loads((tmp_path / "item-trie.json").read_text())
    assert last["steps"] == kept["steps"]
    assert kept["settings"]["items"] == 3000
    assert kept["build_seconds"]["n"] == 2
    assert kept["distinct_tuples"] == 3000
    assert len(kept["steps"]) == len(kept["dictionary"]["steps"]) == 4
    assert kept["steps"]["0"]["mean_children"] == 256
    for step in kept["steps"].values():
        assert step["children_us"]["median"] > 0
        assert step["mask_us"]["median"] > 0
    assert kept["filters"]["deny_us"]["n"] == 3
