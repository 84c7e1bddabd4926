"""Who decides which beams are kept: the strict check, an exact sample, the published relaxed rule.

*Sampled*: stochastic beam search (Kool et al., arXiv 1903.06059): give every item its
log-probability plus Gumbel noise, and the K largest are a sample without replacement. The largest
value below a prefix can be drawn before the items are known, so a beam search over perturbed scores
finds them. Here the noise of a prefix is a function of the seed, the user and the prefix alone. A
draft model therefore sees the same noise, its drafts are good guesses, and the strict check on
perturbed scores keeps the target's own sample: nothing is relaxed.

*Relaxed*: AtSpeed's relaxed sampling verification, as published (arXiv 2410.05165). The draft model
draws N of all continuations of its beams without replacement; each is accepted with probability
p / q, where p and q are the two models' distributions over these continuations. With K accepted
ones, K of them are kept by lot; with fewer, what is missing is drawn from what p has over q, and
the round ends. This is not sampling from the target: keeping by lot flattens the distribution
(`benchmarks/beam_sampling.py` shows how much). Sampled beams are exact.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from draftrec.core import BoolArray, DoubleArray, IntArray, LongArray
from draftrec.engine.beams.drafters import ModelDrafter
from draftrec.engine.beams.model import BeamModel
from draftrec.engine.beams.pace import Pace
from draftrec.engine.beams.state import (
    Expansion,
    Kept,
    Scored,
    UserSearch,
    grown,
    log_sums,
    mixed,
    peaks,
    pick,
    plain,
    ragged,
)


class BeamRule(Protocol):
    """Decides one level or more of a search that the target has just rated."""

    def decide(self, model: BeamModel, search: UserSearch, width: int) -> None: ...

    def stop(self, search: UserSearch) -> None:
        """Forget a search that ends before it is done."""
        ...


class StrictRule:
    """The target's own beams, level by level, as long as it has rated all that it kept.

    `expand` says by what beams are chosen: summed log-probabilities, or perturbed ones (see
    `sampled`), where the beams are a sample.
    """

    def __init__(self, expand: Expansion = plain) -> None:
        self.expand = expand

    def decide(self, model: BeamModel, search: UserSearch, width: int) -> None:
        while not search.done and model.knows(search.target, search.kept.nodes):
            search.settle(pick(self.expand, search.target, search.kept, width))

    def stop(self, search: UserSearch) -> None:
        """Nothing to forget."""


def sampled(seed: int, temperature: float = 1.0) -> Expansion:
    """An `Expansion` that samples from the model's distribution over legal items at `temperature`.

    Log-probabilities are renormalised over legal tokens, since a sample is one of legal items;
    scores are those log-probabilities summed, `noise` the perturbed ones (equations 8 to 10 and
    appendix B.3 of the paper).
    """

    def expand(scored: Scored, kept: Kept) -> tuple[LongArray, DoubleArray, DoubleArray]:
        spans = scored.spans_of(kept.nodes)
        counts, at = spans[:, 1] - spans[:, 0], ragged(spans)
        if not len(at):
            return spans, np.empty(0), np.empty(0)
        beams = np.repeat(np.arange(len(counts)), counts)
        log_probs = scored.log_probs[at].astype(np.float64) / temperature
        scores = kept.scores[beams] + log_probs - log_sums(log_probs, counts)[beams]
        raw = scores + _gumbel(scored, kept, beams, scored.tokens[at], seed)
        return spans, scores, _conditioned(raw, kept.noise[beams], peaks(raw, counts)[beams])

    return expand


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
    user = np.array([seed % 2**64, scored.request.key % 2**64], np.uint64)
    start = mixed(mixed(np.zeros(1, np.uint64), user[:1]), user[1:])
    hashes = mixed(above[beams] ^ start, tokens)
    uniforms = ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniforms))


@dataclass(frozen=True, eq=False, slots=True)
class Joint:
    """What the draft model drew a level from: its beams above, and the log of their total mass."""

    above: Kept
    log_total: float


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """One verified level: `chosen` int64 `[k]`, continuations; `whole`: were K drafts accepted?"""

    chosen: LongArray
    whole: bool


def verify_level(
    p: DoubleArray, q: DoubleArray, drafted: BoolArray, most: int, random: np.random.Generator
) -> Step:
    """Decide one level. `p` float64 `[c]` sums to 1; `q` `[c]` need not, as a part of the draft's
    continuations hangs from beams that were not kept; `drafted` bool `[c]`."""
    accepted = drafted & (random.random(len(p)) * q <= p) & (p > 0)
    found = np.flatnonzero(accepted)
    if len(found) >= most:
        return Step(np.sort(random.choice(found, most, replace=False)), whole=True)
    left = np.maximum(0.0, p - q)
    left[accepted] = 0.0
    more = draw(left, most - len(found), random)
    if len(found) + len(more) < min(most, int((p > 0).sum())):
        rest = p.copy()  # where q lies above p everywhere, the residual has nothing left to draw
        rest[found], rest[more] = 0.0, 0.0
        extra = draw(rest, most - len(found) - len(more), random)
        more = np.concatenate((more, extra))
    return Step(np.sort(np.concatenate((found, more))), whole=False)


def draw(weights: DoubleArray, most: int, random: np.random.Generator) -> LongArray:
    """At most `most` places int64, without replacement, each next one in proportion to `weights`:
    the largest of log-weights with Gumbel noise."""
    with np.errstate(divide="ignore"):
        noisy = np.log(weights) + random.gumbel(size=len(weights))
    order = np.argsort(-noisy, kind="stable")[:most]
    return order[weights[order] > 0]


class RelaxedDrafter(ModelDrafter):
    """Draws the drafted beams instead of taking the best; an item trie must say what is legal."""

    def __init__(self, model: BeamModel, kept: int, pace: Pace, seed: int) -> None:
        super().__init__(model, kept, pace)
        self.seed = seed
        self._joints: dict[int, list[Joint]] = {}
        self._random: dict[int, np.random.Generator] = {}

    def start(self, search: UserSearch) -> None:
        super().start(search)
        self._joints[search.order] = []
        self._random[search.order] = generator(self.seed, search.request.key, 0)

    def draft(self, running: Seq[UserSearch]) -> None:
        for s in running:
            self._joints[s.order] = []
        super().draft(running)

    def stop(self, search: UserSearch) -> None:
        super().stop(search)
        del self._joints[search.order], self._random[search.order]

    def joints(self, search: UserSearch) -> list[Joint]:
        """What every level of `search.levels` was drawn from."""
        return self._joints[search.order]

    def rated(self, search: UserSearch) -> Scored:
        """The draft model's ratings."""
        return self._users[search.order]

    def _widened(self, s: UserSearch, kept: Kept, inner: int, width: int) -> tuple[Kept, int]:
        scored = self._users[s.order]
        spans, scores, _ = plain(scored, kept)
        total = _log_sum(scores)
        places = draw(np.exp(scores - total), width, self._random[s.order])
        s.complete.append(len(places) == len(scores))
        self._joints[s.order].append(Joint(kept, total))
        return _taken(scored, kept, (spans, scores), places), inner


class RelaxedRule:
    """Accepts drafts by chance, level by level, until one of them has fewer than K accepted ones;
    after the last drafted level K more are drawn from the target."""

    def __init__(self, drafter: RelaxedDrafter) -> None:
        self.drafter = drafter
        self._random: dict[int, np.random.Generator] = {}

    def decide(self, model: BeamModel, search: UserSearch, width: int) -> None:
        random = self._random.setdefault(
            search.order, generator(self.drafter.seed, search.request.key, 1)
        )
        for nodes, joint in zip(search.levels, self.drafter.joints(search), strict=True):
            if search.done or not model.knows(search.target, search.kept.nodes):
                break
            spans, scores, _ = plain(search.target, search.kept)
            p = np.exp(scores - _log_sum(scores))
            drafted = _among(search, spans, nodes)
            step = verify_level(p, self._draft_share(search, joint), drafted, width, random)
            search.settle(_taken(search.target, search.kept, (spans, scores), step.chosen))
            if not step.whole:
                break
        else:
            if not search.done and model.knows(search.target, search.kept.nodes):
                spans, scores, _ = plain(search.target, search.kept)
                chosen = draw(np.exp(scores - _log_sum(scores)), width, random)
                search.settle(_taken(search.target, search.kept, (spans, scores), chosen))
        if search.done:
            self.stop(search)

    def stop(self, search: UserSearch) -> None:
        """Forget the search's random numbers."""
        self._random.pop(search.order, None)

    def _draft_share(self, search: UserSearch, joint: Joint) -> DoubleArray:
        """The draft model's probabilities of what follows the kept beams, out of all it drew from.

        Both models list the same legal tokens in the same order.
        """
        place = {node: i for i, node in enumerate(joint.above.nodes.tolist())}
        theirs = joint.above.scores[[place[node] for node in search.kept.nodes.tolist()]]
        rated = self.drafter.rated(search)
        spans = rated.spans_of(search.kept.nodes)
        return np.exp(rated.summed(spans, theirs) - joint.log_total)


def _among(search: UserSearch, spans: LongArray, nodes: IntArray) -> BoolArray:
    """bool `[c]`: which continuations of the kept beams are among drafted `nodes`."""
    tree, scored = search.tree, search.target
    above = np.repeat(search.kept.nodes, spans[:, 1] - spans[:, 0]).astype(np.int64)
    theirs = above << 32 | scored.tokens[ragged(spans)]
    return np.isin(theirs, tree.parents[nodes].astype(np.int64) << 32 | tree.tokens[nodes])


def _taken(
    scored: Scored, kept: Kept, expanded: tuple[LongArray, DoubleArray], places: LongArray
) -> Kept:
    """The continuations at `places`, best first."""
    spans, scores = expanded
    places = places[np.argsort(-scores[places], kind="stable")]
    beams = np.repeat(np.arange(len(spans)), spans[:, 1] - spans[:, 0])[places]
    chosen = np.stack((beams, ragged(spans)[places], places), axis=1)
    return grown(scored, kept, chosen, (scores, scores))


def _log_sum(scores: DoubleArray) -> float:
    return float(log_sums(scores, np.array([len(scores)]))[0])


def generator(seed: int, key: int, stream: int) -> np.random.Generator:
    """Random numbers of one user, whoever else is there."""
    bits = np.random.Philox(key=np.array([seed % 2**64, (2 * key + stream) % 2**64], np.uint64))
    return np.random.Generator(bits)
