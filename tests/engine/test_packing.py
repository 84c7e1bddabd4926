"""Ragged segments become flat rows: positions, parents and who may see whom."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from draftrec.core import EMPTY_TREE
from draftrec.engine.packing import Segment, pack, visibility
from draftrec.engine.tree import ancestor_mask, depths, make_tree
from tests.strategies import token_lists, trees


def test_a_batch_by_hand() -> None:
    tree = make_tree([7, 8, 9], [-1, 0, -1])
    packed = pack(
        [
            Segment(3, 10, np.array([5, 6], np.int32), tree),
            Segment(0, 0, np.array([1, 2, 3], np.int32), EMPTY_TREE, scored=False),
            Segment(1, 4, np.array([4], np.int32), EMPTY_TREE),
        ]
    )
    assert packed.token_ids.tolist() == [5, 6, 7, 8, 9, 1, 2, 3, 4]
    assert packed.positions.tolist() == [10, 11, 12, 13, 12, 0, 1, 2, 4]
    assert packed.row_start.tolist() == [0, 5, 8, 9]
    assert packed.parent.tolist() == [-1, 0, 1, 2, 1, -1, 0, 1, -1]
    assert packed.scored.tolist() == [1, 2, 3, 4, 8]


def segments() -> st.SearchStrategy[list[Segment]]:
    one = st.builds(
        lambda slot, start, pending, tree: Segment(slot, start, np.array(pending, np.int32), tree),
        st.integers(0, 5),
        st.integers(0, 50),
        token_lists(9, 1, 6),
        trees(9),
    )
    return st.lists(one, min_size=1, max_size=4)


@given(segments())
def test_positions_and_visibility_follow_the_tree(batch: list[Segment]) -> None:
    packed = pack(batch)
    width = max(s.rows for s in batch) + 1
    seen = visibility(packed, range(len(batch)), width)
    assert seen.shape == (len(batch), width, width)
    for i, segment in enumerate(batch):
        p, rows = len(segment.pending), segment.rows
        first = int(packed.row_start[i])
        place = packed.positions[first : first + rows] - segment.start
        assert place.tolist() == [*range(p), *(p + depths(segment.tree)).tolist()]
        view = seen[i, :rows, :rows]
        assert (view[:p, :p] == np.tri(p, dtype=bool)).all()
        assert not view[:p, p:].any()
        assert view[p:, :p].all()
        assert (view[p:, p:] == ancestor_mask(segment.tree)).all()
        assert not seen[i, :rows, rows:].any(), "nobody sees padding"


@given(segments())
def test_visibility_takes_the_members_it_is_asked_for(batch: list[Segment]) -> None:
    packed = pack(batch)
    width = max(s.rows for s in batch)
    whole = visibility(packed, range(len(batch)), width)
    members = list(range(len(batch)))[::-2]
    assert (visibility(packed, members, width) == whole[members]).all()


def test_nothing_scored_gives_no_rows() -> None:
    packed = pack([Segment(0, 0, np.array([1, 2], np.int32), EMPTY_TREE, scored=False)])
    assert packed.scored.dtype == np.int64
    assert not len(packed.scored)
