"""Vectors from a cluster are those of one process, byte for byte."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from draftrec.config import EncodeConfig
from draftrec.jobs.encode.inputs import EncodeSpec, load_for_job
from draftrec.jobs.encode.job import run_encode
from draftrec.jobs.ray import ClusterSpec, on_ray

pytestmark = pytest.mark.slow


def write_texts(path: Path) -> None:
    """Every third text repeats an earlier one, every fifth holds nothing an encoder knows."""
    rows = []
    for i in range(40):
        text = "..." if i % 5 == 4 else f"the reader likes {i // 6 * 2 + i % 2} quiet books"
        rows.append({"entity_id": f"u{i}", "text": text if i != 11 else None})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass(frozen=True)
class LoadHere:
    """The loader of jobs, in one process only."""

    pid: int

    def __call__(self, config: EncodeConfig, fit_on: Iterable[str]) -> Any:
        assert os.getpid() == self.pid
        return load_for_job(config, fit_on)


@pytest.mark.usefixtures("share")
def test_the_file_is_that_of_a_local_job(tmp_path: Path) -> None:
    write_texts(tmp_path / "in.jsonl")

    def spec(name: str) -> EncodeSpec:
        config = EncodeConfig(encoder="hashed:16", shard_size=4)
        return EncodeSpec(config, str(tmp_path / "in.jsonl"), tmp_path / name)

    expected = run_encode(spec("here.parquet")).summary
    notes: list[str] = []
    # Fitted once, where the job runs: workers need not see its texts.
    start = on_ray(ClusterSpec(workers=2), notes.append)
    found = run_encode(spec("there.parquet"), start=start, load=LoadHere(os.getpid())).summary
    timeless = {k for k in expected if "seconds" not in k and "per_second" not in k}
    assert {k: found[k] for k in timeless} == {k: expected[k] for k in timeless}
    assert 0 < expected["encoded"] < expected["texts"] < 40
    for ending in ("parquet", "parquet.rejected.jsonl"):
        here, there = (tmp_path / f"{name}.{ending}" for name in ("here", "there"))
        assert there.read_bytes() == here.read_bytes()
