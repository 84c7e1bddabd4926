"""Acceptance rules: target scores and draft trees in, verdicts out.

The device does what is wide (one argmax, top-k, entropy or draw over all rows of all sequences) and
sends a few numbers per row back in one transfer; the walk over a handful of matching nodes is host
work. Shapes: `P` rows of logits over `V` tokens, those of places that have children; `N` nodes,
whose tokens are asked about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from draftrec.config import AcceptConfig
from draftrec.core import BoolArray, DoubleArray, DraftTree, IntArray, LongArray, Verdict
from draftrec.engine import sampling
from draftrec.engine.sampling import Warping
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.tree import depths


class AcceptanceRule(Protocol):
    """Decides which draft nodes are kept and which token follows them."""

    def accept(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> list[Verdict]:
        """`logits` `[R, V]`: per sequence one row for its last token, then one per node."""
        ...


def own_choices(
    warping: Warping | None,
    batch: Seq[RunningSequence],
    trees: Seq[DraftTree],
    logits: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 `[R]`: the token that the target itself emits after each row, and the scores that it
    is chosen from. Without a `warping` it is the most probable one, else a draw."""
    if warping is None:
        return sampling.greedy(logits), logits
    places = [
        np.concatenate(([0], depths(tree) + 1)) + sequence.new_tokens
        for sequence, tree in zip(batch, trees, strict=True)
    ]
    noise = np.array([sequence.noise for sequence in batch], np.uint64).view(np.int64)
    rows = np.stack([np.repeat(noise, [len(p) for p in places]), np.concatenate(places)])
    where = torch.as_tensor(rows, device=logits.device)
    scores = warping(logits)
    return sampling.draw(scores, where[0], where[1]), scores


def warping_of(config: AcceptConfig) -> Warping | None:
    """How the target's own tokens are drawn; None where they are not (temperature 0)."""
    if config.temperature == 0.0:
        return None
    return Warping(
        temperature=config.temperature,
        top_k=config.sample_top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        typical_p=config.typical_p,
    )


def verdict_of(
    tree: DraftTree, path: list[int], chosen: LongArray, room: int, eos_ids: frozenset[int]
) -> Verdict:
    """Path tokens and the bonus token, cut to `room`; nothing follows an EOS."""
    tokens = [int(t) for t in tree.token_ids[path]] if path else []
    if not tokens or tokens[-1] not in eos_ids:
        tokens.append(int(chosen[path[-1] + 1 if path else 0]))
    return Verdict(np.array(path[:room], np.int32), np.array(tokens[:room], np.int32))


# Stands for log 0 where a threshold of probability is 0.
_LEAST = 1e-300


@dataclass(frozen=True, slots=True)
class Queries:
    """Whether `tokens[i]` may follow the place `at[i]`.

    `logits` float32 `[P, V]` and `totals` `[P]`, their log-sum-exp; `at`, `tokens` int64 `[N]`;
    `log_probs` float32 `[N]`, the log-probability of each token at its place.
    """

    logits: torch.Tensor
    totals: torch.Tensor
    at: torch.Tensor
    tokens: torch.Tensor
    log_probs: torch.Tensor


class Tolerance(Protocol):
    """A rule for tokens that are not the target's own choice."""

    @property
    def window(self) -> int:
        """How many of the target's own choices must follow such a token in the draft."""
        ...

    def allows(self, queries: Queries) -> torch.Tensor:
        """bool `[N]`: may the token stand at its place?"""
        ...


@dataclass(frozen=True, slots=True)
class TopK:
    """Among the `top_k` most probable tokens and more probable than `min_prob`.

    The relaxed verification of DARE (arXiv 2408.05676); `min_prob` is a probability, not a share.
    """

    top_k: int
    min_prob: float
    window: int = 0

    def allows(self, queries: Queries) -> torch.Tensor:
        ids = sampling.most_probable_ids(queries.logits, self.top_k)
        among = (ids[queries.at] == queries.tokens[:, None]).any(-1)
        return among & (queries.log_probs.double() > math.log(max(self.min_prob, _LEAST)))


@dataclass(frozen=True, slots=True)
class Typical:
    """More probable than `min(epsilon, delta * exp(-H))`, H the entropy of the place in nats.

    Typical acceptance of Medusa (arXiv 2401.10774, section 2.3.1): the flatter the distribution,
    the less a token needs. H and the probability are the model's own, at temperature 1.
    """

    epsilon: float
    delta: float
    window: int = 0

    def allows(self, queries: Queries) -> torch.Tensor:
        least = math.log(max(self.delta, _LEAST)) - entropy(queries)
        least = least.clamp(max=math.log(max(self.epsilon, _LEAST)))
        return queries.log_probs.double() > least[queries.at]


@dataclass(frozen=True, slots=True)
class EntropyGate:
    """Any token, where the entropy is at least `gate` of the highest possible, log V, if the
    draft goes on with `window` of the target's own choices.

    FLy (arXiv 2511.22972), its entropy-level gate and its token-level deferred window: if the
    target agrees with what follows, it was another wording and no error. Its authors' code and
    vLLM measure the entropy of the three likeliest tokens in nats instead, so that their 0.3 is a
    far lower gate than 0.3 of log V.
    """

    gate: float
    window: int

    def allows(self, queries: Queries) -> torch.Tensor:
        share = entropy(queries) / math.log(max(queries.logits.shape[-1], 2))
        return share[queries.at] >= self.gate


def make_tolerance(config: AcceptConfig) -> Tolerance:
    """The rule that `config` describes. Raises ValueError for strict, which tolerates nothing."""
    if config.accept == "relaxed":
        return TopK(config.top_k, config.min_prob)
    if config.accept == "typical":
        return Typical(config.epsilon, config.delta)
    if config.accept == "entropy":
        return EntropyGate(config.entropy_gate, config.window)
    raise ValueError(f"{config.accept} acceptance tolerates no other token")


def entropy(queries: Queries) -> torch.Tensor:
    """float64 `[P]`: the entropy of each place's distribution in nats, `total - sum(p * logit)`;
    that of a place whatever other places there are."""
    probs = torch.exp(queries.logits - queries.totals[:, None])
    # An impossible token adds nothing, but 0 times minus infinity would be no number.
    parts = probs * queries.logits.clamp(min=-1e30)
    return queries.totals.double() - parts.sum(-1, dtype=torch.float64)


class Relaxed:
    """Keeps the target's own choices and the deviations that a `Tolerance` lets pass.

    The longest path wins and the bonus token is the target's own (arXiv 2408.05676, relaxed
    verification). On top of any published rule: no path goes past an EOS that is the argmax,
    equally long paths are compared by the model's log-probability, and deviations can be capped per
    text, and kept to tokens that its prompt or the text itself has already: so no draft brings in
    what only somebody else's text is about. Where the tolerance has a window, a path deviates again
    only after as many own choices.
    """

    def __init__(
        self, config: AcceptConfig, eos_ids: frozenset[int], warping: Warping | None = None
    ) -> None:
        self.config, self.eos_ids = config, eos_ids
        self.warping = warping or warping_of(config)
        self._tolerance = make_tolerance(config)
        self._eos = np.array(sorted(eos_ids), np.int64)

    def accept(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> list[Verdict]:
        """Longest path of likely enough tokens, then the target's own next token."""
        choices, table = self._table(batch, trees, logits)
        verdicts: list[Verdict] = []
        row = node = 0
        for sequence, tree in zip(batch, trees, strict=True):
            after, end = row + 1 + len(tree), node + len(tree)
            rows = _Rows(tree, choices[row:after], table[:, node:end])
            path = self._best(sequence, tree, rows)
            plain = verdict_of(tree, path, rows.choices, sequence.room, self.eos_ids)
            nodes = enumerate(plain.path.tolist())
            deviations = tuple((i, rows.lost(n)) for i, n in nodes if not rows.own[n])
            verdicts.append(Verdict(plain.path, plain.token_ids, deviations))
            row, node = after, end
        return verdicts

    def _table(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> tuple[LongArray, DoubleArray]:
        """The target's own choices int64 `[R]`, and float64 `[4, N]`, the nodes of `_Rows`.

        Nothing is asked about rows without children, so only the others are looked at closely.
        """
        parents, tokens = _questions(trees)
        places, at = np.unique(parents, return_inverse=True)
        where, at, tokens = (torch.as_tensor(a, device=logits.device) for a in (places, at, tokens))
        rows = logits[where].float()
        totals = sampling.log_sum_exp(rows)
        log_probs = rows[at, tokens] - totals[at]
        allowed = self._tolerance.allows(Queries(rows, totals, at, tokens, log_probs))
        choices, scores = own_choices(self.warping, batch, trees, logits)
        # No rule takes what a control has forbidden, or what sampling has cut off.
        allowed = allowed & (scores[where[at], tokens] > -torch.inf)
        best = sampling.greedy(rows)
        highest = rows.gather(-1, best[:, None])[:, 0] - totals
        columns = (best[at], highest[at], log_probs, allowed)
        parts = [c.double() for c in (choices, *columns)]
        found = torch.cat(parts).cpu().numpy()
        return found[: len(logits)].astype(np.int64), found[len(logits) :].reshape(4, -1)

    def _best(self, sequence: RunningSequence, tree: DraftTree, rows: _Rows) -> list[int]:
        """The path to the winning node; the empty one where nothing is kept."""
        reached: dict[int, _Reached] = {-1: _START}
        best = -1
        for node in self._likely(sequence, tree, rows).tolist():
            above = reached.get(int(tree.parents[node]))
            if above is None or above.ended or (above.owed and not rows.own[node]):
                continue
            here = self._step(above, tree, rows, node)
            if self._over_cap(sequence, here):
                continue
            reached[node] = here
            if self._better(here, reached[best]):
                best = node
        path: list[int] = []
        while best >= 0:
            path.append(best)
            best = int(tree.parents[best])
        return path[::-1]

    def _likely(
        self, sequence: RunningSequence, tree: DraftTree, rows: _Rows
    ) -> npt.NDArray[np.intp]:
        """Nodes whose token may follow their parent, parents before children."""
        allowed = rows.allowed
        if self.config.deviate_to == "known":
            allowed = allowed & np.isin(tree.token_ids, sequence.context)
        if self.config.eos_guard:
            allowed = allowed & (~self._ends(rows.best) | self._ends(tree.token_ids))
        if self._tolerance.window:
            allowed = allowed & (self._agreed(tree, rows) >= self._tolerance.window)
        return np.flatnonzero(allowed | rows.own)

    def _ends(self, token_ids: IntArray | LongArray) -> BoolArray:
        """Which tokens end a text. There are few that do, so that comparing takes a fifth of what
        `np.isin` takes."""
        return (token_ids[:, None] == self._eos).any(1)

    def _agreed(self, tree: DraftTree, rows: _Rows) -> LongArray:
        """int64 `[n]`: own choices that follow each node in the tree, in a row, EOS at most last.

        A place has one own choice, so that there is one such chain below a node.
        """
        below = np.zeros(len(tree), np.int64)
        for node in np.flatnonzero(rows.own & (tree.parents >= 0)).tolist()[::-1]:
            above = int(tree.parents[node])
            if int(tree.token_ids[above]) not in self.eos_ids:
                below[above] = below[node] + 1
        return below

    def _step(self, above: _Reached, tree: DraftTree, rows: _Rows, node: int) -> _Reached:
        own = bool(rows.own[node])
        return _Reached(
            above.length + 1,
            above.log_prob + float(rows.log_probs[node]),
            above.deviations + (not own),
            above.loss + (0.0 if own else rows.lost(node)),
            ended=int(tree.token_ids[node]) in self.eos_ids,
            owed=max(0, above.owed - 1) if own else self._tolerance.window,
        )

    def _over_cap(self, sequence: RunningSequence, here: _Reached) -> bool:
        most, loss = self.config.max_deviations, self.config.max_loss
        if most is not None and sequence.counts.relaxed_tokens + here.deviations > most:
            return here.deviations > 0
        return loss is not None and here.loss > 0 and sequence.loss + here.loss > loss

    def _better(self, here: _Reached, best: _Reached) -> bool:
        if here.length != best.length or self.config.tie_break == "first":
            return here.length > best.length
        return here.log_prob > best.log_prob


@dataclass(frozen=True, slots=True)
class _Reached:
    """A node that verification reached: path length, log-probability, deviations, loss; `owed`
    own choices must come before the next deviation."""

    length: int
    log_prob: float
    deviations: int
    loss: float
    ended: bool
    owed: int


_START = _Reached(0, 0.0, 0, 0.0, ended=False, owed=0)


class _Rows:
    """One sequence's scores as seen from the host.

    `choices[0]` is the target's own choice after the last token, `choices[i + 1]` after node i. Of
    each node: the argmax at its place and that one's log-probability, `best` and `highest`; its own
    token's log-probability; whether that is `allowed` there, and whether it is the `own` choice.
    """

    def __init__(self, tree: DraftTree, choices: LongArray, table: DoubleArray) -> None:
        self.choices = choices
        self.best = table[0].astype(np.int64)
        self.highest, self.log_probs = table[1], table[2]
        self.allowed = table[3] > 0
        self.own = choices[tree.parents + 1] == tree.token_ids

    def lost(self, node: int) -> float:
        """Nats of log-probability that the node's token gives up."""
        return max(0.0, float(self.highest[node]) - float(self.log_probs[node]))


def _questions(trees: Seq[DraftTree]) -> tuple[LongArray, LongArray]:
    """Of all nodes, int64 `[N]` each: the row that scored the node's place, and its token."""
    rows: list[LongArray] = []
    row = 1
    for tree in trees:
        rows.append(tree.parents.astype(np.int64) + row)
        row += 1 + len(tree)
    tokens = np.concatenate([tree.token_ids for tree in trees]).astype(np.int64)
    return np.concatenate(rows), tokens


def make_rule(
    config: AcceptConfig, eos_ids: frozenset[int], warping: Warping | None = None
) -> AcceptanceRule:
    """The rule that `config` describes. `warping`: how it samples, if not as that says."""
    kind = Strict if config.accept == "strict" else Relaxed
    return kind(config, eos_ids, warping)


class Strict:
    """Lossless: a node is kept only if it is the token the target itself chose at that place.

    Temperature 0: the argmax, so the text is the model's greedy text. Otherwise the target draws
    from its warped distribution (temperature, top-p and so on) at every node and the walk follows
    the child that matches the draw: every emitted token is a draw from the target given its prefix.
    """

    def __init__(
        self, config: AcceptConfig, eos_ids: frozenset[int], warping: Warping | None = None
    ) -> None:
        self.config, self.eos_ids = config, eos_ids
        self.warping = warping or warping_of(config)

    def accept(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> list[Verdict]:
        """Longest path of the target's own choices, then its next choice."""
        choices = own_choices(self.warping, batch, trees, logits)[0].cpu().numpy()
        return self.verdicts(batch, trees, choices)

    def verdicts(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], choices: LongArray
    ) -> list[Verdict]:
        """The same from `choices` int64 `[R]`: what the target emits after each row of logits."""
        verdicts: list[Verdict] = []
        row = 0
        for sequence, tree in zip(batch, trees, strict=True):
            chosen = choices[row : row + 1 + len(tree)]
            path = _follow(tree, chosen, self.eos_ids)
            verdicts.append(verdict_of(tree, path, chosen, sequence.room, self.eos_ids))
            row += 1 + len(tree)
        return verdicts


def _follow(tree: DraftTree, chosen: LongArray, eos_ids: frozenset[int]) -> list[int]:
    """The path of nodes that equal the choice of their parent's row."""
    path: list[int] = []
    if not len(tree):
        return path
    tail = -1
    for node in np.flatnonzero(tree.token_ids == chosen[tree.parents + 1]).tolist():
        if int(tree.parents[node]) == tail:
            path.append(node)
            tail = node
            if int(tree.token_ids[node]) in eos_ids:
                break
    return path
