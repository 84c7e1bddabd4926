"""How texts are, and how like another run's: one number per text, so that all can be paired.

Every measure is a `Ratio`: numerators and denominators per text, whose sums divided are the run's
value. Means, rates and shares all have this form, and one bootstrap over entities serves them all.
Tokens are the model's own, without EOS unless it says otherwise: no language is favoured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from draftrec.core import DoubleArray, IntArray, LongArray
from draftrec.data.words import BleuTokenizer, bleu_tokenizer
from draftrec.errors import DraftrecError
from draftrec.evaluate.texts.runs import RunTexts

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
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise DraftrecError(
            'self-BLEU needs sacrebleu; install it with pip install "draftrec[compare]"'
        ) from error
    bleu = BLEU(effective_order=True, tokenize=tokenizer or bleu_tokenizer(texts))
    scores, scored = np.zeros(len(texts)), np.zeros(len(texts))
    for row, others in zip(sample.texts, sample.references, strict=True):
        if not len(others):
            continue
        references = [texts[int(i)] for i in others]
        scores[row] = bleu.sentence_score(texts[int(row)], references).score / 100
        scored[row] = 1
    return Ratio(scores, scored)
