"""Click models side by side: AUC and LogLoss of runs' vectors, paired over models and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.data.files.places import Place, arrow_path
from draftrec.errors import DraftrecError
from draftrec.evaluate.compare.limits import CTR_METRICS, Measured
from draftrec.evaluate.texts.quality import Estimate
from draftrec.jobs.trials import Interval, interval, paired

_KEYS = ("model", "adaptor", "seed")

Cell = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Trials:
    """The trials of one folder: (model, adaptor) -> seed -> metric -> value, on the test part."""

    folder: Place
    cells: Mapping[Cell, Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class CellChange:
    """One model with one adaptor: the run's value, and its difference from the baseline's over
    the seeds that both have."""

    model: str
    adaptor: str
    metric: str
    seeds: int
    value: Interval
    change: Interval


def read_trials(folder: Place) -> Trials:
    """Read `trials.parquet` of a folder that `draftrec ctr` wrote.

    Raises DraftrecError for anything else and for a model, adaptor and seed that occur twice.
    """
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
    return Trials(folder, cells)


def cell_changes(baseline: Trials, run: Trials) -> list[CellChange]:
    """Every model and adaptor that both have, metric by metric."""
    found: list[CellChange] = []
    for cell, seeds in _shared(baseline, run).items():
        before, after = baseline.cells[cell], run.cells[cell]
        for metric in CTR_METRICS:
            a, b = ([side[s][metric] for s in seeds] for side in (before, after))
            found.append(CellChange(*cell, metric, len(seeds), interval(b), paired(a, b)))
    return found


def ctr_measures(baseline: Trials, run: Trials) -> dict[str, Measured]:
    """AUC and LogLoss: per seed the mean over all models and adaptors, then mean and Student t
    interval over the seeds that every cell of both folders has.

    Raises DraftrecError where the two share no model, adaptor and seed.
    """
    shared = _shared(baseline, run)
    common = set.intersection(*(set(s) for s in shared.values())) if shared else set[int]()
    if not common:
        raise DraftrecError(
            f"{baseline.folder} and {run.folder} share no seed of every model and adaptor; run "
            "`draftrec ctr` with the same models, adaptors and seeds for both"
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
