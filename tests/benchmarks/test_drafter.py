"""The drafter benchmark on a toy target, and its plan beside transformers' own count."""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import drafter
import drafter_tables
import live
import numpy as np
import pytest
import torch
from knowledge_live import Asked
from transformers import AutoModelForCausalLM, LlamaConfig

from draftrec.core import Request
from draftrec.train.drafter.fit import fit_drafter
from tests.train.drafter.worlds import drafter_spec, make_target, write_records, write_run


def test_the_plan_counts_what_the_target_has() -> None:
    found = drafter.plan(vocabulary=8192, levels=4)["models"]["Llama-2-7B"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig())  # its defaults are that model's
    read = {n: p.numel() for n, p in model.named_parameters() if "embed" not in n and p.ndim > 1}
    assert found["target_bytes"] == 2 * sum(read.values())
    layer = sum(size for name, size in read.items() if ".layers.0." in name)
    rows = 4096 * (2 * 4096 + 8192)  # where it joins two inputs, and the draft tokens
    assert found["level_bytes"] == pytest.approx(2 * (layer + rows), rel=1e-4)  # but for norms


class SilentPeer:
    """Ends each text at once."""

    modules = ("json",)
    about = {"version": "silent 1", "weights": "none", "cache": "none"}  # noqa: RUF012

    def __init__(self, model: Any, folder: Path) -> None: ...

    def write(self, prompts: Seq[Any], asked: Asked) -> list[list[int]]:
        assert asked.repetition_penalty == 1.1
        return [[min(asked.ends)] for _ in prompts]

    def close(self) -> None: ...


class MissingPeer(SilentPeer):
    modules = ("no_such_engine",)


@pytest.mark.slow
def test_measure_dry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = make_target(tmp_path / "target", counts=True)
    records = write_records(tmp_path / "records.jsonl", 20)
    work = drafter.Work(tmp_path, "item")
    write_run(work.run, target, records)
    for texts in (8, 16):
        fit_drafter(drafter_spec(target, [work.run], work.head(texts), limit=texts))
    rng = np.random.default_rng(5)
    asked = [Request(f"r{i}", rng.integers(3, 97, 6).astype(np.int32), key=i) for i in range(4)]
    monkeypatch.setattr(drafter, "requests_of", lambda *_: asked)
    few = ["--texts", "8", "16", "--reported", "4", "--rounds", "1", "--batch", "1", "2"]
    more = ["--max-new-tokens", "8", "--budgets", "6", "auto", "--dtype", "float32"]
    line = ["measure", "--model", str(target), "--work", str(tmp_path), "--name", "toy"]
    monkeypatch.setattr("sys.argv", ["drafter.py", *line, *few, *more, "--results", str(tmp_path)])
    drafter.main()
    found = json.loads((tmp_path / "drafter-toy.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    assert len(found["cells"]) == 4
    for budgets in found["cells"].values():
        for ways in budgets.values():
            assert {w["identical_to_plain"] for w in ways.values()} == {4}
            assert ways["plain"]["tokens_per_call"] == 1
    first = found["cells"]["temperature 0.0, batch 1"]["budget 6"]
    assert set(first) == {"plain", "pool-8", "both-8", "pool-16", "both-16", "head-16"}
    assert first["head-16"]["share_of_tokens"]["head"] > 0
    table = drafter_tables.drafter(found)
    assert table.count("| 4 of 4 |") == sum(
        len(ways) for budgets in found["cells"].values() for ways in budgets.values()
    )
    assert "| 16 texts |" in table

    monkeypatch.setattr(live, "requests_of", lambda *_: asked)
    monkeypatch.setattr(live, "PEERS", {"missing": MissingPeer, "silent": SilentPeer})
    few = ["--texts", "16", "--prompts", "2", "--rounds", "1", "--batch", "1", "2"]
    more = ["--max-new-tokens", "8", "--dtype", "float32", "--results", str(tmp_path)]
    line = ["--model", str(target), "--work", str(tmp_path), "--side", "item"]
    monkeypatch.setattr("sys.argv", ["live.py", *line, *few, *more])
    live.main()
    found = json.loads((tmp_path / "live-target-item.json").read_text())
    greedy, sampled = (found["live"][f"{kind}_batch_1"] for kind in ("greedy", "sampled"))
    assert set(greedy) - set(sampled) == {"relaxed"}
    assert "hf_prompt_lookup" not in found["live"]["greedy_batch_2"]
    for way in ("hf_generate", "hf_prompt_lookup", "first", "pool", "head"):
        assert greedy[way]["identical_to_plain"] == greedy[way]["texts"] == 2
    assert greedy["plain"]["tokens_per_call"] == 1 < greedy["pool"]["tokens_per_call"]
    assert greedy["silent"]["identical_to_plain"] == 0
    assert found["peers"]["missing"] == {"skipped": "no_such_engine not installed"}
    table = drafter_tables.live(found)
    assert table.count("| 2 of 2 |") >= 6
    assert "missing was skipped: no_such_engine not installed." in table
    assert "silent: silent 1, weights none, cache none; a text" in table
