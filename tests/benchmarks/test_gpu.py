"""The accelerator's benchmark, dry: tiny shapes on the CPU, the bookshop's texts."""

from __future__ import annotations

import json
from pathlib import Path

import gpu
import numpy as np
import pytest
from gpu_replay import longest_for
from gpu_steps import segments_for
from recorded import make_trace, pick_tokenizer, read_rows
from stand_in import train_tokenizer, world_texts


@pytest.mark.slow
def test_dry_run_writes_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "BATCHES", (1, 2))
    monkeypatch.setattr(gpu, "ROWS", (1, 2, 8))
    arguments = ["--tiny", "--device", "cpu", "--shapes", "tiny-untied", "--results", str(tmp_path)]
    gpu.main([*arguments, "--texts", str(tmp_path / "none")])
    result = json.loads((tmp_path / "gpu-cpu-dry.json").read_text())
    assert result == json.loads(capsys.readouterr().out.splitlines()[-1])
    model = result["models"]["tiny-untied"]
    plain = model["plain_step"]["batch_2"]
    assert plain["step_ms"]["median"] > 0
    assert {k: s["n"] for k, s in plain["first_sight_ms"].items()} == {"plain": 12, "drafted": 12}
    assert len(model["pass_against_rows"]["batch_1_ms"]) == 3
    cell = model["replay"]["fictional_kar_user"]["batch_2"]
    assert cell["plain"]["tokens"] == cell["drafted"]["tokens"]
    assert cell["drafted"]["tokens_per_call"] >= cell["plain"]["tokens_per_call"]
    assert result["left_out"] == []


def test_late_parts_are_left_out_and_named() -> None:
    clock = gpu.Clock(limit=0.0)
    assert not clock.allows("replay", until=0.5)
    assert clock.left_out == ["replay"]


def test_replayed_texts_stay_out_of_the_pool() -> None:
    sources = read_rows(None, 24, seed=0)
    words = train_tokenizer(world_texts(20), 400)
    trace = make_trace("x", sources["fictional_kar_user"], words, 4)
    assert len(trace.requests) == 4
    assert len(trace.pool) == 20
    assert all(t[-1] == words.eos_token_id for t in trace.texts.values())
    assert set(trace.texts) == {r.entity_id for r in trace.requests}


def test_a_tokenizer_is_trained_where_none_is_given() -> None:
    rows = {"other": [{"text": text} for text in world_texts(8)]}
    words = pick_tokenizer(None, rows, 300)
    assert len(words) <= 300
    assert words.eos_token_id == 2


def test_rows_are_spread_over_the_sequences() -> None:
    segments = segments_for(slots=4, rows=10, context=7, vocabulary=50)
    assert [s.rows for s in segments] == [3, 3, 2, 2]
    assert sum(s.rows for s in segments_for(4, 3, 7, 50)) == 3
    assert all(np.all(s.pending < 50) for s in segments)


def test_a_cell_keeps_to_its_time() -> None:
    assert longest_for(seconds=6.0, step=0.02, batch=1) == 100
    assert longest_for(seconds=6.0, step=0.02, batch=8) == 300
    assert longest_for(seconds=60.0, step=0.001, batch=8) == 512
