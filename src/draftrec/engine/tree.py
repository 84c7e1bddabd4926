"""Draft trees as flat arrays: building, trimming, depths, ancestors.

Everything here is host code on small arrays; a tree has tens of nodes, so one pass in order (a
parent always comes before its children) answers every question.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from draftrec.core import EMPTY_TREE, BoolArray, DraftTree, IntArray


def make_tree(
    token_ids: Seq[int],
    parents: Seq[int],
    probs: Seq[float] | None = None,
    sources: Seq[int] | None = None,
) -> DraftTree:
    """A checked tree from plain sequences; `probs` default to 1, `sources` to 0.

    Raises ValueError for unequal lengths, a parent that does not come before its child, or two
    siblings with the same token.
    """
    n = len(token_ids)
    tree = DraftTree(
        np.asarray(token_ids, np.int32),
        np.asarray(parents, np.int32),
        np.ones(n, np.float32) if probs is None else np.asarray(probs, np.float32),
        np.zeros(n, np.uint8) if sources is None else np.asarray(sources, np.uint8),
    )
    check_tree(tree)
    return tree


def check_tree(tree: DraftTree) -> None:
    """Raise ValueError unless `tree` keeps the promises of `DraftTree`."""
    n = len(tree.token_ids)
    if not len(tree.parents) == len(tree.probs) == len(tree.sources) == n:
        raise ValueError("the arrays of a draft tree must have one length")
    if n and ((tree.parents < -1).any() or (tree.parents >= np.arange(n)).any()):
        raise ValueError("a draft node's parent must be -1 or an earlier node")
    children = set(zip(tree.parents.tolist(), tree.token_ids.tolist(), strict=True))
    if len(children) != n:
        raise ValueError("siblings of a draft tree must carry distinct tokens")


def chain(token_ids: Seq[int], prob: float = 1.0) -> DraftTree:
    """The tree without branches: each token continues the one before it."""
    n = len(token_ids)
    return make_tree(token_ids, range(-1, n - 1), [prob] * n)


def depths(tree: DraftTree) -> IntArray:
    """int32 `[n]`: 0 for children of the last committed token, one more per level."""
    out = np.zeros(len(tree), np.int32)
    for i, parent in enumerate(tree.parents.tolist()):
        out[i] = out[parent] + 1 if parent >= 0 else 0
    return out


def ancestor_mask(tree: DraftTree) -> BoolArray:
    """bool `[n, n]`: row i is True at node i and at all its ancestors."""
    n = len(tree)
    mask = np.zeros((n, n), np.bool_)
    for i, parent in enumerate(tree.parents.tolist()):
        if parent >= 0:
            mask[i] = mask[parent]
        mask[i, i] = True
    return mask


def trim(tree: DraftTree, keep: BoolArray) -> DraftTree:
    """The nodes where `keep` (bool `[n]`) is True; nodes below a dropped one are dropped too."""
    if keep.all():
        return tree
    new_place = np.full(len(tree) + 1, -1, np.int32)
    kept: list[int] = []
    for i, parent in enumerate(tree.parents.tolist()):
        if keep[i] and (parent < 0 or new_place[parent] >= 0):
            new_place[i] = len(kept)
            kept.append(i)
    if not kept:
        return EMPTY_TREE
    places = np.asarray(kept)
    return DraftTree(
        tree.token_ids[places],
        new_place[tree.parents[places]],
        tree.probs[places],
        tree.sources[places],
    )
