"""Drafts of a head and of another drafter, in one tree under one budget, while the head's looks
bring more tokens than their time is worth."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from draftrec.core import (
    EMPTY_TREE,
    HEAD,
    DoubleArray,
    Drafter,
    DraftTree,
    IntArray,
    LongArray,
    SequenceProxy,
    SequenceView,
    Verdict,
)
from draftrec.engine import sampling
from draftrec.engine.learned import growth
from draftrec.engine.learned.growth import NOT_DRAWN, Drawn, Growth
from draftrec.engine.learned.head import HeadPasses
from draftrec.engine.learned.rules import ScoreRules, SeenTokens
from draftrec.engine.packing import Segment
from draftrec.engine.target import Target
from draftrec.engine.tree import certain

# What one observation of a level keeps of those before, and what the first estimate counts for:
# half of what a level could bring.
_KEPT, _PRIOR = 0.98, 4.0
# What is kept of both when a rest is over.
_DOUBT = 0.1
# A look is dearer than usual where the head has yet to read a prompt, or all that was written while
# it rested. A step pays this share of what was spent so: a text has about so many steps.
_SHARE = 1 / 64
# Texts times steps after which a trial is judged, and for which the head rests then at first and at
# most: each trial that did not pay doubles the rest.
_TRIAL, _REST, _LONGEST_REST = 192, 192, 12_288
# Tokens lost in a trial that end it.
_LOSS = 8.0
# The first look at so many compiles what it runs, and the next ones lay out memory: the least of so
# many is believed.
_LEAST = 3
# Looks at 2^n to 2^(n + 1) - 1 sequences at once are timed apart.
_SIZES = 16


class Worth:
    """Counts, level by level, what a head brings and takes; `rate(n)`: tokens per second of `n`
    sequences lately, at which its time is counted.

    Of each level: `mass`, the probability that texts would come by the nodes that it looked at,
    summed; `brought`, the tokens accepted that it alone proposed. A level is looked at while it
    pays by itself. The head as a whole is judged by trials, long enough for what it reads once per
    text to be spread over the text; it rests between those that do not pay.
    """

    def __init__(self, levels: int, rate: Callable[[int], float]) -> None:
        self.rate = rate
        self.mass, self.brought = np.zeros(levels), np.zeros(levels)
        self._seconds = np.zeros((levels, _SIZES))
        self._seen = np.zeros((levels, _SIZES), np.int64)
        self._debt = self._spent = self._balance = 0.0
        self._trial, self._rested, self._rest = 0, 0, _REST
        self.resting = self._looked = False

    def rests(self, sequences: int) -> bool:
        """Is the head left out of this step of so many sequences, since it did not pay?"""
        if self.resting:
            self._rested += sequences
            if self._rested > self._rest:
                self._wake()
        return self.resting

    def pays(self, level: int, mass: float, sequences: int) -> bool:
        """Is a look at nodes of so much probability worth its time?"""
        share = (self.brought[level] + 0.5 * _PRIOR) / (self.mass[level] + _PRIOR)
        return mass * share >= self.rate(sequences) * self.seconds(level, sequences)

    def seconds(self, level: int, sequences: int) -> float:
        """What a look usually takes; 0 as long as few have been seen."""
        known = np.flatnonzero(self._seen[level] >= _LEAST)
        if not len(known):
            return 0.0
        nearest = known[np.abs(known - _size(sequences)).argmin()]
        return float(self._seconds[level, nearest])

    def looked(
        self, level: int, mass: float, seconds: float, sequences: int, *, behind: bool = False
    ) -> None:
        """Note what a look took; `behind`: it was at more than the tokens of one step as well.
        Undisturbed looks count: others last as long as it pleases the machine."""
        usual = self.seconds(level, sequences)
        if behind:
            self._debt += max(0.0, seconds - usual)
        else:
            size = _size(sequences)
            known, seen = self._seconds[level, size], self._seen[level, size]
            most = seconds if not seen else known if seen < _LEAST else 1.05 * known
            self._seconds[level, size] = min(seconds, most)
            self._seen[level, size] += 1
        self._spent += min(seconds, usual)
        self._looked = True
        self.mass[level] = _KEPT * self.mass[level] + mass
        self.brought[level] *= _KEPT

    def settle(self, accepted: Seq[IntArray], sequences: int) -> None:
        """Count the accepted nodes by level (-1: not the head's), of so many sequences that were
        drafted for, and judge a trial that is over."""
        levels = np.concatenate([*accepted, np.empty(0, np.int32)])
        counts = np.bincount(levels[levels >= 0], minlength=len(self.brought))
        self.brought += counts
        paid = _SHARE * self._debt
        self._debt -= paid
        self._balance += counts.sum() - self.rate(sequences) * (self._spent + paid)
        self._trial += sequences
        if self._trial >= _TRIAL or self._balance < -_LOSS or not self._looked:
            self._judge()
        self._spent, self._looked = 0.0, False

    def _judge(self) -> None:
        self.resting = self._balance < 0 or not self._looked
        self._rest = min(2 * self._rest, _LONGEST_REST) if self.resting else _REST
        self._balance = max(0.5 * self._balance, 0.0)
        self._rested = self._trial = 0

    def _wake(self) -> None:
        """Begin a trial, in doubt of what was learnt before."""
        self.resting, self._debt = False, 0.0
        self.mass *= _DOUBT
        self.brought *= _DOUBT


def _size(sequences: int) -> int:
    return min(max(sequences, 1).bit_length() - 1, _SIZES - 1)


#: Tokens of the head's that are looked at below a node, and nodes that it looks at in a level.
BRANCHES, WIDTH = 8, 8
# Likely tokens of the head's among which the noise of a sampled text chooses those.
_CANDIDATES = 64
# A step seldom writes more tokens of a text than this.
_STEP = 16
# So many times as many nodes are asked of the other drafter before the noise chooses among them.
_MORE = 2
PLAIN = ScoreRules()


class HeadDrafter:
    """Draws the head's tokens into the trees of `inner`, level by level, best first.

    A level is a pass of the head over the likeliest nodes so far, whosever they are; `levels` of
    them at most in a step. `tokens` int64 `[V]`: the draft tokens. `weights` as in `growth`. Texts
    of which nothing is written yet, prompts under way, are drafted by `inner` alone.
    `rules`: what is done to the target's scores, and so to the head's. Where texts are sampled,
    both estimates are joined as if nobody knew the noise, which then chooses among what they say.
    With a `worth`, levels are looked at while they bring more tokens than their time would without
    them; the same of the head as a whole. `set_aside` is told the seconds that the head's part of a
    draft took.
    """

    def __init__(  # noqa: PLR0913
        self,
        inner: Drafter,
        passes: HeadPasses,
        target: Target,
        tokens: LongArray,
        levels: int,
        weights: DoubleArray | None = None,
        worth: Worth | None = None,
        rules: ScoreRules = PLAIN,
        set_aside: Callable[[float], None] | None = None,
    ) -> None:
        self.inner, self.passes, self.target = inner, passes, target
        self.worth, self.set_aside = worth, set_aside
        self.levels = levels
        self.weights = growth.default_weights(levels) if weights is None else weights
        self._tokens = tokens.astype(np.int32)
        vocabulary = max(int(tokens.max()) + 1, target.model.config.get_text_config().vocab_size)
        self._known = np.full(vocabulary, -1, np.int32)
        self._known[tokens] = np.arange(len(tokens), dtype=np.int32)
        self.rules = rules
        self._seen = SeenTokens(self._known, len(tokens)) if rules.penalises else None
        self._rows: dict[int, int] = {}
        self._drawn: dict[int, _Drawn] = {}
        self._views: dict[int, _View] = {}

    def start(self, sequence: SequenceView) -> None:
        """Tell the inner drafter; the head has no row of the text yet."""
        self._rows[id(sequence)] = 0
        self._views[id(sequence)] = _View(sequence)
        self.inner.start(self._views[id(sequence)])

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        """One tree per sequence, at most `limit` nodes and `depth` levels."""
        self._drawn = {}  # of a pass that was given up
        able = [i for i, s in enumerate(batch) if _is_followed(s)]
        able = _alike(able, batch)
        levels = min(self.levels, depth)
        if not (able and levels) or (self.worth and self.worth.rests(len(able))):
            return self._others(batch, limit, depth)
        chosen = [batch[i] for i in able]
        sampled = any(s.noise is not None for s in chosen)
        trees = self._others(chosen, limit * _MORE if sampled else limit, depth, blind=True)
        began = time.perf_counter()
        grown = iter(self._grown(chosen, trees, limit, levels))
        if self.set_aside:
            self.set_aside(time.perf_counter() - began)
        if len(able) == len(batch):
            return list(grown)
        left = iter(self._others([s for i, s in enumerate(batch) if i not in able], limit, depth))
        return [next(grown) if i in able else next(left) for i in range(len(batch))]

    def _others(
        self, batch: Seq[SequenceView], limit: int, depth: int, *, blind: bool = False
    ) -> list[DraftTree]:
        """What the inner drafter draws; `blind`: without the noise of sampled texts."""
        views = [self._views[id(s)] for s in batch]
        for view in views:
            view.blind = blind
        return self.inner.draft(views, limit, depth)

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        """Tell the inner drafter, and count what the head brought."""
        self.inner.observe([self._views[id(s)] for s in batch], verdicts)
        if self.worth and self._drawn:
            pairs = zip(batch, verdicts, strict=True)
            found = [(d, v) for q, v in pairs if (d := self._drawn.get(id(q)))]
            self.worth.settle([d.by_level[v.path] for d, v in found if len(v.path)], len(found))
        self._drawn = {}

    def stop(self, sequence: SequenceView) -> None:
        """Tell the inner drafter, and forget the sequence."""
        del self._rows[id(sequence)]
        if self._seen:
            self._seen.stop(sequence)
        self.inner.stop(self._views.pop(id(sequence)))

    def _grown(
        self, batch: Seq[SequenceView], trees: Seq[DraftTree], limit: int, levels: int
    ) -> list[DraftTree]:
        most = max(map(len, trees)) + BRANCHES * (1 + WIDTH * (levels - 1))
        grown, drawn_by = Growth.room(len(batch), most), _drawn_by(batch)
        for b, tree in enumerate(trees):
            growth.plant(grown, b, tree.token_ids, tree.parents, tree.probs, tree.sources, drawn_by)
        self._reserve(levels)
        below = [_Below(EMPTY_TREE, self._start(s)) for s in batch]
        rows = np.stack([np.arange(len(batch)), np.full(len(batch), -1)], 1)
        mass = float(len(batch))
        for level in range(levels):
            if not len(rows) or (self.worth and not self.worth.pays(level, mass, len(batch))):
                break
            began = time.perf_counter()
            segments = [b.segment(s) for b, s in zip(below, batch, strict=True) if b.asks]
            behind = any(len(b.pending) > _STEP for b in below)
            self._look(grown, segments, rows, level, batch, drawn_by)
            rows = self._choose(grown, below, limit, levels)
            if self.worth:
                seconds = time.perf_counter() - began
                self.worth.looked(level, mass, seconds, len(batch), behind=behind)
            mass = float(grown.probs[rows[:, 0], rows[:, 1]].sum())
        for sequence in batch:
            self._rows[id(sequence)] = len(sequence.context)
        drawn = [_drawn(grown, b, limit) for b in range(len(batch))]
        self._drawn = {id(s): d for s, d in zip(batch, drawn, strict=True)}
        return [d.tree for d in drawn]

    def _start(self, sequence: SequenceView) -> IntArray:
        """Tokens of the text that the head has no rows of."""
        done = self._rows[id(sequence)]
        return sequence.context[min(done, len(sequence.context) - 1) :]

    def _reserve(self, levels: int) -> None:
        slab = self.target.slab
        assert slab is not None
        nodes = WIDTH * levels
        self.passes.reserve(slab.slots, slab.capacity + nodes, nodes)

    def _look(
        self, grown: Growth, segments: Seq[Segment], rows: LongArray, level: int,
        batch: Seq[SequenceView], drawn_by: Drawn,
    ) -> None:  # fmt: skip
        """Ask the head about `rows` `[n, 2]`, and give them their children."""
        slab = self.target.slab
        assert slab is not None
        assert slab.features is not None
        scores = self.passes.score(segments, slab.features).float()
        had = self._seen.rows(batch, grown, rows) if self._seen else (None, None)
        logits = self.rules(scores, *(x if x is None else x.to(scores.device) for x in had))
        asked = torch.from_numpy(growth.questions(grown, rows, self._known)).to(logits.device)
        total = sampling.log_sum_exp(logits)[:, None]
        best, ids = self._best(logits, grown, rows, drawn_by)
        own = (logits[asked[:, 0], asked[:, 1]] - total[asked[:, 0], 0]).exp()
        found = torch.cat([(best - total).exp().double().flatten(), own.double()]).cpu().numpy()
        many = best.numel()
        growth.join(
            grown, rows, self._known, self._tokens[ids.cpu().numpy()],
            found[:many].reshape(best.shape), found[many:], self.weights, (HEAD, level), drawn_by,
        )  # fmt: skip

    def _best(
        self, logits: torch.Tensor, grown: Growth, rows: LongArray, drawn_by: Drawn
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and draft tokens `[n, k]` of what the head proposes below the `rows`: the
        likeliest, and where texts are sampled those of the likely ones that the noise favours."""
        if not len(drawn_by.noise):
            return logits.topk(min(BRANCHES, logits.shape[-1]), -1)
        best, ids = logits.topk(min(_CANDIDATES, logits.shape[-1]), -1)
        b, node = rows.T
        depth = np.where(node < 0, 0, grown.depths[b, node] + 1)
        where = np.stack([drawn_by.noise[b].view(np.int64), drawn_by.start[b] + depth])
        noise, positions = torch.from_numpy(where).to(logits.device)
        tokens = torch.from_numpy(self._tokens[ids.cpu().numpy()]).long().to(logits.device)
        race = best - growth.BELIEF * sampling.log_variables(noise, positions, tokens)
        chosen = race.topk(min(BRANCHES, race.shape[-1]), -1).indices
        return best.gather(-1, chosen), ids.gather(-1, chosen)

    def _choose(self, grown: Growth, below: Seq[_Below], limit: int, levels: int) -> LongArray:
        """Nodes to look at next, int64 `[n, 2]`; none where the head has said all it can."""
        found: list[LongArray] = []
        for b, known in enumerate(below):
            nodes = growth.chosen(grown, b, WIDTH, limit, levels)
            known.add(grown, b, nodes)
            found.append(np.stack([np.full(len(nodes), b), nodes], 1))
        return np.concatenate(found)


class _View(SequenceProxy):
    """A sequence as the inner drafter sees it; `blind`: without the noise that it is drawn by."""

    blind = False

    @property
    def noise(self) -> int | None:
        return None if self.blind else super().noise


def _is_followed(sequence: SequenceView) -> bool:
    """Whether the target has computed all but the last token of a text, and some of it is written:
    how much of a prompt is left to compute is up to its neighbours, as no tree may be."""
    tokens = len(sequence.context)
    begun = tokens > len(sequence.request.prompt_ids)
    return begun and tokens - sequence.computed == 1 < sequence.room


def _alike(places: list[int], batch: Seq[SequenceView]) -> list[int]:
    """Of sampled and greedy texts those that are more, since a pass of the head is for one kind."""
    drawn = [i for i in places if batch[i].noise is not None]
    if 2 * len(drawn) > len(places):
        return drawn
    return [i for i in places if batch[i].noise is None]


def _drawn_by(batch: Seq[SequenceView]) -> Drawn:
    """What the texts of a batch are drawn by; all are, or none is."""
    noise = [s.noise for s in batch if s.noise is not None]
    if not noise:
        return NOT_DRAWN
    start = [len(s.context) - len(s.request.prompt_ids) for s in batch]
    return Drawn(np.array(noise, np.uint64), np.array(start, np.int64))


@dataclass(slots=True)
class _Below:
    """What the head has looked at below a text: `pending` tokens, then a tree, whose last nodes are
    new."""

    tree: DraftTree
    pending: IntArray
    past: int = 0
    asks: bool = True

    def segment(self, sequence: SequenceView) -> Segment:
        start = len(sequence.context) - len(self.pending)
        return Segment(sequence.slot, start, self.pending, self.tree, past=self.past)

    def add(self, grown: Growth, b: int, nodes: LongArray) -> None:
        above = grown.parents[b, nodes]
        parents = np.where(above < 0, -1, grown.looked[b, above]).astype(np.int32)
        self.past, self.asks = len(self.tree), len(nodes) > 0
        self.pending = EMPTY_TREE.token_ids
        self.tree = certain(
            np.concatenate([self.tree.token_ids, grown.tokens[b, nodes]]),
            np.concatenate([self.tree.parents, parents]),
        )


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A tree, and of each node the level at which the head proposed it, int32; -1: it did not."""

    tree: DraftTree
    by_level: IntArray


def _drawn(grown: Growth, b: int, limit: int) -> _Drawn:
    """The `limit` likeliest nodes of a tree."""
    kept = growth.best(grown, b, limit)
    place = np.full(grown.tokens.shape[1] + 1, -1, np.int32)
    place[kept] = np.arange(len(kept), dtype=np.int32)
    tree = DraftTree(
        grown.tokens[b, kept],
        place[grown.parents[b, kept]],
        grown.probs[b, kept].astype(np.float32),
        grown.sources[b, kept].astype(np.uint8),
    )
    return _Drawn(tree, grown.levels[b, kept])
