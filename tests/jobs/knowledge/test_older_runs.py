"""Runs of an earlier version, whose manifests know fewer settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from draftrec.errors import Interrupted
from tests.fakes import FakeGenerator
from tests.jobs.knowledge.test_job import data_of, do, make_spec, refusal, write_rows

YOUNGER = ("epsilon", "delta", "entropy_gate", "window")


def forget(run: Path, **values: float) -> None:
    """Take settings out of a run's manifest, or give them other values."""
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    kept = {k: v for k, v in manifest["settings"].items() if k not in YOUNGER}
    assert len(kept) == len(manifest["settings"]) - len(YOUNGER)
    path.write_text(json.dumps({**manifest, "settings": {**kept, **values}}))


def test_an_older_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(make_spec(tmp_path, "whole"))
    generator = FakeGenerator()
    with pytest.raises(Interrupted):
        do(make_spec(tmp_path), generator, should_stop=lambda: generator.decoded >= 5)
    forget(tmp_path / "run", window=3)
    assert "window was 3, now 6" in refusal(lambda: do(make_spec(tmp_path)))
    forget_again = json.loads((tmp_path / "run" / "manifest.json").read_text())
    del forget_again["settings"]["window"]
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(forget_again))
    do(make_spec(tmp_path))
    assert data_of(tmp_path / "run") == data_of(tmp_path / "whole")


def test_texts_of_an_older_run_are_kept_by_a_refresh(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl")
    do(make_spec(tmp_path, "old"))
    forget(tmp_path / "old")
    done = do(replace(make_spec(tmp_path, "new"), previous=tmp_path / "old"))
    assert done.summary["kept"] == done.summary["entities"] > 0


@pytest.mark.parametrize("accept", ["strict", "relaxed"])
def test_shards_of_the_former_default_size(tmp_path: Path, accept: str) -> None:
    """They were of 1024 records: what `auto` means too, where texts join the pool at once."""
    write_rows(tmp_path / "in.jsonl")
    generator = FakeGenerator()
    with pytest.raises(Interrupted):
        do(
            make_spec(tmp_path, accept=accept, shard_size=1024), generator,
            should_stop=lambda: generator.decoded >= 5,
        )  # fmt: skip
    automatic = make_spec(tmp_path, accept=accept, shard_size="auto")
    if accept == "strict":
        do(automatic)
        do(make_spec(tmp_path, "whole", accept=accept, shard_size="auto"))
        assert data_of(tmp_path / "run") == data_of(tmp_path / "whole")
    else:
        assert "shard_size was 1024, now auto" in refusal(lambda: do(automatic))


@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_layers_are_frozen_passes_now(tmp_path: Path, compiled: bool) -> None:  # noqa: FBT001
    write_rows(tmp_path / "in.jsonl")
    spec = make_spec(tmp_path, "run", pass_="frozen" if compiled else "auto")
    generator = FakeGenerator()
    with pytest.raises(Interrupted):
        do(spec, generator, should_stop=lambda: generator.decoded >= 5)
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]["pass"]
    manifest["settings"]["compile"] = compiled
    path.write_text(json.dumps(manifest))
    eager = make_spec(tmp_path, "run", pass_="eager")
    assert f"pass was {'frozen' if compiled else 'auto'}, now eager" in refusal(lambda: do(eager))
    do(spec)
    do(make_spec(tmp_path, "whole"))
    assert data_of(tmp_path / "run") == data_of(tmp_path / "whole")
