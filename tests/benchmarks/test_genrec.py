"""The benchmark of speculative beams runs on tiny models, and its baselines agree with ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import genrec
import pytest

from tests.jobs.recommend.worlds import make_world


@pytest.mark.slow
def test_every_engine_finds_the_plain_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, users=10)
    line = [
        "genrec.py", "--target", str(world.target), "--draft", f"own={world.draft}",
        "--sequences", str(world.sequences), "--sids", str(world.sids), "-k", "1", "4",
        "--draft-beams", "8", "--batch", "4", "--timed", "6", "--rounds", "1",
        "--results", str(tmp_path / "results"),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", line)
    genrec.main()
    found = json.loads((tmp_path / "results" / "genrec-beauty.json").read_text())
    assert found["users"] == 9
    assert found["users_without_history_left_out"] == 1
    exact = ["plain", "strict items", "auto items", "strict own", "strict own + items",
             "auto own + items"]  # fmt: skip
    for k in ("1", "4"):
        for name in exact:
            assert found["whole"][k][name]["agreement"]["exact_match_rate"] == 1.0
        for name in [*exact, "hf_prefix_fn", "hf_trie_mask"]:
            assert found["timed"][k][name]["agreement"]["exact_match_rate"] == 1.0
            assert found["timed"][k][name]["speedup"]["plain"]["median"] > 0
        assert found["timed"][k]["relaxed own"]["invalid_rate"] == 0.0
    assert found["parameters"]["own"] < found["parameters"]["target"]
