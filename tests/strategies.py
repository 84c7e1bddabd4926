"""What hypothesis draws: token lists, draft trees, paths through them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from draftrec.core import BoolArray, DraftTree, IntArray
from draftrec.engine.tree import make_tree


def token_lists(vocabulary: int, least: int, most: int) -> st.SearchStrategy[list[int]]:
    """Lists of token ids, `least` to `most` long."""
    return st.lists(st.integers(0, vocabulary - 1), min_size=least, max_size=most)


@st.composite
def trees(draw: st.DrawFn, vocabulary: int, most: int = 10) -> DraftTree:
    """Any tree of up to `most` nodes: chains, stars and all between, in any legal order.

    Tokens are drawn from few or many, so that trees repeat tokens on different branches.
    """
    n = draw(st.integers(0, most))
    few = draw(st.sampled_from([3, vocabulary]))
    taken: set[tuple[int, int]] = set()
    tokens: list[int] = []
    parents: list[int] = []
    for _ in range(n):
        parent = draw(st.integers(-1, len(tokens) - 1))
        token = draw(st.integers(0, min(few, vocabulary) - 1))
        if (parent, token) not in taken:
            taken.add((parent, token))
            tokens.append(token)
            parents.append(parent)
    probs = _falling(draw, parents)
    sources = draw(st.lists(st.integers(0, 3), min_size=len(tokens), max_size=len(tokens)))
    return make_tree(tokens, parents, probs, sources)


def _falling(draw: st.DrawFn, parents: list[int]) -> list[float]:
    """Path probabilities: no node more likely than its parent."""
    probs: list[float] = []
    for parent in parents:
        share = draw(st.sampled_from([0.05, 0.3, 0.7, 1.0]))
        probs.append(share * (probs[parent] if parent >= 0 else 1.0))
    return probs


def ancestor_mask(tree: DraftTree) -> BoolArray:
    """bool `[n, n]`: row i is True at node i and at all its ancestors."""
    mask = np.zeros((len(tree), len(tree)), np.bool_)
    for i, parent in enumerate(tree.parents.tolist()):
        if parent >= 0:
            mask[i] = mask[parent]
        mask[i, i] = True
    return mask


def children(tree: DraftTree, node: int) -> list[int]:
    """The nodes right below `node`, -1 for the root."""
    return np.flatnonzero(tree.parents == node).tolist()


@st.composite
def paths(draw: st.DrawFn, tree: DraftTree) -> IntArray:
    """A path of `tree` from the root down, of any length."""
    path: list[int] = []
    while below := children(tree, path[-1] if path else -1):
        step = draw(st.integers(-1, len(below) - 1))
        if step < 0:
            break
        path.append(below[step])
    return np.array(path, np.int32)
