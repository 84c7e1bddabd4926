"""Click models side by side: AUC and LogLoss of runs' vectors, paired over models and seeds, or
over splits of the users."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.data.files.places import Place, arrow_path
from draftrec.errors import DraftrecError
from draftrec.evaluate.compare.limits import CTR_METRICS, Measured
from draftrec.evaluate.compare.quality import Estimate
from draftrec.jobs.trials import Interval, interval, paired, read_identity

_KEYS = ("model", "adaptor", "seed")

Cell = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Trials:
    """Figures on the test part: (model, adaptor) -> seed or split -> metric -> value. `over`: which
    of the two; `name`: of the folder or folders."""

    name: str
    over: Literal["seeds", "splits"]
    cells: Mapping[Cell, Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class CellChange:
    """One model with one adaptor: the run's value, and its difference from the baseline's over
    the `seeds` (or splits: `over`) that both have."""

    model: str
    adaptor: str
    metric: str
    seeds: int
    over: Literal["seeds", "splits"]
    value: Interval
    change: Interval


def read_trials(folders: Seq[Place]) -> Trials:
    """Of one folder that `draftrec ctr` wrote: over its seeds. Of several, each of another
    `--fold`: over these splits, a split's value being the mean over its seeds.

    Raises DraftrecError for other folders, splits that occur twice, and seeds that not all have.
    """
    first, *others = (_read_folder(folder) for folder in folders)
    if not others:
        return first
    splits: dict[int, Trials] = {}
    for folder, trials in zip(folders, [first, *others], strict=True):
        fold = _fold(folder)
        if fold in splits:
            raise DraftrecError(
                f"{splits[fold].name} and {folder} are both of fold {fold}; name one"
            )
        splits[fold] = trials
    cells: dict[Cell, dict[int, Mapping[str, float]]] = {}
    for fold, trials in splits.items():
        for cell, seeds in trials.cells.items():
            if seeds.keys() != first.cells.get(cell, {}).keys():
                raise DraftrecError(
                    f"{first.name} and {trials.name} have other seeds of {cell[0]} with {cell[1]}; "
                    "run `draftrec ctr` with the same models, adaptors and seeds for every fold"
                )
            means = {m: fmean(s[m] for s in seeds.values()) for m in CTR_METRICS}
            cells.setdefault(cell, {})[fold] = means
    return Trials(f"{first.name} and {len(others)} more", "splits", cells)


def _fold(folder: Place) -> int:
    """Which split a folder's models were tested on, by the identity of its journal."""
    try:
        identity = read_identity(folder)
        split, fold = identity["split"], identity["fold"]
    except (OSError, ValueError, KeyError) as error:
        raise DraftrecError(
            f"{folder} does not say which fold it is of, and several folders of one name must; "
            "give whole folders that `draftrec ctr --fold N` wrote"
        ) from error
    if split == "user" and isinstance(fold, int):
        return fold
    raise DraftrecError(f"{folder} was split by {split}, which has no folds; name one folder")


def _read_folder(folder: Place) -> Trials:
    """Read its `trials.parquet`."""
    path = folder / "trials.parquet"
    mend = "give a folder that `draftrec ctr` wrote"
    try:
        table = pq.read_table(arrow_path(path))
    except (pa.ArrowException, OSError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DraftrecError(f"{path} cannot be read ({reason}); {mend}") from error
    missing = [c for c in (*_KEYS, *CTR_METRICS) if c not in table.column_names]
    if missing:
        raise DraftrecError(f"{path} has no column {missing[0]!r}; {mend}")
    cells: dict[Cell, dict[int, dict[str, float]]] = {}
    for row in table.select([*_KEYS, *CTR_METRICS]).to_pylist():
        seeds = cells.setdefault((str(row["model"]), str(row["adaptor"])), {})
        if row["seed"] in seeds:
            raise DraftrecError(
                f"{path} has {row['model']} with {row['adaptor']} and seed {row['seed']} twice; "
                "compare one setting of each"
            )
        seeds[row["seed"]] = {metric: float(row[metric]) for metric in CTR_METRICS}
    return Trials(str(folder), "seeds", cells)


def cell_changes(baseline: Trials, run: Trials) -> list[CellChange]:
    """Every model and adaptor that both have, metric by metric."""
    found: list[CellChange] = []
    for cell, seeds in _shared(baseline, run).items():
        before, after = baseline.cells[cell], run.cells[cell]
        for metric in CTR_METRICS:
            a, b = ([side[s][metric] for s in seeds] for side in (before, after))
            over = len(seeds), run.over
            found.append(CellChange(*cell, metric, *over, interval(b), paired(a, b)))
    return found


def ctr_measures(baseline: Trials, run: Trials) -> dict[str, Measured]:
    """AUC and LogLoss: per seed or split the mean over all models and adaptors, then mean and
    Student t interval over the seeds or splits that every cell of both has.

    Raises DraftrecError where the two share no model, adaptor and seed, or are not of a kind.
    """
    if baseline.over != run.over:
        raise DraftrecError(
            f"{baseline.name} has {baseline.over} and {run.name} has {run.over}; give as many "
            "folders of `draftrec ctr` for each run, one for each fold"
        )
    shared = _shared(baseline, run)
    common = set.intersection(*(set(s) for s in shared.values())) if shared else set[int]()
    if not common:
        raise DraftrecError(
            f"{baseline.name} and {run.name} share none of their {run.over} of every model and "
            "adaptor; run `draftrec ctr` with the same models, adaptors, seeds and folds for both"
        )
    found: dict[str, Measured] = {}
    for metric in CTR_METRICS:
        a, b = (_by_seed(side, list(shared), sorted(common), metric) for side in (baseline, run))
        relative = [y / x - 1 for x, y in zip(a, b, strict=True)] if all(a) else None
        found[metric] = Measured(
            _estimate(interval(b)),
            _estimate(paired(a, b)),
            _estimate(interval(relative)) if relative else None,
            samples=len(common),
        )
    return found


def ctr_values(trials: Trials) -> dict[str, Measured]:
    """The same of one folder alone, without changes."""
    found = ctr_measures(trials, trials)
    return {name: Measured(m.value, samples=m.samples) for name, m in found.items()}


def _shared(baseline: Trials, run: Trials) -> dict[Cell, list[int]]:
    """Cells of both, with the seeds of both."""
    both = [cell for cell in baseline.cells if cell in run.cells]
    return {c: sorted(baseline.cells[c].keys() & run.cells[c].keys()) for c in both}


def _by_seed(trials: Trials, cells: list[Cell], seeds: list[int], metric: str) -> list[float]:
    return [fmean(trials.cells[c][s][metric] for c in cells) for s in seeds]


def _estimate(found: Interval) -> Estimate:
    return Estimate(found.mean, found.low, found.high)
