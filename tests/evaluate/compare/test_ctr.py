"""Click models of two runs, paired over models, adaptors and seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.errors import DraftrecError
from draftrec.evaluate.compare.ctr import cell_changes, ctr_measures, ctr_values, read_trials

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


def with_plain(folder: Path, auc: Callable[[str, int], float]) -> Path:
    """The trials of `write_trials`, and those of the same models without an adaptor, which no text
    reaches."""
    write_trials(folder, auc)
    path = folder / "trials.parquet"
    rows = pq.read_table(path).to_pylist()
    plain = [{**r, "adaptor": "none", "auc": 0.5, "logloss": 0.5} for r in rows]
    pq.write_table(pa.Table.from_pylist([*plain, *rows]), path)
    return folder


def test_models_that_read_no_text_thin_out_no_change(tmp_path: Path) -> None:
    base = read_trials([with_plain(tmp_path / "a", baseline_auc)])
    other = read_trials([with_plain(tmp_path / "b", lambda m, s: baseline_auc(m, s) - 0.004)])
    found = ctr_measures(base, other)
    change, loss = found["auc"].change, found["logloss"].change
    assert change is not None
    assert loss is not None
    assert (change.value, loss.value) == (pytest.approx(-0.004), pytest.approx(0.004))
    value = ctr_values(base, [other])["auc"].value
    assert value is not None
    assert value.value == pytest.approx(0.71)
    assert {c.adaptor for c in cell_changes(base, other)} == {"none", "moe"}  # shown all the same
    rows = pq.read_table(tmp_path / "a" / "trials.parquet").to_pylist()
    none = [r for r in rows if r["adaptor"] == "none"]
    (tmp_path / "c").mkdir()
    pq.write_table(pa.Table.from_pylist(none), tmp_path / "c" / "trials.parquet")
    with pytest.raises(DraftrecError, match="which alone reads texts"):
        ctr_measures(base, read_trials([tmp_path / "c"]))


def test_the_baselines_value_is_of_what_runs_share_with_it(tmp_path: Path) -> None:
    base = read_trials([write_trials(tmp_path / "a", baseline_auc)])
    other = read_trials([write_trials(tmp_path / "b", baseline_auc, 2, ("din",))])
    before, after = ctr_values(base, [other])["auc"], ctr_measures(base, other)["auc"]
    assert (before.value, before.samples) == (after.value, 2)
    assert ctr_values(base, [])["auc"].samples == 5


def identified(folder: Path, **identity: Any) -> Path:
    write_trials(folder, baseline_auc)
    (folder / "trials.jsonl").write_text(json.dumps({"identity": identity}) + "\n")
    return folder


def test_studies_that_differ_in_more_than_vectors_are_not_paired(tmp_path: Path) -> None:
    """Another split, other interactions or another rating for a click: other tests, not other
    texts."""
    same = {"interactions": "abc", "split": "user", "fold": 0, "positive": 4.0}
    base = read_trials([identified(tmp_path / "a", **same, user_vectors="x")])
    texts = read_trials([identified(tmp_path / "b", **same, user_vectors="y")])
    assert ctr_measures(base, texts)["auc"].samples == 5
    for number, other in enumerate(({"fold": 1}, {"interactions": "abd"}, {"positive": 3.0})):
        folder = identified(tmp_path / str(number), **same | other)
        with pytest.raises(
            DraftrecError, match=f"more than their vectors, in {next(iter(other))};"
        ):
            ctr_measures(base, read_trials([folder]))
    fold = identified(tmp_path / "d", **same | {"fold": 1, "positive": 3.0})
    with pytest.raises(DraftrecError, match="more than their vectors, in positive;"):
        read_trials([tmp_path / "a", fold])


def test_cells_without_a_common_seed_are_left_out(tmp_path: Path) -> None:
    base = read_trials([with_plain(tmp_path / "a", baseline_auc)])
    rows = pq.read_table(tmp_path / "a" / "trials.parquet").to_pylist()
    moved = [{**r, "seed": r["seed"] + 9 * (r["adaptor"] == "none")} for r in rows]
    (tmp_path / "b").mkdir()
    pq.write_table(pa.Table.from_pylist(moved), tmp_path / "b" / "trials.parquet")
    assert {c.adaptor for c in cell_changes(base, read_trials([tmp_path / "b"]))} == {"moe"}


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
