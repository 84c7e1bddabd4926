"""Acceptance rules: target scores and draft trees in, verdicts out.

The device does what is wide (one argmax, top-k or draw over all rows of all sequences) and sends a
few numbers per row back in one transfer; the walk over a handful of matching nodes is host work.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from draftrec.config import AcceptConfig
from draftrec.core import DraftTree, Verdict
from draftrec.decoding.batch import RunningSequence
from draftrec.models import sampling
from draftrec.tokens.tree import depths

LongArray = npt.NDArray[np.int64]
DoubleArray = npt.NDArray[np.float64]


class AcceptanceRule(Protocol):
    """Decides which draft nodes are kept and which token follows them."""

    def accept(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> list[Verdict]:
        """`logits` `[R, V]`: per sequence one row for its last token, then one per node."""
        ...


def make_rule(config: AcceptConfig, eos_ids: frozenset[int]) -> AcceptanceRule:
    """The rule that `config` describes."""
    return Relaxed(config, eos_ids) if config.accept == "relaxed" else Strict(config, eos_ids)


class Strict:
    """Lossless: a node is kept only if it is the token the target itself chose at that place.

    Temperature 0: the argmax, so the text is the model's greedy text. Otherwise the target draws
    from its (temperature, top-p) distribution at every node and the walk follows the child that
    matches the draw: every emitted token is a draw from the target given its prefix.
    """

    def __init__(self, config: AcceptConfig, eos_ids: frozenset[int]) -> None:
        self.config, self.eos_ids = config, eos_ids

    def accept(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> list[Verdict]:
        """Longest path of the target's own choices, then its next choice."""
        choices = own_choices(self.config, batch, trees, logits).cpu().numpy()
        verdicts: list[Verdict] = []
        row = 0
        for sequence, tree in zip(batch, trees, strict=True):
            chosen = choices[row : row + 1 + len(tree)]
            path = _follow(tree, chosen, self.eos_ids)
            verdicts.append(_verdict(tree, path, chosen, sequence.room, self.eos_ids))
            row += 1 + len(tree)
        return verdicts


class Relaxed:
    """Keeps any node among the target's `top_k` tokens with probability above `min_prob`.

    `S = TopK(q) with q(x) > min_prob`, the argmax always included; the longest path wins and the
    bonus token is the target's own (arXiv 2408.05676, relaxed verification). On top of the paper's
    rule: no path goes past an EOS that is the argmax, equally long paths are compared by the
    model's log-probability, and deviations per text can be capped.
    """

    def __init__(self, config: AcceptConfig, eos_ids: frozenset[int]) -> None:
        self.config, self.eos_ids = config, eos_ids
        self._eos = np.array(sorted(eos_ids), np.int64)

    def accept(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> list[Verdict]:
        """Longest path of likely enough tokens, then the target's own next token."""
        log_probs, ids = sampling.most_probable(logits, self.config.top_k)
        choices = own_choices(self.config, batch, trees, logits)
        wide = torch.cat([log_probs.double(), ids.double(), choices[:, None].double()], 1)
        table = wide.cpu().numpy()
        verdicts: list[Verdict] = []
        row = 0
        for sequence, tree in zip(batch, trees, strict=True):
            rows = _Rows(table[row : row + 1 + len(tree)], ids.shape[1])
            path, relaxed, loss = self._best(sequence, tree, rows)
            plain = _verdict(tree, path, rows.choices, sequence.room, self.eos_ids)
            if len(plain.path) < len(path):
                relaxed, loss = self._cost(tree, rows, plain.path.tolist())
            verdicts.append(Verdict(plain.path, plain.token_ids, relaxed, loss))
            row += 1 + len(tree)
        return verdicts

    def _best(
        self, sequence: RunningSequence, tree: DraftTree, rows: _Rows
    ) -> tuple[list[int], int, float]:
        """Path, deviations and loss of the winning node; the empty path where nothing is kept."""
        reached: dict[int, _Reached] = {-1: _Reached(0, 0.0, 0, 0.0, ended=False)}
        best = -1
        for node in self._likely(tree, rows).tolist():
            above = reached.get(int(tree.parents[node]))
            if above is None or above.ended:
                continue
            here = self._step(above, tree, rows, node)
            if self._over_cap(sequence, here):
                continue
            reached[node] = here
            if self._better(here, reached[best]):
                best = node
        path: list[int] = []
        end = reached[best]
        while best >= 0:
            path.append(best)
            best = int(tree.parents[best])
        return path[::-1], end.deviations, end.loss

    def _likely(self, tree: DraftTree, rows: _Rows) -> LongArray:
        """Nodes whose token its parent's row allows, parents before children."""
        above = tree.parents + 1
        tokens = tree.token_ids[:, None]
        enough = rows.log_probs[above] > np.log(max(self.config.min_prob, 1e-300))
        allowed = ((rows.ids[above] == tokens) & enough).any(1)
        own = rows.choices[above] == tree.token_ids
        if self.config.eos_guard:
            ends = np.isin(rows.ids[above, 0], self._eos)
            allowed &= ~ends | np.isin(tree.token_ids, self._eos)
        return np.flatnonzero(allowed | own)

    def _step(self, above: _Reached, tree: DraftTree, rows: _Rows, node: int) -> _Reached:
        parent, token = int(tree.parents[node]) + 1, int(tree.token_ids[node])
        log_prob = rows.log_prob(parent, token)
        own = token == int(rows.choices[parent])
        lost = 0.0 if own else max(0.0, float(rows.log_probs[parent, 0]) - log_prob)
        return _Reached(
            above.length + 1,
            above.log_prob + log_prob,
            above.deviations + (not own),
            above.loss + lost,
            ended=token in self.eos_ids,
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

    def _cost(self, tree: DraftTree, rows: _Rows, path: list[int]) -> tuple[int, float]:
        end = _Reached(0, 0.0, 0, 0.0, ended=False)
        for node in path:
            end = self._step(end, tree, rows, node)
        return end.deviations, end.loss


@dataclass(frozen=True, slots=True)
class _Reached:
    """A node that verification reached: path length, log-probability, deviations, loss."""

    length: int
    log_prob: float
    deviations: int
    loss: float
    ended: bool


class _Rows:
    """One sequence's rows as seen from the host: top log-probabilities, their ids, own choices."""

    def __init__(self, table: DoubleArray, k: int) -> None:
        self.log_probs = table[:, :k]
        self.ids = table[:, k : 2 * k].astype(np.int64)
        self.choices = table[:, 2 * k].astype(np.int64)

    def log_prob(self, row: int, token: int) -> float:
        """Log-probability of `token` if it is among the top, else that of the last one there."""
        found = np.flatnonzero(self.ids[row] == token)
        return float(self.log_probs[row, found[0] if len(found) else -1])


def own_choices(
    config: AcceptConfig,
    batch: Seq[RunningSequence],
    trees: Seq[DraftTree],
    logits: torch.Tensor,
) -> torch.Tensor:
    """int64 `[R]`: the token that the target itself emits after each row."""
    if config.temperature == 0.0:
        return sampling.greedy(logits)
    places = [
        np.concatenate(([0], depths(tree) + 1)) + sequence.new_tokens
        for sequence, tree in zip(batch, trees, strict=True)
    ]
    uniforms = np.concatenate(
        [
            sequence.uniforms[np.minimum(place, len(sequence.uniforms) - 1)]
            for sequence, place in zip(batch, places, strict=True)
        ]
    )
    draws = torch.as_tensor(uniforms, device=logits.device)
    return sampling.sample(logits, draws, config.temperature, config.top_p)


def uniforms_for(seed: int, key: int, count: int) -> DoubleArray:
    """float64 `[count]`: one uniform per position of a text, from (seed, key) alone."""
    bits = np.random.Philox(key=np.array([seed % 2**64, key % 2**64], np.uint64))
    return np.random.Generator(bits).random(count)


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


def _verdict(
    tree: DraftTree, path: list[int], chosen: LongArray, room: int, eos_ids: frozenset[int]
) -> Verdict:
    """Path tokens and the bonus token, cut to `room`; nothing follows an EOS."""
    tokens = [int(t) for t in tree.token_ids[path]] if path else []
    if not tokens or tokens[-1] not in eos_ids:
        tokens.append(int(chosen[path[-1] + 1 if path else 0]))
    return Verdict(np.array(path[:room], np.int32), np.array(tokens[:room], np.int32))
