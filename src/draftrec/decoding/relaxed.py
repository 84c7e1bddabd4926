"""Relaxed acceptance: the longest path of the target's own choices and of tolerated deviations."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from draftrec.config import AcceptConfig
from draftrec.core import DoubleArray, DraftTree, LongArray, Verdict
from draftrec.decoding.batch import RunningSequence
from draftrec.decoding.choices import own_choices, verdict_of, warping_of
from draftrec.decoding.tolerance import Queries, make_tolerance
from draftrec.models import sampling
from draftrec.models.warping import Warping


class Relaxed:
    """Keeps the target's own choices and the deviations that a `Tolerance` lets pass.

    The longest path wins and the bonus token is the target's own (arXiv 2408.05676, relaxed
    verification). On top of any published rule: no path goes past an EOS that is the argmax,
    equally long paths are compared by the model's log-probability, and deviations per text can be
    capped. Where the tolerance has a window, a path deviates again only after as many own choices.
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
        totals = rows.logsumexp(-1)
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
        for node in self._likely(tree, rows).tolist():
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

    def _likely(self, tree: DraftTree, rows: _Rows) -> npt.NDArray[np.intp]:
        """Nodes whose token may follow their parent, parents before children."""
        allowed = rows.allowed
        if self.config.eos_guard:
            ends = np.isin(rows.best, self._eos)
            allowed = allowed & (~ends | np.isin(tree.token_ids, self._eos))
        if self._tolerance.window:
            allowed = allowed & (self._agreed(tree, rows) >= self._tolerance.window)
        return np.flatnonzero(allowed | rows.own)

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
