"""The instruments of a comparison, the same for all of its runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import cast

from draftrec.data.templates import FRAMEWORKS, Side
from draftrec.data.words import BleuTokenizer, bleu_tokenizer, unspaced
from draftrec.evaluate.bootstrap import Bootstrap
from draftrec.evaluate.compare.values import CompareJob
from draftrec.evaluate.texts.grounding import Grounding, ground, read_catalogue, read_prompts
from draftrec.evaluate.texts.quality import (
    Ratio,
    bleu_sample,
    likeness,
    mean_of,
    own_measures,
    run_distinct,
    self_bleu,
)
from draftrec.evaluate.texts.runs import PairedRuns, RunTexts, other_prompts
from draftrec.evaluate.texts.similarity import Similarity, by_tf_idf, by_vectors, read_text_vectors
from draftrec.evaluate.texts.templates import Framework, TextForm

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
        """Counts that nothing is estimated of."""
        missing = self.paired.missing[run.name] / self.paired.total
        other = float(other_prompts(self.paired.baseline, run).mean())
        return {"missing_share": missing, "other_prompts": other}

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
            f"{self.job.seed}; Student's t over seeds",
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
