"""The study: its summary by hand, its files the same every time, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.ctr import study
from draftrec.ctr.features import FeatureSources
from draftrec.ctr.settings import FitSettings
from draftrec.ctr.study import StudyJob, run_study, summarise
from draftrec.data.events import CutSettings, Events, read_events
from draftrec.errors import DraftrecError
from draftrec.jobs.ledger import changes
from tests.ctr.world import World

QUICK = FitSettings(batch_sizes=(256,), size=4, epochs=1)


def job(world: World, output: Path) -> StudyJob:
    sources = FeatureSources(str(world.items), item_vectors=str(world.item_vectors))
    return StudyJob(
        interactions=str(world.interactions),
        output=output,
        models=("dcn",),
        adaptors=("none", "mlp"),
        seeds=2,
        sources=sources,
        fit=QUICK,
    )


def test_a_summary_by_hand() -> None:
    rows = [("din", "none", 0.5, 0.7), ("din", "none", 0.6, 0.6), ("din", "moe", 0.6, 0.6),
            ("din", "moe", 0.8, 0.5), ("dcn", "moe", 0.9, 0.4)]  # fmt: skip
    names = ("model", "adaptor", "auc", "logloss")
    table = pa.table(
        {name: list(c) for name, c in zip(names, zip(*rows, strict=True), strict=True)}
    )
    plain, moe, alone = summarise(table)
    assert (plain["model"], plain["adaptor"], plain["seeds"]) == ("din", "none", 2)
    assert plain["auc"]["mean"] == 0.55
    assert moe["over_none"]["auc"]["mean"] == pytest.approx(0.15)
    assert moe["over_none"]["logloss"]["mean"] == pytest.approx(-0.1)
    assert moe["over_none"]["auc"]["std"] == pytest.approx(0.070711)
    assert alone["auc"] == {"mean": 0.9, "std": None, "low": None, "high": None}
    assert "over_none" not in plain
    assert "over_none" not in alone


@pytest.mark.slow
def test_the_same_job_writes_the_same_bytes(world: World, tmp_path: Path) -> None:
    first = run_study(job(world, tmp_path / "a"), 1)
    # Begun with fewer seeds, then gone on with.
    run_study(replace(job(world, tmp_path / "b"), seeds=1), 1)
    again = run_study(job(world, tmp_path / "b"), 1)
    assert first == again
    for name in ("trials.parquet", "summary.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    table = pq.read_table(tmp_path / "a" / "trials.parquet")
    assert table.column_names == [
        "model", "adaptor", "seed", "lr", "batch_size", "valid_auc", "valid_logloss", "auc",
        "logloss", "best_epoch", "epochs", "weights",
    ]  # fmt: skip
    assert [r["adaptor"] for r in first["results"]] == ["none", "mlp"]
    assert first["without_vectors"] == {"items": 0}
    assert sum(part["users"] for part in first["samples"].values()) == first["users"]


@pytest.mark.slow
def test_other_inputs_do_not_continue_a_study(world: World, tmp_path: Path) -> None:
    begun = replace(job(world, tmp_path), seeds=1)
    run_study(begun, 1)
    with pytest.raises(DraftrecError, match="epochs was 1, now 2"):
        run_study(replace(begun, fit=replace(QUICK, epochs=2)), 1)
    other = world.vectors("i", world.item_taste, range(50))
    with pytest.raises(DraftrecError, match="item_vectors changed"):
        run_study(replace(begun, sources=replace(begun.sources, item_vectors=str(other))), 1)
    with pytest.raises(DraftrecError, match="history was 30, now 3"):
        run_study(replace(begun, cut=CutSettings(history=3)), 1)


def test_inputs_that_change_while_they_are_read_do_not_continue_a_study(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of the old file stood under the fingerprint of the new one."""
    path = tmp_path / "interactions.jsonl"
    begun = replace(job(world, tmp_path / "out"), seeds=1, interactions=str(path))
    lines = world.interactions.read_text().splitlines(keepends=True)
    path.write_text("".join(lines))

    def replaced(*given: Any) -> Events:
        found = read_events(*given)
        path.write_text("".join(lines[1:]))
        return found

    monkeypatch.setattr(study, "read_events", replaced)
    monkeypatch.setattr(study, "run_trials", lambda trial, settings, store, **_: store)
    monkeypatch.setattr(study, "_summary", lambda store, *_: {"identity": store.identity})
    (tmp_path / "out").mkdir()
    first, again = (run_study(begun, 1)["identity"] for _ in range(2))
    assert changes(first, again) == ["interactions changed"]


def test_adaptors_are_checked_before_anything_is_trained(world: World, tmp_path: Path) -> None:
    narrow = world.vectors("u", world.user_taste, range(100), width=5)
    sources = FeatureSources(user_vectors=str(narrow), item_vectors=str(world.item_vectors))
    bad = replace(job(world, tmp_path / "out"), sources=sources, adaptors=("none", "moe"))
    with pytest.raises(DraftrecError, match="5 and 8 numbers"):
        run_study(bad, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_users_alone_cannot_be_aligned_in_a_split_by_user(world: World, tmp_path: Path) -> None:
    sources = FeatureSources(user_vectors=str(world.user_vectors))
    bad = replace(job(world, tmp_path), sources=sources, adaptors=("contrastive",), seeds=1)
    with pytest.raises(DraftrecError, match="--split time"):
        run_study(bad, 1)
    by_time = run_study(replace(bad, cut=CutSettings(split="time")), 1)
    assert [r["adaptor"] for r in by_time["results"]] == ["contrastive"]


def test_a_missing_library_is_named(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "find_spec", lambda name: None)
    with pytest.raises(DraftrecError, match=r'pip install "draftrec\[ctr\]"'):
        run_study(job(world, tmp_path), 1)
