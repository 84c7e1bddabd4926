"""`draftrec compare`: runs against their baseline, figure by figure, with verdicts.

A `CompareJob` says what is asked, a `Study` holds the instruments, the same for all runs, and a
`Comparison` is what they find.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from draftrec.core import DoubleArray
from draftrec.data.files.places import Place
from draftrec.data.templates import FRAMEWORKS, Side
from draftrec.data.words import BleuTokenizer, bleu_tokenizer, unspaced
from draftrec.errors import DraftrecError
from draftrec.evaluate.compare.ctr import (
    CellChange,
    Trials,
    cell_changes,
    ctr_measures,
    ctr_values,
    read_trials,
)
from draftrec.evaluate.compare.grounding import (
    Framework,
    Grounding,
    TextForm,
    ground,
    read_catalogue,
    read_prompts,
)
from draftrec.evaluate.compare.limits import Limits, Measured, Verdict, judge, passed
from draftrec.evaluate.compare.quality import (
    COUNTED,
    Bootstrap,
    Estimate,
    Ratio,
    Similarity,
    bleu_sample,
    by_tf_idf,
    by_vectors,
    check_one_encoder,
    likeness,
    mean_of,
    own_measures,
    percentiles,
    read_text_vectors,
    run_distinct,
    self_bleu,
    share,
    share_change,
)
from draftrec.evaluate.compare.runs import (
    PairedRuns,
    RunTexts,
    must_be_equal,
    other_prompts,
    pair,
    read_run,
    rounding,
)
from draftrec.evaluate.settings import CompareRun


@dataclass(frozen=True)
class CompareJob(CompareRun):
    """What to compare. `runs`: name -> folder, the baseline first; `ctr` (one folder, or one for
    each split) and `vectors` by the same names."""

    runs: Mapping[str, Place]
    limits: Limits
    ctr: Mapping[str, Seq[Place]] = field(default_factory=dict)
    vectors: Mapping[str, Place] = field(default_factory=dict)
    titles: str | None = None
    prompts: str | None = None


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run's figures by metric. `faults`: kind of fault -> texts of the run that have it;
    `must_equal`: a greedy strict run of the baseline's model; `rounding`: why such texts may differ
    by rounding alone."""

    name: str
    measured: Mapping[str, Measured]
    faults: Mapping[str, int]
    verdicts: tuple[Verdict, ...] = ()
    cells: tuple[CellChange, ...] = ()
    must_equal: bool = False
    rounding: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that was found. `facts` say how it was measured, in words and numbers."""

    baseline: RunResult
    runs: tuple[RunResult, ...]
    entities: int
    limits: Limits
    facts: Mapping[str, str]

    @property
    def verdicts(self) -> list[Verdict]:
        """Of all runs."""
        return [v for run in self.runs for v in run.verdicts]

    @property
    def passed(self) -> bool:
        """Whether the gate lets all runs through."""
        return passed(self.verdicts, self.limits)


#: What the facts say of the form where no template is known.
NOT_CHECKED = "not checked (no --template, and the runs name none that is built in)"


@dataclass(frozen=True, eq=False, slots=True)
class Figures:
    """Measures of one run: `ratios` that have intervals, `points` that have none."""

    ratios: dict[str, Ratio]
    points: dict[str, float]
    faults: dict[str, int]


class Study:
    """What all runs are measured with: one sample, one set of draws, one list of titles."""

    def __init__(self, job: CompareJob, paired: PairedRuns) -> None:
        self.job, self.paired = job, paired
        n = len(paired.baseline)
        self.bootstrap = Bootstrap(n, job.resamples, job.seed)
        self.sample = bleu_sample(n, job.seed)
        # One tokenizer for all runs, or their figures could not be compared.
        texts = [text for run in (paired.baseline, *paired.runs) for text in run.texts]
        self.tokenizer: BleuTokenizer = bleu_tokenizer(texts)
        self._unspaced = any(map(unspaced, texts))
        self.form = _form(job, [paired.baseline, *paired.runs])
        self.grounding = _grounding(job, paired.baseline)
        ids = paired.baseline.entity_ids
        self.vectors = {n: read_text_vectors(path, ids) for n, path in job.vectors.items()}
        if self.vectors:
            check_one_encoder(job.vectors, self.vectors)

    def figures(self, run: RunTexts) -> Figures:
        """What the run is like by itself."""
        ratios = own_measures(run)
        ratios["self_bleu"] = self_bleu(run.texts, self.sample, self.tokenizer)
        if self.grounding:
            ratios |= self.grounding.measures(run.texts)
        faults: Counter[str] = Counter()
        if self.form:
            found = [self.form.faults(text) for text in run.texts]
            faults.update(fault for text in found for fault in text)
            ratios["template_valid"] = mean_of([not text for text in found])
        points = {name: value for name, value in run_distinct(run).items() if value is not None}
        return Figures(ratios, points, dict(sorted(faults.items())))

    def against(self, run: RunTexts) -> dict[str, Ratio]:
        """How the run's texts relate to the baseline's, entity by entity."""
        baseline = self.paired.baseline
        found = likeness(baseline, run)
        similarity = self._similarity(run)
        found["similarity"] = mean_of(similarity.cosines)
        found["similarity_kept"] = similarity.kept
        if self.vectors:
            a, b = self.vectors[baseline.name], self.vectors[run.name]
            found["vectors_equal"] = mean_of((a == b).all(axis=1))
        return found

    def exact(self, run: RunTexts) -> dict[str, float]:
        """Counts that nothing is estimated of, as far as they are known."""
        baseline = self.paired.baseline
        found = {"missing_share": self.paired.missing[run.name] / self.paired.total}
        if baseline.prompt_hashes is not None and run.prompt_hashes is not None:
            found["other_prompts"] = float(other_prompts(baseline, run).mean())
        return found

    def facts(self) -> dict[str, str]:
        """How it was measured."""
        of = "vectors" if self.vectors else f"TF-IDF of {self._terms} (no --vectors)"
        facts = {
            "entities compared": f"{len(self.paired.baseline):,} of {self.paired.total:,}",
            "similarity": f"cosine of {of}",
            "self-BLEU": f"{len(self.sample.texts)} texts, each with "
            f"{self.sample.references.shape[1]} others; sacrebleu's tokenizer {self.tokenizer}",
            "tokenizer": self.tokenizer,
            "intervals": f"95 %, {self.job.resamples:,} paired resamples of entities, seed "
            f"{self.job.seed}; Student's t over seeds or splits",
            "form": f"{self.form.framework}, {self.form.side}" if self.form else NOT_CHECKED,
        }
        if self.grounding:
            counts = self.grounding.facts()
            facts["titles"] = (
                f"{counts['titles']:,} looked for; left out {counts['titles_too_short']:,} too "
                f"short and {counts['titles_common']:,} that texts also write as plain words"
            )
        else:
            facts["titles"] = "not looked for (no --titles and --prompts)"
        return facts

    @property
    def _terms(self) -> str:
        """What TF-IDF counts."""
        if self._unspaced:
            return "words, and of characters and their pairs in scripts without spaces"
        return "words"

    def _similarity(self, run: RunTexts) -> Similarity:
        baseline = self.paired.baseline
        if self.vectors:
            return by_vectors(self.vectors[baseline.name], self.vectors[run.name])
        return by_tf_idf(baseline.texts, run.texts)


def _form(job: CompareJob, runs: Seq[RunTexts]) -> TextForm | None:
    """What the command line says, else the limits file, else the first manifest that says it."""
    asked = job.limits.form
    manifests = [run.manifest for run in runs if run.manifest is not None]
    written = [m.paths.get("template") for m in manifests]
    known = (t for t in (job.framework, asked.framework, *written) if t in FRAMEWORKS)
    framework = next(known, None)
    if framework is None:
        return None
    sides = (job.side, asked.side, *(m.settings.get("side") for m in manifests))
    side = cast(Side, next((s for s in sides if s), "user"))
    return TextForm(cast(Framework, framework), side, asked.factors, asked.min_factors)


def _grounding(job: CompareJob, baseline: RunTexts) -> Grounding | None:
    if job.titles is None or job.prompts is None:
        return None
    catalogue = read_catalogue(job.titles)
    prompts = read_prompts(job.prompts, baseline.entity_ids, catalogue.by_item)
    return ground(catalogue, prompts, baseline.texts)


#: Bootstrap values by metric, float64 `[resamples]` each.
Draws = Mapping[str, DoubleArray]


def run_compare(job: CompareJob) -> Comparison:
    """Read, measure, judge. Raises DraftrecError for input that cannot be compared."""
    _check(job)
    trials = {name: read_trials(folders) for name, folders in job.ctr.items()}
    baseline, *others = (read_run(name, folder) for name, folder in job.runs.items())
    paired = pair(baseline, others)
    study = Study(job, paired)
    own = study.figures(paired.baseline)
    draws = study.bootstrap.draw(own.ratios)
    entities = len(paired.baseline)
    measured = _alone(own, draws, entities)
    if baseline.name in trials:
        beside = [trials[run.name] for run in paired.runs if run.name in trials]
        measured |= ctr_values(trials[baseline.name], beside)
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
            measured[name] = Measured(percentiles(value, draws[name], n), samples=n)
    for name, value in study.exact(run).items():
        measured[name] = Measured(Estimate(value, value, value))
    cells: list[CellChange] = []
    baseline = study.paired.baseline
    if run.name in trials:
        measured |= ctr_measures(trials[baseline.name], trials[run.name])
        cells = cell_changes(trials[baseline.name], trials[run.name])
    equal = must_be_equal(baseline, run)
    # Texts that had to be the same, and are, leave no doubt.
    if not (equal and against["exact_match"].value == 1.0):
        for name in base.ratios.keys() & set(COUNTED) & measured.keys():
            measured[name] = _counted(measured[name], base.ratios[name], figures.ratios[name])
    verdicts = judge(run.name, measured, study.job.limits, equal=equal)
    return RunResult(
        run.name, measured, figures.faults, tuple(verdicts), tuple(cells), equal,
        rounding(baseline, run),
    )  # fmt: skip


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
            own = share(ratio.numerators) if name in COUNTED else None
            own = own or percentiles(value, draws[name], entities)
            found[name] = Measured(own, samples=entities)
    return found


def _counted(own: Measured, before: Ratio, after: Ratio) -> Measured:
    """A measure that counts texts, with the doubt that no resample shows."""
    drawn = own.change or Estimate(0.0)
    return replace(own, change=share_change(before.numerators, after.numerators, drawn))


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
    after, entities = own.value.value if own.value else before, own.samples or 0
    return Measured(
        own.value,
        percentiles(after - before, change, entities),
        percentiles(after / before - 1, relative, entities) if before else None,
        own.samples,
    )
