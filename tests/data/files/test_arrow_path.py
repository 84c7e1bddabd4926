"""A relative path with a colon is a path, which Arrow by itself would take for an address."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from draftrec.cli.main import run
from draftrec.data.vectors import read_vectors


def test_files_may_have_a_colon_in_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"entity_id": f"u{i}", "text": f"quiet books of kind{i % 3}"} for i in range(6)]
    Path("run-12:30").mkdir()
    Path("run-12:30/texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["--encoder", "hashed:4", "--shard-size", "4", "--output", "run-12:30/hashed:4.parquet"]
    assert run(["encode", "run-12:30/texts.jsonl", *line]) == 0
    assert len(read_vectors("run-12:30/hashed:4.parquet").vectors) == 6
