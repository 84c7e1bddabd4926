"""The memory of second thoughts: what it drafts, and that ways do not learn from one another."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import recycling

from draftrec.engine.tree import check_tree, make_tree
from tests.train.drafter.worlds import make_target, write_records, write_run


def test_a_memory_drafts_what_came_last_after_each_token() -> None:
    memory = recycling.Memory(50)
    memory.learn(np.array([3, 3, 10], np.int32), np.array([range(8), range(10, 18), range(20, 28)]))
    tree = memory.tree(3, 16)
    check_tree(tree)
    assert tree.token_ids.tolist() == [*range(10, 18), 20, 21, 22, 23]
    assert tree.parents.tolist() == [-1] * 8 + [0] * 4
    assert len(memory.tree(3, 5)) == 5
    assert len(memory.tree(4, 16)) == 0


def test_a_union_has_every_path_once() -> None:
    both = recycling.union(
        make_tree([1, 2, 3], [-1, 0, -1]), make_tree([3, 1, 2, 4], [-1, -1, 1, 0])
    )
    assert both.token_ids.tolist() == [1, 2, 3, 4]
    assert both.parents.tolist() == [-1, 0, -1, 2]


@pytest.mark.slow
def test_dry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_target(tmp_path / "target", counts=True)
    write_run(tmp_path / "run", target, write_records(tmp_path / "records.jsonl", 20))
    line = [str(tmp_path / "run"), "--model", str(target), "--results", str(tmp_path)]
    sizes = ["--pool", "10", "--remembered", "4", "--texts", "6", "--nodes", "4", "4"]
    monkeypatch.setattr("sys.argv", ["recycling.py", *line, *sizes])
    recycling.main()
    found = json.loads((tmp_path / "recycling.json").read_text())["tokens_per_call"]["4"]
    # The target of this world chooses by the last token alone, which a memory knows after once.
    assert found["memory, 4 nodes"] > 1.2
    assert found["both, 4 nodes each"] >= max(found["pool, 4 nodes"], found["memory, 4 nodes"])
