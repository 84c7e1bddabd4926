"""Click models of two runs, paired over models, adaptors and seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.errors import DraftrecError
from draftrec.evaluate.compare.ctr import cell_changes, ctr_measures, read_trials

AUC = {"din": 0.70, "deepfm": 0.72}


def write_trials(
    folder: Path, auc: Callable[[str, int], float], seeds: int = 5, models: tuple[str, ...] = ()
) -> Path:
    """Trials of each model with one adaptor; LogLoss is one less AUC."""
    rows = [(m, s, auc(m, s)) for m in models or tuple(AUC) for s in range(seeds)]
    folder.mkdir()
    table = {
        "model": [m for m, _, _ in rows],
        "adaptor": ["moe"] * len(rows),
        "seed": [s for _, s, _ in rows],
        "auc": [a for _, _, a in rows],
        "logloss": [1 - a for _, _, a in rows],
        "best_epoch": [1] * len(rows),
    }
    pq.write_table(pa.table(table), folder / "trials.parquet")
    return folder


def baseline_auc(model: str, seed: int) -> float:
    return AUC[model] + 0.01 * (seed - 2)


def test_what_seeds_share_cancels_out(tmp_path: Path) -> None:
    base = read_trials([write_trials(tmp_path / "a", baseline_auc)])
    other = read_trials([write_trials(tmp_path / "b", lambda m, s: baseline_auc(m, s) - 0.004)])
    found = ctr_measures(base, other)
    change = found["auc"].change
    assert change is not None
    assert change.value == pytest.approx(-0.004)
    assert change.low == pytest.approx(-0.004)
    assert found["auc"].samples == 5
    value, loss = found["auc"].value, found["logloss"].change
    assert value is not None
    assert value.value == pytest.approx(0.706)
    assert value.low is not None
    assert value.low < 0.70  # seeds differ, only their pairs do not
    assert loss is not None
    assert loss.value == pytest.approx(0.004)


def test_student_interval_over_seeds_of_the_mean_over_models(tmp_path: Path) -> None:
    losses = {0: 0.001, 1: -0.002, 2: 0.003}
    base = read_trials([write_trials(tmp_path / "a", baseline_auc, 3)])
    other = read_trials(
        [write_trials(tmp_path / "b", lambda m, s: baseline_auc(m, s) - losses[s], 3)]
    )
    change = ctr_measures(base, other)["auc"].change
    assert change is not None
    assert change.low is not None
    # t(0.975, 2) = 4.3027; the standard deviation of the losses is 0.0025166
    assert change.value - change.low == pytest.approx(4.3027 * 0.0025166 / 3**0.5, rel=1e-3)


def test_cells_are_shown_one_by_one_over_shared_seeds(tmp_path: Path) -> None:
    base = read_trials([write_trials(tmp_path / "a", baseline_auc)])
    other = read_trials(
        [write_trials(tmp_path / "b", lambda m, s: baseline_auc(m, s) + 0.01, 2, ("din",))]
    )
    found = cell_changes(base, other)
    assert [(c.model, c.metric, c.seeds) for c in found] == [
        ("din", "auc", 2),
        ("din", "logloss", 2),
    ]
    assert found[0].change.mean == pytest.approx(0.01)
    assert ctr_measures(base, other)["auc"].samples == 2


def write_fold(folder: Path, fold: int, loss: float, seeds: int = 2, split: str = "user") -> Path:
    """One split's trials, as `draftrec ctr --fold` leaves them; users of other folds are harder."""
    write_trials(folder, lambda m, s: baseline_auc(m, s) - 0.02 * fold - loss, seeds)
    identity = {"identity": {"split": split, "fold": fold}}
    (folder / "trials.jsonl").write_text(json.dumps(identity) + "\n")
    return folder


def test_folds_are_paired_split_by_split(tmp_path: Path) -> None:
    losses = {0: 0.001, 3: -0.002, 7: 0.003}
    base = read_trials([write_fold(tmp_path / f"a{f}", f, 0.0) for f in losses])
    other = read_trials([write_fold(tmp_path / f"b{f}", f, losses[f]) for f in reversed(losses)])
    found = ctr_measures(base, other)["auc"]
    assert found.samples == 3
    assert found.change is not None
    assert found.change.low is not None
    assert found.change.value == pytest.approx(-0.002 / 3)
    # t(0.975, 2) = 4.3027; the standard deviation of the losses is 0.0025166
    assert found.change.value - found.change.low == pytest.approx(4.3027 * 0.0025166 / 3**0.5, 1e-3)
    assert found.value is not None
    assert found.value.value == pytest.approx(0.71 - 0.015 - 0.02 * 10 / 3 - 0.002 / 3)
    cells = cell_changes(base, other)
    assert {(c.model, c.seeds, c.over) for c in cells} == {
        ("din", 3, "splits"),
        ("deepfm", 3, "splits"),
    }


def test_folds_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    a, b = write_fold(tmp_path / "a", 0, 0.0), write_fold(tmp_path / "b", 1, 0.0)
    refused = {
        "both of fold 0": [a, write_fold(tmp_path / "c", 0, 0.0)],
        "other seeds of din with moe": [a, write_fold(tmp_path / "d", 1, 0.0, seeds=3)],
        "which has no folds": [a, write_fold(tmp_path / "e", 1, 0.0, split="time")],
        "does not say which fold": [a, write_trials(tmp_path / "f", baseline_auc, 2)],
    }
    for message, folders in refused.items():
        with pytest.raises(DraftrecError, match=message):
            read_trials(folders)
    with pytest.raises(DraftrecError, match=r"splits and .* has seeds"):
        ctr_measures(read_trials([a, b]), read_trials([a]))


def test_unusable_trials_are_refused(tmp_path: Path) -> None:
    base = read_trials([write_trials(tmp_path / "a", baseline_auc, 1, ("din",))])
    other = read_trials([write_trials(tmp_path / "b", baseline_auc, 1, ("deepfm",))])
    with pytest.raises(DraftrecError, match="share none of their seeds"):
        ctr_measures(base, other)
    with pytest.raises(DraftrecError, match="draftrec ctr"):
        read_trials([tmp_path])
    twice = write_trials(tmp_path / "c", baseline_auc, 1, ("din", "din"))
    with pytest.raises(DraftrecError, match="seed 0 twice"):
        read_trials([twice])
    pq.write_table(pa.table({"model": ["din"]}), tmp_path / "trials.parquet")
    with pytest.raises(DraftrecError, match="has no column 'adaptor'"):
        read_trials([tmp_path])
