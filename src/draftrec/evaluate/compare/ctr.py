"""Click models side by side: AUC and LogLoss of runs' vectors, paired over models and seeds, or
over splits of the users."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.data.files.places import Place, arrow_path
from draftrec.errors import DraftrecError
from draftrec.evaluate.compare.limits import CTR_METRICS, Measured
from draftrec.evaluate.compare.quality import Estimate
from draftrec.jobs.trials import Interval, Scalar, interval, paired, read_identity

_KEYS = ("model", "adaptor", "seed")
#: What runs compared differ in.
_VECTORS = ("user_vectors", "item_vectors")

Cell = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Trials:
    """Figures on the test part: (model, adaptor) -> seed or split -> metric -> value. `over`: which
    of the two; `name`: of the folder or folders; `shared`: inputs and settings of its trials, the
    vectors left out; empty where a folder does not say them."""

    name: str
    over: Literal["seeds", "splits"]
    cells: Mapping[Cell, Mapping[int, Mapping[str, float]]]
    shared: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])


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

    Raises DraftrecError for other folders, splits that occur twice or differ in more than the fold,
    and seeds that not all have.
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
        _check_alike(first, trials, but="fold")
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
    shared = {name: value for name, value in first.shared.items() if name != "fold"}
    return Trials(f"{first.name} and {len(others)} more", "splits", cells, shared)


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
    return Trials(str(folder), "seeds", cells, _shared_by_all(folder))


def _shared_by_all(folder: Place) -> dict[str, Scalar]:
    try:
        identity = read_identity(folder)
    except (OSError, ValueError):
        return {}  # a table alone, which says nothing
    return {name: value for name, value in identity.items() if name not in _VECTORS}


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
    """AUC and LogLoss: per seed or split the mean over all models and adaptors that read texts,
    then mean and Student t interval over the seeds or splits that every cell of both has. A model
    without an adaptor reads none, is the same for every run, and would thin out every change.

    Raises DraftrecError where the two share no model, adaptor and seed, or are not of a kind.
    """
    if baseline.over != run.over:
        raise DraftrecError(
            f"{baseline.name} has {baseline.over} and {run.name} has {run.over}; give as many "
            "folders of `draftrec ctr` for each run, one for each fold"
        )
    _check_alike(baseline, run)
    cells, seeds = _common([baseline, run])
    if not seeds:
        raise DraftrecError(
            f"{baseline.name} and {run.name} share none of their {run.over} of every model with an "
            "adaptor, which alone reads texts; run `draftrec ctr` with the same models, adaptors, "
            "seeds and folds for both"
        )
    found: dict[str, Measured] = {}
    for metric in CTR_METRICS:
        a, b = (_by_seed(side, cells, seeds, metric) for side in (baseline, run))
        relative = [y / x - 1 for x, y in zip(a, b, strict=True)] if all(a) else None
        found[metric] = Measured(
            _estimate(interval(b)),
            _estimate(paired(a, b)),
            _estimate(interval(relative)) if relative else None,
            samples=len(seeds),
        )
    return found


def ctr_values(baseline: Trials, runs: Seq[Trials]) -> dict[str, Measured]:
    """The baseline's own AUC and LogLoss, without changes, over what all `runs` share with it, so
    that theirs can be read beside it; over all that it has where they share nothing at once."""
    cells, seeds = _common([baseline, *runs])
    if not seeds:
        cells, seeds = _common([baseline])
    values = {m: _by_seed(baseline, cells, seeds, m) for m in CTR_METRICS if seeds}
    return {m: Measured(_estimate(interval(v)), samples=len(seeds)) for m, v in values.items()}


def _check_alike(one: Trials, other: Trials, but: str = "") -> None:
    """Raise where the trials of two folders differ in more than vectors, as far as both say it."""
    both = sorted((one.shared.keys() & other.shared.keys()) - {but})
    if differing := [name for name in both if one.shared[name] != other.shared[name]]:
        raise DraftrecError(
            f"{other.name} and {one.name} differ in more than their vectors, in "
            f"{', '.join(differing)}; run `draftrec ctr` on the same inputs with the same settings"
        )


def _common(trials: Seq[Trials]) -> tuple[list[Cell], list[int]]:
    """The cells that read texts and that all have, and the seeds or splits that all have of each
    of them."""
    first = trials[0].cells
    cells = [c for c in first if c[1] != "none" and all(c in t.cells for t in trials)]
    seeds = [set(t.cells[c]) for t in trials for c in cells]
    return cells, sorted(set.intersection(*seeds)) if seeds else []


def _shared(baseline: Trials, run: Trials) -> dict[Cell, list[int]]:
    """Cells of both, with the seeds of both, where there are any."""
    both = [cell for cell in baseline.cells if cell in run.cells]
    seeds = {c: sorted(baseline.cells[c].keys() & run.cells[c].keys()) for c in both}
    return {cell: found for cell, found in seeds.items() if found}


def _by_seed(trials: Trials, cells: list[Cell], seeds: list[int], metric: str) -> list[float]:
    return [fmean(trials.cells[c][s][metric] for c in cells) for s in seeds]


def _estimate(found: Interval) -> Estimate:
    return Estimate(found.mean, found.low, found.high)
