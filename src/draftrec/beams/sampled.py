"""Sampled beams without replacement, exactly: noise that target and draft model share.

Stochastic beam search (Kool et al., arXiv 1903.06059): give every item its log-probability plus
Gumbel noise, and the K largest are a sample without replacement. The largest value below a prefix
can be drawn before the items are known, so a beam search over perturbed scores finds them. Here the
noise of a prefix is a function of the seed, the user and the prefix alone. A draft model therefore
sees the same noise, its drafts are good guesses, and the strict check on perturbed scores keeps the
target's own sample: nothing is relaxed.
"""

from __future__ import annotations

import numpy as np

from draftrec.beams.scored import Scored, log_sums, peaks, ragged
from draftrec.beams.state import Kept, Spread
from draftrec.beams.tree import mixed
from draftrec.core import DoubleArray, IntArray, LongArray


def sampled(seed: int, temperature: float = 1.0) -> Spread:
    """A `Spread` that samples from the model's distribution over legal items at `temperature`.

    Log-probabilities are renormalised over legal tokens, since a sample is one of legal items;
    scores are those log-probabilities summed, `noise` the perturbed ones (equations 8 to 10 and
    appendix B.3 of the paper).
    """

    def spread(scored: Scored, kept: Kept) -> tuple[LongArray, DoubleArray, DoubleArray]:
        spans = scored.spans_of(kept.nodes)
        counts, at = spans[:, 1] - spans[:, 0], ragged(spans)
        if not len(at):
            return spans, np.empty(0), np.empty(0)
        beams = np.repeat(np.arange(len(counts)), counts)
        log_probs = scored.log_probs[at].astype(np.float64) / temperature
        scores = kept.scores[beams] + log_probs - log_sums(log_probs, counts)[beams]
        raw = scores + _gumbel(scored, kept, beams, scored.tokens[at], seed)
        return spans, scores, _conditioned(raw, kept.noise[beams], peaks(raw, counts)[beams])

    return spread


def _conditioned(raw: DoubleArray, wanted: DoubleArray, peak: DoubleArray) -> DoubleArray:
    """Perturbed scores given that the largest of their beam, now `peak`, has to be `wanted`."""
    with np.errstate(divide="ignore"):
        v = wanted - raw + np.log1p(-np.exp(raw - peak))
    return wanted - np.maximum(0.0, v) - np.log1p(np.exp(-np.abs(v)))


def _gumbel(
    scored: Scored,
    kept: Kept,
    beams: LongArray,
    tokens: IntArray,
    seed: int,
) -> DoubleArray:
    """Standard Gumbel noise of the prefixes that `tokens` make of the beams."""
    above = np.where(kept.nodes < 0, np.uint64(0), scored.tree.hashes[kept.nodes])
    user = np.array([seed % 2**32, scored.request.key % 2**32])
    start = mixed(mixed(np.zeros(1, np.uint64), user[:1]), user[1:])
    hashes = mixed(above[beams] ^ start, tokens)
    uniforms = ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniforms))
