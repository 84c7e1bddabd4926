"""The baseline without a model: a dry run on planted habits."""

from __future__ import annotations

import json
from pathlib import Path

import item_baseline
import numpy as np
import pytest
from common import RESULTS

from draftrec.config import RetrieverSettings
from draftrec.evaluate import item_item


def test_the_retriever_s_defaults_are_what_was_found() -> None:
    found = json.loads((RESULTS / "item-baseline.json").read_text())["tuned"]
    assert RetrieverSettings(**found) == RetrieverSettings()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Users who go through 40 items in order; item 39 is what everybody takes now and then."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(60):
        start = int(random.integers(0, 30))
        items = [*range(start, start + 6), 39]
        rows.append({"user": user, "items": items, "part": "train"})
        if user % 2:
            rows.append({"user": user, "items": [start + 6], "part": "valid"})
            rows.append({"user": user, "items": [start + 7, start + 8], "part": "test"})
    sids = [{"item": item, "sid": [f"a{item % 4}", f"b{item}"]} for item in range(40)]
    for name, lines in (("sequences", rows), ("sids", sids)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return [f"--{n}={tmp_path / n}.jsonl" for n in ("sequences", "sids")]


@pytest.mark.slow
def test_planted_habits_are_found(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {name: options[:2] for name, options in item_item.SPACE.items()}
    monkeypatch.setattr(item_item, "SPACE", short)
    monkeypatch.setattr(item_baseline, "SPACE", short)
    item_baseline.main([*files, "--draws", "3", "--rounds", "1", "--results", str(tmp_path)])
    kept = json.loads((tmp_path / "item-baseline.json").read_text())
    assert kept["valid"]["tuned"]["ndcg@20"] >= kept["valid"]["untuned"]["ndcg@20"]
    assert kept["tuned"].keys() == kept["settings"]["space"].keys()
    test = kept["test"]
    assert len(test) == 5
    popular, tuned = (
        test[name]["without seen items"]["multi"]["recall@5"]
        for name in ("popularity", "item-item, tuned")
    )
    assert tuned > popular
    assert test["popularity"]["all items"]["single"]["definition"] == "single"
    reached = [kept["reach"][name]["targets_known"] for name in ("train", "train_and_valid")]
    assert 0.8 < reached[0] < reached[1] < 1
    assert kept["speed"]["interactions"] == 60 * 7
    keep = ["--keep", str(tmp_path / "item-baseline.json"), "--rounds", "1"]
    item_baseline.main([*files, *keep, "--results", str(tmp_path / "again")])
    again = json.loads((tmp_path / "again" / "item-baseline.json").read_text())
    assert (again["tuned"], again["test"]) == (kept["tuned"], kept["test"])
