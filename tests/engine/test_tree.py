"""Draft trees: what is refused, and that depths, masks and cuts agree with walking the parents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.core import EMPTY_TREE, DraftTree
from draftrec.engine.tree import (
    certain,
    chain,
    check_tree,
    depths,
    make_tree,
    trim,
    trim_all,
    within,
)  # fmt: skip
from tests.strategies import ancestor_mask, trees


def ancestors(tree: DraftTree, node: int) -> list[int]:
    """The node and everything above it, by walking up."""
    found = [node]
    while tree.parents[found[-1]] >= 0:
        found.append(int(tree.parents[found[-1]]))
    return found


@given(trees(9))
def test_depths_and_masks_agree_with_walking_up(tree: DraftTree) -> None:
    levels, mask = depths(tree), ancestor_mask(tree)
    assert levels.dtype == np.int32
    assert mask.shape == (len(tree), len(tree))
    for node in range(len(tree)):
        above = ancestors(tree, node)
        assert levels[node] == len(above) - 1
        assert sorted(above) == np.flatnonzero(mask[node]).tolist()


@given(trees(9), st.data())
def test_trim_keeps_exactly_the_nodes_whose_whole_path_is_kept(
    tree: DraftTree, data: st.DataObject
) -> None:
    flags = st.lists(st.booleans(), min_size=len(tree), max_size=len(tree))
    keep = np.array(data.draw(flags), np.bool_)
    cut = trim(tree, keep)
    check_tree(cut)
    wanted = [i for i in range(len(tree)) if keep[ancestors(tree, i)].all()]
    for name in ("token_ids", "probs", "sources"):
        assert getattr(cut, name).tolist() == getattr(tree, name)[wanted].tolist()
        assert getattr(cut, name).dtype == getattr(tree, name).dtype
    for node, old in enumerate(wanted):
        assert [wanted[i] for i in ancestors(cut, node)] == ancestors(tree, old)


@pytest.mark.slow
@given(st.lists(trees(9), max_size=5), st.data())
def test_a_batch_is_cut_as_each_tree_alone(drawn: list[DraftTree], data: st.DataObject) -> None:
    keep = [np.array([data.draw(st.booleans()) for _ in range(len(t))], np.bool_) for t in drawn]
    found = trim_all(drawn, np.concatenate([np.empty(0, np.bool_), *keep]))
    levels = [data.draw(st.integers(0, 4)) for _ in drawn]
    shallow = within(drawn, levels)
    assert len(found) == len(shallow) == len(drawn)
    for tree, own, level, cut, low in zip(drawn, keep, levels, found, shallow, strict=True):
        for one, alone in ((cut, trim(tree, own)), (low, trim(tree, depths(tree) < level))):
            check_tree(one)
            for name in ("token_ids", "parents", "probs", "sources"):
                assert getattr(one, name).tolist() == getattr(alone, name).tolist()
                assert getattr(one, name).dtype == getattr(tree, name).dtype


def test_trim_returns_what_needs_no_cut() -> None:
    tree = chain([1, 2])
    assert trim(tree, np.ones(2, np.bool_)) is tree
    assert trim(tree, np.zeros(2, np.bool_)) is EMPTY_TREE


def test_chain_continues_token_by_token() -> None:
    tree = chain([7, 8, 8], 0.5)
    assert tree.parents.tolist() == [-1, 0, 1]
    assert tree.token_ids.tolist() == [7, 8, 8]
    assert tree.probs.tolist() == [0.5] * 3
    assert len(chain([])) == 0


def test_defaults_are_certain_nodes_of_the_first_source() -> None:
    tree = make_tree([4], [-1])
    assert tree.probs.tolist() == [1.0]
    assert tree.sources.tolist() == [0]
    other = certain(tree.token_ids, tree.parents)
    assert (other.probs.tolist(), other.sources.tolist()) == ([1.0], [0])
    dtypes = [a.dtype for a in (tree.token_ids, tree.parents, tree.probs, tree.sources)]
    assert dtypes == [np.int32, np.int32, np.float32, np.uint8]


@pytest.mark.parametrize(
    ("tokens", "parents", "probs", "message"),
    [
        ([1, 2], [-1], None, "one length"),
        ([1, 2], [-1, 0], [1.0], "one length"),
        ([1, 2], [-1, 1], None, "earlier node"),
        ([1, 2], [1, -1], None, "earlier node"),
        ([1], [-2], None, "earlier node"),
        ([1, 1], [-1, -1], None, "distinct"),
        ([3, 1, 1], [-1, 0, 0], None, "distinct"),
    ],
)
def test_malformed_trees_are_refused(
    tokens: list[int], parents: list[int], probs: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_tree(tokens, parents, probs)


def test_cousins_may_carry_one_token() -> None:
    assert len(make_tree([1, 2, 5, 5], [-1, -1, 0, 1])) == 4
