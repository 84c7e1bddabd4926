"""How texts are, and how like another run's: one number per text, so that all can be paired.

Every measure is a `Ratio`: numerators and denominators per text, whose sums divided are the run's
value. Means, rates and shares all have this form, and one bootstrap over entities serves them all.
Tokens are the model's own, without EOS unless it says otherwise: no language is favoured. How near
texts stay in meaning is told by cosines of vectors or of TF-IDF.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from draftrec.core import DoubleArray, IntArray, LongArray
from draftrec.data.files.places import Place
from draftrec.data.vectors import read_vectors, unit
from draftrec.data.words import BleuTokenizer, bleu_tokenizer, features
from draftrec.errors import DraftrecError, needing
from draftrec.evaluate.compare.runs import RunTexts

#: Self-BLEU compares this many texts with this many others each: its cost is their product.
BLEU_TEXTS, BLEU_REFERENCES = 100, 20
#: Loops repeat phrases: four tokens in a row are rarely written twice in a good text.
REPEATED = 4


@dataclass(frozen=True, eq=False, slots=True)
class Ratio:
    """`sum(numerators) / sum(denominators)`, both float64 `[n]`, one entry per text."""

    numerators: DoubleArray
    denominators: DoubleArray

    @property
    def value(self) -> float | None:
        """The ratio over all texts; None where nothing could be measured."""
        below = float(self.denominators.sum())
        return float(self.numerators.sum()) / below if below else None


def mean_of(values: npt.ArrayLike) -> Ratio:
    """The mean over all texts of one number each."""
    numerators = np.asarray(values, np.float64)
    return Ratio(numerators, np.ones(len(numerators)))


def mean_where(values: npt.ArrayLike, defined: npt.ArrayLike) -> Ratio:
    """The mean over the texts for which the number is defined."""
    known = np.asarray(defined, np.float64)
    return Ratio(np.asarray(values, np.float64) * known, known)


@dataclass(frozen=True, eq=False, slots=True)
class NGrams:
    """The n-grams of a list of texts as numbers: `codes` int64 `[m]`, equal where the n-grams are;
    `owners` int64 `[m]`, which of the `texts` texts each is of."""

    codes: LongArray
    owners: LongArray
    texts: int

    @property
    def distinct(self) -> float | None:
        """Different n-grams over all n-grams (distinct-n, Li et al., arXiv 1510.03055)."""
        return len(np.unique(self.codes)) / len(self.codes) if len(self.codes) else None

    def counts(self) -> tuple[DoubleArray, DoubleArray]:
        """Different n-grams and n-grams of each text, float64 `[texts]` both."""
        size = int(self.codes.max(initial=0)) + 1
        own = np.unique(self.owners * size + self.codes) // size
        found = (np.bincount(x, minlength=self.texts) for x in (own, self.owners))
        different, all_ = (np.asarray(x, np.float64) for x in found)
        return different, all_


def ngrams(texts: Seq[IntArray], n: int) -> NGrams:
    """All n-grams of `texts` (int32 token arrays); a text shorter than `n` has none."""
    owners = np.repeat(np.arange(len(texts), dtype=np.int64), [len(t) for t in texts])
    flat = np.concatenate([np.empty(0, np.int32), *texts]).astype(np.int64)
    letters = np.unique(flat, return_inverse=True)[1].astype(np.int64)
    base = int(letters.max(initial=0)) + 1
    codes, own = letters, owners
    for k in range(1, n):
        # Codes are numbered anew at each length, so that their product with `base` stays small.
        codes = np.unique(codes[:-1] * base + letters[k:], return_inverse=True)[1].astype(np.int64)
        own = own[:-1]
    inside = own == owners[n - 1 :] if n > 1 else np.ones(len(owners), np.bool_)
    return NGrams(codes[inside], own[inside], len(texts))


def own_measures(run: RunTexts) -> dict[str, Ratio]:
    """What a run is like by itself: length, EOS rate, texts that two entities have, variety and
    repetition within texts."""
    bodies = run.bodies
    written = Counter(ids.tobytes() for ids in bodies)
    found = {
        "new_tokens": mean_of(run.lengths),
        "eos_rate": mean_of(run.ended),
        "copied_texts": mean_of([written[ids.tobytes()] > 1 for ids in bodies]),
    }
    for n in (1, 2, 3):
        different, all_ = ngrams(bodies, n).counts()
        found[f"text_distinct_{n}"] = mean_where(different / np.maximum(all_, 1), all_ > 0)
    different, all_ = ngrams(bodies, REPEATED).counts()
    found["repetition"] = Ratio(all_ - different, all_)
    if run.relaxed_tokens is not None:
        found["relaxed_share"] = Ratio(
            run.relaxed_tokens.astype(np.float64), run.lengths.astype(np.float64)
        )
    return found


def run_distinct(run: RunTexts) -> dict[str, float | None]:
    """distinct-1, -2 and -3 over the whole run. It falls with the number of texts, so only runs
    over the same entities can be compared by it."""
    return {f"distinct_{n}": ngrams(run.bodies, n).distinct for n in (1, 2, 3)}


def likeness(baseline: RunTexts, run: RunTexts) -> dict[str, Ratio]:
    """How much of the baseline's token sequences is kept, EOS included.

    `exact_match`: equal from the first token to the last. `common_prefix`: tokens until the first
    difference over the longer text's; 1 only for equal texts.
    """
    prefixes = [_prefix(a, b) for a, b in zip(baseline.token_ids, run.token_ids, strict=True)]
    longest = np.maximum(baseline.lengths, run.lengths)
    equal = np.array(prefixes) == longest
    shares = np.where(longest > 0, np.array(prefixes) / np.maximum(longest, 1), 1.0)
    return {"exact_match": mean_of(equal), "common_prefix": mean_of(shares)}


def _prefix(a: IntArray, b: IntArray) -> int:
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter


@dataclass(frozen=True, eq=False, slots=True)
class BleuSample:
    """Which texts are scored, int64 `[s]`, and the texts that each is compared with,
    int64 `[s, r]`: the same of every run, so that scores are paired."""

    texts: LongArray
    references: LongArray


def bleu_sample(
    n: int, seed: int, texts: int = BLEU_TEXTS, references: int = BLEU_REFERENCES
) -> BleuSample:
    """Draw at most `texts` of `n` entities, and for each at most `references` others."""
    rng = np.random.default_rng(seed)
    picked = np.sort(rng.permutation(n)[:texts])
    others = min(references, n - 1)
    # Places among the n - 1 other texts; those from the text itself on move up by one.
    drawn = [np.sort(rng.permutation(n - 1)[:others]) for _ in picked]
    places = np.array(drawn, np.int64).reshape(len(picked), others)
    return BleuSample(picked, places + (places >= picked[:, None]))


def self_bleu(texts: Seq[str], sample: BleuSample, tokenizer: BleuTokenizer | None = None) -> Ratio:
    """Self-BLEU (Zhu et al., arXiv 1802.01886): each sampled text's BLEU-4 against others of the
    same run, 0 to 1. High means that texts of different entities are alike. `tokenizer`:
    sacrebleu's; None for that of the texts' scripts.

    Raises DraftrecError where sacrebleu is not installed.
    """
    with needing("compare", "self-BLEU needs sacrebleu"):
        from sacrebleu.metrics.bleu import BLEU
    bleu = BLEU(effective_order=True, tokenize=tokenizer or bleu_tokenizer(texts))
    scores, scored = np.zeros(len(texts)), np.zeros(len(texts))
    for row, others in zip(sample.texts, sample.references, strict=True):
        if not len(others):
            continue
        references = [texts[int(i)] for i in others]
        scores[row] = bleu.sentence_score(texts[int(row)], references).score / 100
        scored[row] = 1
    return Ratio(scores, scored)


#: Texts that differ from strangers' by less than this, on average, are all alike.
_NO_ROOM = 1e-6


@dataclass(frozen=True, eq=False, slots=True)
class Similarity:
    """float64 `[n]` both. `cosines`: each text with the baseline's text of the same entity;
    `strangers`: the same text with the baseline's texts of all others, on average."""

    cosines: DoubleArray
    strangers: DoubleArray

    @property
    def kept(self) -> Ratio:
        """`(cosine - strangers) / (1 - strangers)`, of sums: 1 as the baseline's own text, 0 as
        near to any other entity's. It means the same with every encoder, which the bare cosine does
        not: encoders find all texts of one kind alike. Nothing is measured where all are equal."""
        room = 1.0 - self.strangers
        if room.sum() < _NO_ROOM * len(room):
            return mean_where(room, np.zeros(len(room)))
        return Ratio(self.cosines - self.strangers, room)


def by_vectors(baseline: DoubleArray, run: DoubleArray) -> Similarity:
    """Cosines of vectors float64 `[n, d]`, rows in one order; a zero vector is like nothing."""
    a, b = unit(baseline), unit(run)
    own = np.clip((a * b).sum(axis=1), -1.0, 1.0)
    return Similarity(own, _strangers(b @ a.sum(axis=0), own))


def by_tf_idf(baseline: Seq[str], run: Seq[str]) -> Similarity:
    """Cosines of TF-IDF over words, fitted on these two lists; over characters and pairs of them in
    scripts without spaces. Words alone: a paraphrase counts as a change, so prefer vectors of an
    encoder where there is one."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    equal = np.array([a == b for a, b in zip(baseline, run, strict=True)])
    options: dict[str, Any] = {"analyzer": features, "sublinear_tf": True}
    vectorizer: Any = TfidfVectorizer(**options)
    try:
        vectorizer.fit([*baseline, *run])
    except ValueError:  # not one word in all texts
        return Similarity(equal.astype(np.float64), np.zeros(len(equal)))
    a, b = (vectorizer.transform(texts) for texts in (baseline, run))
    dots = np.asarray(a.multiply(b).sum(axis=1), np.float64).ravel()
    own = np.where(equal, 1.0, np.clip(dots, 0.0, 1.0))
    sums = np.asarray(a.sum(axis=0), np.float64).ravel()
    return Similarity(own, _strangers(b @ sums, dots))  # equal texts without a word add nothing


def read_text_vectors(path: str | Place, entity_ids: Seq[str]) -> DoubleArray:
    """The vectors that `draftrec encode` wrote, float64 `[n, d]` in the order of `entity_ids`.

    Raises DraftrecError as `read_vectors` does, and for entities without one.
    """
    found = read_vectors(path)
    places = {entity: place for place, entity in enumerate(found.ids)}
    absent = [e for e in entity_ids if e not in places]
    if absent:
        raise DraftrecError(
            f"{path} lacks the vectors of {len(absent)} entities (the first is {absent[0]!r}); "
            "encode the whole run"
        )
    return found.vectors[[places[e] for e in entity_ids]].astype(np.float64)


def check_one_encoder(paths: Mapping[str, Place], vectors: Mapping[str, DoubleArray]) -> None:
    """Raise DraftrecError for vectors of the runs that lie in no common space: of other lengths,
    or of other encoders, as far as the manifests beside them say; a `hashed` one that was fitted on
    other texts is another."""
    first, *others = paths
    for name in others:
        a, b = ((vectors[run].shape[1], *(_encoder_of(paths[run]) or ())) for run in (first, name))
        if a[: len(b)] != b[: len(a)]:
            raise DraftrecError(
                f"the vectors of {first} and {name} are of two encoders, so that cosines between "
                "them mean nothing; encode all runs with one and the same settings, a hashed one "
                "with the same --fit-on"
            )


def _encoder_of(path: Place) -> tuple[Any, ...] | None:
    """Fingerprint and pooling, of what `draftrec encode` wrote; None of other files."""
    try:
        manifest = json.loads(path.with_name(f"{path.name}.manifest.json").read_text("utf-8"))
        return manifest["fingerprints"]["encoder"], manifest["pooling"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _strangers(with_all: DoubleArray, own: DoubleArray) -> DoubleArray:
    """Mean cosine with the others, from the sum over all; 0 where there is no other."""
    return np.clip((with_all - own) / max(len(own) - 1, 1), -1.0, 1.0)


_ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval; `low` and `high` are None where none can be had."""

    value: float
    low: float | None = None
    high: float | None = None


class Bootstrap:
    """Entities drawn anew with replacement, `resamples` times, the same draws for every run: what
    one draw changes in both runs cancels out in their difference (a paired bootstrap)."""

    def __init__(self, entities: int, resamples: int, seed: int) -> None:
        self.entities, self.resamples, self.seed = entities, resamples, seed

    def draw(self, ratios: Mapping[str, Ratio]) -> dict[str, DoubleArray]:
        """The value of each ratio on every resample, float64 `[resamples]`; NaN where a resample
        holds no text that it is defined for."""
        columns = [c for r in ratios.values() for c in (r.numerators, r.denominators)]
        sums = self._sums(np.stack(columns, axis=1)) if columns else np.empty((0, 0))
        above, below = sums[:, 0::2], sums[:, 1::2]
        values = np.where(below > 0, above / np.where(below > 0, below, 1.0), np.nan)
        return {name: values[:, i] for i, name in enumerate(ratios)}

    def _sums(self, values: DoubleArray) -> DoubleArray:
        """Column sums of `values` `[n, m]` over each resample: `[resamples, m]`."""
        rng = np.random.default_rng(self.seed)
        found = np.empty((self.resamples, values.shape[1]))
        n = self.entities
        for i in range(self.resamples):
            weights = np.bincount(rng.integers(n, size=n), minlength=n)
            found[i] = weights @ values
        return found


def percentiles(value: float, draws: DoubleArray, entities: int) -> Estimate:
    """`value` with the interval of its bootstrap draws of so many `entities`; without one where
    draws are undefined, or all of one entity.

    Draws of few entities spread too little; the percentiles are moved out by as much as makes a
    mean's interval Student's (the expanded percentile interval, Hesterberg, arXiv 1411.5279).
    """
    if entities < 2 or len(draws) < 2 or not np.isfinite(draws).all():
        return Estimate(value)
    from scipy.special import ndtr, stdtrit

    wider = np.sqrt(entities / (entities - 1))
    tail = 100.0 * float(ndtr(stdtrit(entities - 1, _ALPHA / 2) * wider))
    low, high = np.percentile(draws, (tail, 100.0 - tail))
    return Estimate(value, float(low), float(high))


#: Measures that count texts, each 0 or 1. Where hardly a text or nearly every one counts, all draws
#: of a bootstrap are alike, as if there were no doubt; these have intervals of closed form.
COUNTED = ("eos_rate", "copied_texts", "template_valid")
_Z = 1.959964


def share(counted: DoubleArray) -> Estimate:
    """The share of texts that count, float64 `[n]` of 0 and 1, with Wilson's interval."""
    n, found = len(counted), float(counted.mean())
    middle = found + _Z**2 / (2 * n)
    half = _Z * np.sqrt(found * (1 - found) / n + _Z**2 / (4 * n**2))
    low, high = (float(end) / (1 + _Z**2 / n) for end in (middle - half, middle + half))
    return Estimate(found, max(0.0, min(found, low)), min(1.0, max(found, high)))


def share_change(before: DoubleArray, after: DoubleArray, drawn: Estimate) -> Estimate:
    """How the share of the same texts differs, with an interval as wide as a bootstrap's, `drawn`,
    and as that of Agresti and Min (Statistics in Medicine 24, 2005), as if half a text more had
    changed either way: the one does not see what no text happened to do, the other makes less of
    what many did.
    """
    n = len(before) + 2
    gained, lost = (float((a > b).sum()) + 0.5 for a, b in ((after, before), (before, after)))
    change, middle = float((after - before).mean()), (gained - lost) / n
    half = _Z * float(np.sqrt(gained + lost - n * middle**2)) / n
    ends = [change, middle - half, middle + half, drawn.low, drawn.high]
    known = [end for end in ends if end is not None]
    return Estimate(change, max(-1.0, min(known)), min(1.0, max(known)))
