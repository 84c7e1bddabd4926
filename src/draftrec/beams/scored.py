"""What one model knows of one user's tree: the rows in its cache, and how it rates next tokens."""

from __future__ import annotations

import numpy as np

from draftrec.beams.tree import BeamTree
from draftrec.beams.values import BeamRequest
from draftrec.core import BoolArray, DoubleArray, FloatArray, IntArray, LongArray
from draftrec.models.packing import BeamSegment

_ROOT = np.array([-1], np.int32)


class Scored:
    """One user in one model: `slot` of its cache, `order` int32, the nodes whose rows lie behind
    the prompt's, and the candidates that follow every node it has rated.

    Candidates of all nodes lie one after another: `tokens` int32, `places` int64 (trie nodes, -1:
    none), `log_probs` float32; `spans` int64 `[nodes + 1, 2]` says where those of node i begin and
    end, in row i + 1 (the root is node -1); -1 where the node has not been rated.
    """

    def __init__(self, slot: int, request: BeamRequest, tree: BeamTree) -> None:
        self.slot, self.request, self.tree = slot, request, tree
        self.started = False
        self.order = np.empty(0, np.int32)
        self.spans = np.full((len(tree.tokens) + 1, 2), -1, np.int64)
        self.tokens = np.empty(0, np.int32)
        self.places = np.empty(0, np.int64)
        self.log_probs = np.empty(0, np.float32)

    def rates(self, nodes: IntArray) -> BoolArray:
        """bool: which of `nodes` have been rated."""
        self._fit()
        return self.spans[nodes + 1, 0] >= 0

    def missing(self, nodes: IntArray) -> IntArray:
        """Rows to compute so that all of `nodes` can be rated: ancestors first."""
        unknown = nodes[~self.rates(nodes)]
        wanted = self.tree.closure(unknown[unknown >= 0])
        return np.setdiff1d(wanted, self.order, assume_unique=True)

    def segment(self, nodes: IntArray) -> BeamSegment:
        """A pass over the rows of `nodes`, and the prompt's if this is the first one; logits are
        asked for the prompt's last row, then for every node."""
        tree, prompt = self.tree, self.request.prompt_ids
        order = np.concatenate((self.order, nodes))
        levels = tree.levels[order] - 1
        positions = len(prompt) + levels.astype(np.int64)
        seen = tree.paths[nodes][:, levels] == order
        if self.started:
            wanted = np.arange(len(nodes))
            start, ids = len(prompt), tree.tokens[nodes]
            return BeamSegment(self.slot, start, ids, positions, seen, wanted)
        p, n = len(prompt), len(nodes)
        whole = np.zeros((p + n, p + n), np.bool_)
        whole[:p, :p], whole[p:, :p], whole[p:, p:] = np.tri(p, dtype=np.bool_), True, seen
        ids = np.concatenate((prompt, tree.tokens[nodes]))
        positions = np.concatenate((np.arange(p), positions))
        return BeamSegment(self.slot, 0, ids, positions, whole, np.arange(p - 1, p + n))

    def asked(self, nodes: IntArray) -> IntArray:
        """The nodes whose logits that pass returns, the root for the prompt's last row."""
        return nodes if self.started else np.concatenate((_ROOT, nodes))

    def computed(self, nodes: IntArray) -> None:
        """Note that the rows of `nodes` (and the prompt's) lie in the cache now."""
        self.order = np.concatenate((self.order, nodes))
        self.started = True

    def learn(
        self,
        nodes: IntArray,
        offsets: LongArray,
        candidates: tuple[IntArray, LongArray, FloatArray],
    ) -> None:
        """Keep what follows `nodes`: tokens, places and log-probabilities, those of `nodes[i]`
        between offsets i and i + 1."""
        self._fit()
        base = len(self.tokens)
        self.spans[nodes + 1, 0] = base + offsets[:-1]
        self.spans[nodes + 1, 1] = base + offsets[1:]
        tokens, places, log_probs = candidates
        self.tokens = np.concatenate((self.tokens, tokens))
        self.places = np.concatenate((self.places, places))
        self.log_probs = np.concatenate((self.log_probs, log_probs))

    def spans_of(self, nodes: IntArray) -> LongArray:
        """int64 `[b, 2]`: where the candidates of `nodes`, all rated, begin and end."""
        return self.spans[nodes + 1]

    def summed(self, spans: LongArray, scores: DoubleArray) -> DoubleArray:
        """float64: for the candidates in `spans` one after another, the score of the node that they
        follow plus their log-probability."""
        return np.repeat(scores, spans[:, 1] - spans[:, 0]) + self.log_probs[ragged(spans)]

    def forget(self, keep: IntArray) -> list[tuple[int, int, int]]:
        """Drop the cached rows of all nodes but `keep`; returns moves: slot, column, new column."""
        kept = np.isin(self.order, keep)
        if kept.all():
            return []
        start = len(self.request.prompt_ids)
        columns = np.flatnonzero(kept)
        moves = [
            (self.slot, start + column, start + i)
            for i, column in enumerate(columns.tolist())
            if i != column
        ]
        self.order = self.order[kept]
        return moves

    def _fit(self) -> None:
        """Room for every node of the tree."""
        more = len(self.tree.tokens) + 1 - len(self.spans)
        if more > 0:
            self.spans = np.concatenate((self.spans, np.full((more, 2), -1, np.int64)))


def ragged(spans: LongArray) -> LongArray:
    """int64: the places that ranges `[b, 2]` cover, one range after another."""
    counts = spans[:, 1] - spans[:, 0]
    ends = np.cumsum(counts)
    shift = np.repeat(spans[:, 0] - ends + counts, counts)
    return np.arange(len(shift)) + shift


def peaks(values: DoubleArray, counts: LongArray) -> DoubleArray:
    """float64 `[b]`: the largest of every range, -inf of an empty one; `values` of all ranges, of
    `counts` int64 `[b]` each, one after another."""
    found = np.full(len(counts), -np.inf)
    filled = counts > 0
    if filled.any():
        found[filled] = np.maximum.reduceat(values, (np.cumsum(counts) - counts)[filled])
    return found


def log_sums(values: DoubleArray, counts: LongArray) -> DoubleArray:
    """float64 `[b]`: log(sum(exp)) of every range, -inf of an empty one."""
    found = peaks(values, counts)
    filled = counts > 0
    if filled.any():
        shares = np.exp(values - np.repeat(found, counts))
        found[filled] += np.log(np.add.reduceat(shares, (np.cumsum(counts) - counts)[filled]))
    return found
