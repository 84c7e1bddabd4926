"""The transformers benchmark, dry: two architectures, and a tiny model instead of the real one."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers_generate as benchmark
from stand_in import save_tiny_model

FEW = ["--architectures", "llama", "gptj", "--prompts", "9", "--max-new-tokens", "20"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"task": "a", "entity_id": str(i), "prompt": f"Reader {i} is\n", "split": split}
        for i, split in enumerate(["train", "heldout"] * 4)
    ]
    path = tmp_path_factory.mktemp("data") / "prompts.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.slow
def test_dry_run(prompts: Path, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    where = ["--model", str(model), "--texts", str(prompts), "--results", str(tmp_path)]
    assert benchmark.main([*FEW, *where, "--real", "3", "--warm", "4"]) == 0
    result = json.loads((tmp_path / "transformers.json").read_text())
    assert set(result["architectures"]) == {"llama", "gptj"}
    for by_batch in (*result["architectures"].values(), result["real"]["batch"]):
        for batch in ("1", "8"):
            assert by_batch[batch]["identical"] == by_batch[batch]["prompts"] > 0
            assert 0 < by_batch[batch]["accepted_tokens"] < by_batch[batch]["drafted_tokens"]
            assert by_batch[batch]["tokens_per_call"] > 1
    assert result["real"]["pool_texts"] == 4


@pytest.mark.slow
def test_a_text_that_differs_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def spoilt(model: Any, input_ids: torch.Tensor, **settings: Any) -> Any:
        output = generate(model, input_ids, **settings)
        output.sequences[0, -1] += 1
        return output

    generate = benchmark.draftrec.generate
    spoilt.__signature__ = inspect.signature(generate)
    monkeypatch.setattr(benchmark.draftrec, "generate", spoilt)
    assert benchmark.main([*FEW, "--real", "0", "--results", str(tmp_path)]) == 1
    result = json.loads((tmp_path / "transformers.json").read_text())
    assert result["architectures"]["llama"]["1"]["identical"] == 0
    assert "real" not in result


def test_a_spoilt_pool_differs_in_every_seventh_token() -> None:
    text = np.arange(3, 24).tolist()
    ((ids, group),) = benchmark.spoilt_pool([text], 97)
    assert group is None
    assert np.flatnonzero(ids != text).tolist() == [6, 13, 20]


def test_rows_are_padded_on_the_left() -> None:
    first, second = benchmark.batches([[5, 6, 7], [8], [9, 10]], 2, pad=0)
    assert first["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert first["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert second["input_ids"].tolist() == [[9, 10]]
