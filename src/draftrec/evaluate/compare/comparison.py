"""`draftrec compare`: runs against their baseline, figure by figure, with verdicts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from draftrec.core import DoubleArray
from draftrec.errors import DraftrecError
from draftrec.evaluate.bootstrap import Estimate, percentiles
from draftrec.evaluate.compare.ctr import (
    CellChange,
    Trials,
    cell_changes,
    ctr_measures,
    ctr_values,
    read_trials,
)
from draftrec.evaluate.compare.limits import Measured, judge
from draftrec.evaluate.compare.study import Figures, Study
from draftrec.evaluate.compare.values import CompareJob, Comparison, RunResult
from draftrec.evaluate.texts.runs import RunTexts, must_be_equal, pair, read_run

#: Bootstrap values by metric, float64 `[resamples]` each.
Draws = Mapping[str, DoubleArray]


def run_compare(job: CompareJob) -> Comparison:
    """Read, measure, judge. Raises DraftrecError for input that cannot be compared."""
    _check(job)
    trials = {name: read_trials(folder) for name, folder in job.ctr.items()}
    baseline, *others = (read_run(name, folder) for name, folder in job.runs.items())
    paired = pair(baseline, others)
    study = Study(job, paired)
    own = study.figures(paired.baseline)
    draws = study.bootstrap.draw(own.ratios)
    entities = len(paired.baseline)
    measured = _alone(own, draws, entities)
    if baseline.name in trials:
        measured |= ctr_values(trials[baseline.name])
    first = RunResult(baseline.name, measured, own.faults)
    results = [_result(study, run, own, draws, trials) for run in paired.runs]
    return Comparison(first, tuple(results), entities, job.limits, study.facts())


def _result(
    study: Study,
    run: RunTexts,
    base: Figures,
    base_draws: Draws,
    trials: Mapping[str, Trials],
) -> RunResult:
    """One run, measured and judged."""
    figures, n = study.figures(run), len(run)
    against = study.against(run)
    draws = study.bootstrap.draw({**figures.ratios, **against})
    measured = _alone(figures, draws, n)
    for name in measured.keys() & (base.ratios.keys() | base.points.keys()):
        measured[name] = _changed(name, measured[name], base, draws, base_draws)
    for name, ratio in against.items():
        if (value := ratio.value) is not None:
            measured[name] = Measured(percentiles(value, draws[name]), samples=n)
    for name, value in study.exact(run).items():
        measured[name] = Measured(Estimate(value, value, value))
    cells: list[CellChange] = []
    baseline = study.paired.baseline
    if run.name in trials:
        measured |= ctr_measures(trials[baseline.name], trials[run.name])
        cells = cell_changes(trials[baseline.name], trials[run.name])
    equal = must_be_equal(baseline, run)
    verdicts = judge(run.name, measured, study.job.limits, equal=equal)
    return RunResult(run.name, measured, figures.faults, tuple(verdicts), tuple(cells), equal)


def _check(job: CompareJob) -> None:
    """Raise DraftrecError for names and options that do not fit together."""
    names = set(job.runs)
    if len(names) < 2:
        raise DraftrecError("name a baseline and at least one run to compare with it")
    for option, given in (("--ctr", job.ctr), ("--vectors", job.vectors)):
        if unknown := sorted(given.keys() - names):
            raise DraftrecError(
                f"{option} names {unknown[0]!r}, but the runs are {', '.join(job.runs)}; use "
                "their names"
            )
    baseline = next(iter(job.runs))
    if job.ctr and (baseline not in job.ctr or len(job.ctr) < 2):
        raise DraftrecError(
            f"--ctr compares with the baseline; give it for {baseline!r} and another run"
        )
    if job.vectors and (lacking := [n for n in job.runs if n not in job.vectors]):
        raise DraftrecError(f"give --vectors for every run or for none; {lacking[0]!r} has none")
    if (job.titles is None) != (job.prompts is None):
        raise DraftrecError(
            "--titles and --prompts belong together: give both, to see whose titles a text names"
        )


def _alone(figures: Figures, draws: Draws, entities: int) -> dict[str, Measured]:
    """A run's own values, without a baseline."""
    found = {name: Measured(Estimate(v), samples=entities) for name, v in figures.points.items()}
    for name, ratio in figures.ratios.items():
        if (value := ratio.value) is not None:
            found[name] = Measured(percentiles(value, draws[name]), samples=entities)
    return found


def _changed(name: str, own: Measured, base: Figures, draws: Draws, base_draws: Draws) -> Measured:
    """`own` with its differences from the baseline's value, where that is known."""
    if name in base.points:
        before, change, relative = base.points[name], np.empty(0), np.empty(0)
    else:
        value = base.ratios[name].value
        if value is None:
            return own
        before, change = value, draws[name] - base_draws[name]
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = draws[name] / base_draws[name] - 1
    after = own.value.value if own.value else before
    return Measured(
        own.value,
        percentiles(after - before, change),
        percentiles(after / before - 1, relative) if before else None,
        own.samples,
    )
