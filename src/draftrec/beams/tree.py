"""The tree of one user's search. It grows from pass to pass; nothing is ever renumbered.

Target and draft model share it: which nodes each of them has computed is theirs to know.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from draftrec.core import IntArray, LongArray

_ROOT = -1
_SEED = np.uint64(0x9E3779B97F4A7C15)


class BeamTree:
    """Nodes are prefixes of items, the root (-1) is the empty one.

    Arrays by node, `size` of them in use: `tokens` and `parents` int32; `levels` int32, 1 for
    children of the root; `places` int64, the node's place in the item trie (-1: none); `paths`
    int32 `[capacity, L]`, the node at each level on the way down; `hashes` uint64, of the tokens on
    the path, for noise that depends on the prefix alone.
    """

    def __init__(self, levels: int, capacity: int = 128) -> None:
        self.size = 0
        self._known: dict[int, int] = {}
        self.tokens = np.empty(capacity, np.int32)
        self.parents = np.empty(capacity, np.int32)
        self.levels = np.empty(capacity, np.int32)
        self.places = np.empty(capacity, np.int64)
        self.hashes = np.empty(capacity, np.uint64)
        self.paths = np.full((capacity, levels), _ROOT, np.int32)

    def add(self, parents: IntArray, tokens: IntArray, places: LongArray) -> IntArray:
        """The nodes int32 `[n]` of `tokens` under `parents`; those that are missing are made."""
        found = np.empty(len(tokens), np.int32)
        fresh: list[int] = []
        for i, key in enumerate(((parents.astype(np.int64) + 1 << 32) | tokens).tolist()):
            node = self._known.get(key)
            if node is None:
                node = self._known[key] = self.size + len(fresh)
                fresh.append(i)
            found[i] = node
        if fresh:
            self._append(parents[fresh], tokens[fresh], places[fresh])
        return found

    def closure(self, nodes: IntArray) -> IntArray:
        """`nodes` and their ancestors, each once, ancestors first."""
        every = np.unique(self.paths[nodes])
        return every[1:] if len(every) and every[0] == _ROOT else every

    def token_paths(self, nodes: IntArray) -> IntArray:
        """int32 `[n, level]`: the tokens on the way to `nodes`, all of one level (L for none)."""
        level = int(self.levels[nodes[0]]) if len(nodes) else self.paths.shape[1]
        return self.tokens[self.paths[nodes, :level]]

    def _append(self, parents: IntArray, tokens: IntArray, places: LongArray) -> None:
        first, last = self.size, self.size + len(tokens)
        while last > len(self.tokens):
            self._grow()
        new = slice(first, last)
        self.tokens[new], self.parents[new], self.places[new] = tokens, parents, places
        inner = parents >= 0
        self.levels[new] = np.where(inner, self.levels[parents], 0) + 1
        self.paths[new] = np.where(inner[:, None], self.paths[parents], _ROOT)
        self.paths[np.arange(first, last), self.levels[new] - 1] = np.arange(first, last)
        self.hashes[new] = mixed(np.where(inner, self.hashes[parents], _SEED), tokens)
        self.size = last

    def _grow(self) -> None:
        for name in ("tokens", "parents", "levels", "places", "hashes", "paths"):
            old = getattr(self, name)
            new = np.full((2 * len(old), *old.shape[1:]), 0, old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)


def mixed(
    hashes: npt.NDArray[np.uint64], tokens: npt.NDArray[np.integer]
) -> npt.NDArray[np.uint64]:
    """The hash of a path and one more token (the finaliser of SplitMix64)."""
    x = hashes + (tokens.astype(np.uint64) + np.uint64(1)) * _SEED
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
