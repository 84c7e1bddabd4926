"""The benchmark of speculative beams runs on tiny models, and its baselines agree with ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import beam_tables
import genrec
import grown
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.jobs.recommend.worlds import make_world


@pytest.mark.slow
def test_every_engine_finds_the_plain_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path, users=10)
    line = [
        "genrec.py", "--target", str(world.target), "--draft", f"own={world.draft}",
        "--sequences", str(world.sequences), "--sids", str(world.sids), "-k", "1", "4",
        "--draft-beams", "8", "--widths", "4,9", "--batch", "4", "--timed", "6", "--rounds", "1",
        "--latency", "3",
        "--results", str(tmp_path / "results"),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", line)
    genrec.main()
    found = json.loads((tmp_path / "results" / "genrec-beauty.json").read_text())
    assert found["users"] == 9
    assert found["users_without_history_left_out"] == 1
    exact = ["plain", "strict items", "auto items", "strict own", "strict own + items",
             "auto own + items", "strict own + items N=4/9"]  # fmt: skip
    for k in ("1", "4"):
        for name in exact:
            assert found["whole"][k][name]["agreement"]["exact_match_rate"] == 1.0
            assert found["whole"][k][name]["drafted"] > 0 or not name.startswith("strict")
        for name in [*exact, "hf_prefix_fn", "hf_trie_mask"]:
            assert found["timed"][k][name]["agreement"]["exact_match_rate"] == 1.0
            assert found["timed"][k][name]["speedup"]["plain"]["median"] > 0
        assert found["timed"][k]["relaxed own"]["invalid_rate"] == 0.0
        assert set(found["latency"][k]["auto"]) == {"new", "returning"}
    assert found["parameters"]["own"] < found["parameters"]["target"]
    assert "A user alone" in beam_tables.genrec_beauty(found)


@pytest.mark.parametrize("tied", [True, False])
def test_a_grown_model_says_what_the_small_one_says(tied: bool) -> None:  # noqa: FBT001
    torch.manual_seed(1)
    small = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
            num_key_value_heads=3, intermediate_size=40, tie_word_embeddings=tied,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for weight in small.parameters():
            weight.mul_(4.0 if weight.ndim > 1 else 1.3)
    large = grown.grow(small, 40, 4, 64, 8, 4)
    assert grown.check(small, large) < 1e-4
    shapes = {tuple(p.shape) for p in large.parameters()}
    assert {(64, 40), (40, 64), (32, 40), (50, 40)} <= shapes
    with pytest.raises(ValueError, match="no room"):
        grown.grow(small, 40, 1, 64, 8, 4)
