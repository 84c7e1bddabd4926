"""Draft trees as flat arrays: building, trimming, depths.

Everything here is host code on small arrays: one pass in order (a parent always comes before its
children) answers every question, of one tree or of those of a whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np
from numba import njit

from draftrec.core import EMPTY_TREE, BoolArray, DraftTree, IntArray, LongArray


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
    tree = certain(np.asarray(token_ids, np.int32), np.asarray(parents, np.int32))
    if probs is not None:
        tree = replace(tree, probs=np.asarray(probs, np.float32))
    if sources is not None:
        tree = replace(tree, sources=np.asarray(sources, np.uint8))
    check_tree(tree)
    return tree


def certain(token_ids: IntArray, parents: IntArray) -> DraftTree:
    """A tree whose nodes have probability 1 and source 0, unchecked: rows to compute, no drafts."""
    n = len(token_ids)
    return DraftTree(token_ids, parents, np.ones(n, np.float32), np.zeros(n, np.uint8))


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
    return _depths(np.array([len(tree)]), np.array(tree.parents, np.int32))


def trim(tree: DraftTree, keep: BoolArray) -> DraftTree:
    """The nodes where `keep` (bool `[n]`) is True; nodes below a dropped one are dropped too."""
    return trim_all((tree,), keep)[0]


def trim_all(trees: Seq[DraftTree], keep: BoolArray) -> list[DraftTree]:
    """`trim` of many trees, `keep` of all their nodes one after another."""
    if keep.all():
        return list(trees)
    sizes = np.array([len(t) for t in trees])
    places, parents, ends = _kept(sizes, np.concatenate([t.parents for t in trees]), keep)
    tokens = np.concatenate([t.token_ids for t in trees])[places]
    probs = np.concatenate([t.probs for t in trees])[places]
    sources = np.concatenate([t.sources for t in trees])[places]
    out: list[DraftTree] = []
    first = 0
    for tree, last in zip(trees, ends.tolist(), strict=True):
        here = slice(first, last)
        if last - first == len(tree):
            out.append(tree)
        elif last == first:
            out.append(EMPTY_TREE)
        else:
            out.append(DraftTree(tokens[here], parents[here], probs[here], sources[here]))
        first = last
    return out


def within(trees: Seq[DraftTree], levels: Seq[int]) -> list[DraftTree]:
    """The trees without nodes deeper than so many levels, of each."""
    if all(len(t) <= most for t, most in zip(trees, levels, strict=True)):
        return list(trees)
    sizes = np.array([len(t) for t in trees])
    depth = _depths(sizes, np.concatenate([t.parents for t in trees]))
    return trim_all(trees, depth < np.repeat(levels, sizes))


@njit(cache=True, nogil=True)
def _depths(sizes: LongArray, parents: IntArray) -> IntArray:
    """`depths` of trees of `sizes` nodes, one after another."""
    out = np.empty(len(parents), np.int32)
    first = 0
    for size in sizes:
        for i in range(first, first + size):
            out[i] = out[first + parents[i]] + 1 if parents[i] >= 0 else 0
        first += size
    return out


@njit(cache=True, nogil=True)
def _kept(
    sizes: LongArray, parents: IntArray, keep: BoolArray
) -> tuple[LongArray, IntArray, LongArray]:
    """Of trees one after another, the nodes kept with all their ancestors: int64 places, int32
    parents within the tree that is left, and where each tree's nodes end, int64 `[trees]`."""
    places, above = np.empty(len(parents), np.int64), np.empty(len(parents), np.int32)
    renamed, ends = np.full(len(parents), -1, np.int32), np.empty(len(sizes), np.int64)
    first = kept = 0
    for tree, size in enumerate(sizes):
        begin = kept
        for i in range(first, first + size):
            parent = parents[i]
            new = renamed[first + parent] if parent >= 0 else -1
            if keep[i] and (parent < 0 or new >= 0):
                renamed[i] = kept - begin
                places[kept], above[kept] = i, new
                kept += 1
        ends[tree] = kept
        first += size
    return places[:kept], above[:kept], ends
