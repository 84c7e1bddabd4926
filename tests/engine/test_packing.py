"""Ragged segments become the rows of one pass: tokens, positions, columns, and who sees what."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftrec.core import EMPTY_TREE, BoolArray
from draftrec.engine.masks import FULL, Reach
from draftrec.engine.packing import KEYS, Packed, Segment, pack
from draftrec.engine.tree import certain, depths, make_tree
from tests.strategies import ancestor_mask, token_lists, trees

CPU = torch.device("cpu")
_REACHES = [FULL, Reach(window=1), Reach(window=3), Reach(chunk=2), Reach(chunk=5)]


def test_a_batch_by_hand() -> None:
    tree = make_tree([7, 8, 9], [-1, 0, -1])
    packed = pack(
        [
            Segment(3, 10, np.array([5, 6], np.int32), tree),
            Segment(0, 0, np.array([1, 2, 3], np.int32), EMPTY_TREE, scored=False),
            Segment(1, 4, np.array([4], np.int32), EMPTY_TREE, length=40),
        ],
        CPU,
        lengths=True,
        padded=lambda rows: rows + 2,
    )
    assert (packed.rows, packed.wanted) == (9, 5)
    assert packed.token_ids.tolist() == [5, 6, 7, 8, 9, 1, 2, 3, 4, 0, 0]
    assert packed.positions.tolist() == [10, 11, 12, 13, 12, 0, 1, 2, 4, 0, 0]
    assert packed.columns.tolist() == [10, 11, 12, 13, 14, 0, 1, 2, 4, -1, -1]
    assert packed.slots.tolist() == [3] * 5 + [0] * 3 + [1] + [0] * 2
    assert packed.lengths.tolist() == [11, 12, 13, 14, 13, 1, 2, 3, 40, 0, 0]
    assert packed.text_lengths.tolist() == packed.lengths.tolist()
    assert packed.scored.tolist() == [1, 2, 3, 4, 8, 0, 0]
    assert packed.spans == [[3, 0, 5, 10], [0, 5, 8, 0], [1, 8, 9, 4]]
    (block,) = packed.blocks
    assert (block.first, block.last, block.width, block.length) == (0, 4, 5, 15)
    gather = [[5, 6, 7, -1, -1], [8] + [-1] * 4, [-1] * 5, [0, 1, 2, 3, 4]]
    assert torch.as_tensor(block.rows).view(4, 5).tolist() == gather
    # Columns low .. high - 1, then which of those from there on.
    assert block.sight[FULL][:5].tolist() == [
        [0, 11, 0], [0, 12, 0], [0, 12, 0b001], [0, 12, 0b011], [0, 12, 0b100],
    ]  # fmt: skip
    assert block.sight[FULL][-1].tolist() == [0, 1, 0]


@st.composite
def segments(draw: st.DrawFn) -> list[Segment]:
    """Texts, and searches part of whose nodes earlier passes computed, in slots of their own."""
    found: list[Segment] = []
    for slot in draw(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True)):
        tree, start = draw(trees(9, 8)), draw(st.integers(0, 50))
        pending = np.array(draw(token_lists(9, 1, 6)), np.int32)
        if len(tree) and draw(st.booleans()):
            past = draw(st.integers(0, len(tree) - 1))
            found.append(Segment(slot, start + 1, pending[:0], tree, past=past))
        else:
            found.append(Segment(slot, start, pending, tree, draw(st.booleans()) or len(tree) > 0))
    return found


def expected_view(segment: Segment, reach: Reach, length: int) -> BoolArray:
    """bool `[rows, length]`: which columns each row sees, told by walking the tree."""
    base, p = segment.start + len(segment.pending), len(segment.pending)
    key_positions = np.concatenate((np.arange(base), base + depths(segment.tree)))
    view = np.zeros((len(key_positions), length), np.bool_)
    view[:base, :base] = np.tri(base, dtype=np.bool_)
    view[base:, :base] = True
    view[base:, base : len(key_positions)] = ancestor_mask(segment.tree)
    rows = [*range(segment.start, base), *range(base + segment.past, len(key_positions))]
    assert len(rows) == segment.rows == p + len(segment.tree) - segment.past
    own = key_positions[rows][:, None]
    seen = view[rows]
    here = slice(0, len(key_positions))
    if reach.window:
        seen[:, here] &= key_positions > own - reach.window
    if reach.chunk:
        seen[:, here] &= key_positions // reach.chunk == own // reach.chunk
    return seen


def rows_by_block(packed: Packed, reach: Reach) -> dict[int, BoolArray]:
    """What each row of the pass sees, by the masks of its block."""
    found: dict[int, BoolArray] = {}
    every = np.arange(packed.rows)
    for block in packed.blocks:
        mask = block.mask(reach, 2, torch.float32)
        shape = block.last - block.first, 2, block.width, block.length
        whole = torch.zeros(shape) if mask is None else mask[:, 0].view(shape)
        assert torch.equal(whole[:, 0], whole[:, 1]), "the same for every query head of a group"
        flat = (whole[:, 0] == 0).flatten(0, 1)
        assert flat.any(-1).all(), "a row of padding sees something"
        real = flat if block.back is None else flat[block.back]
        places = every[block.place] if isinstance(block.place, slice) else block.place.tolist()
        found |= zip(places, real.numpy(), strict=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("launch", [None, 0, 500, 1 << 40])
@given(batch=segments(), reach=st.sampled_from(_REACHES), keys=st.sampled_from([1, 16]))
def test_rows_see_what_walking_the_tree_says(
    launch: int | None, batch: list[Segment], reach: Reach, keys: int
) -> None:
    """However rows are put into blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KEYS, "cpu", keys)
        packed = pack(batch, CPU, [reach], launch=launch)
    assert all(b.open or b.length % keys == 0 for b in packed.blocks)
    views = rows_by_block(packed, reach)
    assert sorted(views) == list(range(packed.rows)), "every row is in one block"
    scored: list[int] = []
    for segment, (slot, first, last, column) in zip(batch, packed.spans, strict=True):
        length = max(len(views[row]) for row in range(first, last))
        expected = expected_view(segment, reach, length)
        base, p = segment.start + len(segment.pending), len(segment.pending)
        positions = [*range(segment.start, base), *(base + depths(segment.tree)[segment.past :])]
        tokens = [*segment.pending, *segment.tree.token_ids[segment.past :]]
        assert packed.positions[first:last].tolist() == positions
        assert packed.token_ids[first:last].tolist() == tokens
        assert packed.columns[first:last].tolist() == list(range(column, column + segment.rows))
        assert packed.slots[first:last].tolist() == [slot] * segment.rows
        assert (slot, column) == (segment.slot, segment.column)
        for i in range(segment.rows):
            assert (views[first + i] == expected[i][: len(views[first + i])]).all()
        scored += range(first + max(p - 1, 0), last) if segment.scored else []
    assert packed.scored.tolist() == scored
    assert packed.wanted == len(scored)


def test_more_nodes_than_a_word_has_bits() -> None:
    """A chain of 150 nodes behind a bush of 40: bits in four words, the sign bit among them."""
    tree = make_tree(range(190), [-1] * 40 + [-1, *range(40, 189)])
    packed = pack([Segment(0, 7, np.array([1], np.int32), tree)], CPU, [Reach(window=100)])
    for reach in (FULL, Reach(window=100)):
        views = rows_by_block(packed, reach)
        expected = expected_view(Segment(0, 7, np.array([1], np.int32), tree), reach, 198)
        assert all((views[row] == expected[row]).all() for row in views)


def test_texts_and_searches_share_a_block() -> None:
    """Each sees its own: the search two nodes of an earlier pass, the text its two tokens."""
    nodes = certain(np.array([5, 6, 7, 8], np.int32), np.array([-1, -1, 0, 1], np.int32))
    beam = Segment(0, 3, np.empty(0, np.int32), nodes, past=2)
    packed = pack([beam, Segment(1, 5, np.array([1, 2], np.int32), EMPTY_TREE)], CPU)
    assert (beam.column, beam.rows) == (5, 2)
    assert packed.token_ids.tolist() == [7, 8, 1, 2]
    assert packed.positions.tolist() == [4, 4, 5, 6]
    assert packed.scored.tolist() == [0, 1, 3]
    seen = (packed.blocks[0].additive(FULL, torch.float32, -1.0) == 0).int()
    assert seen.tolist() == [
        [[1, 1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 1, 0, 1]],
        [[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]],
    ]


def test_segments_share_a_block_where_that_is_cheaper() -> None:
    """Few columns for all, as one; a prompt beside single rows, apart; all apart if calls are
    free."""
    one, prompt = np.ones(1, np.int32), np.ones(300, np.int32)
    alike = [Segment(i, 20, one, EMPTY_TREE) for i in range(8)]
    assert len(pack(alike, CPU, launch=6_000).blocks) == 1
    mixed = pack([*alike, Segment(8, 0, prompt, EMPTY_TREE)], CPU, launch=6_000)
    assert [(b.first, b.last, b.width) for b in mixed.blocks] == [(0, 8, 1), (8, 9, 300)]
    assert len(pack(alike, CPU, launch=0).blocks) == 8
    assert len(pack([alike[0], alike[7]], CPU, launch=0).blocks) == 2


def test_a_lone_row_needs_no_mask() -> None:
    row, reach = [Segment(2, 9, np.ones(1, np.int32), EMPTY_TREE)], Reach(window=4)
    (block,) = pack(row, CPU, [reach], launch=0).blocks
    assert block.mask(FULL, 2, torch.float32) is None
    mask = block.mask(reach, 1, torch.float32)
    assert mask is not None
    assert (mask == 0).flatten().tolist() == [False] * 6 + [True] * 4


def test_nothing_scored_gives_no_rows() -> None:
    packed = pack([Segment(0, 0, np.array([1, 2], np.int32), EMPTY_TREE, scored=False)], CPU)
    assert packed.wanted == len(packed.scored) == 0


def test_everything_lies_in_one_buffer() -> None:
    """One transfer: all tensors of a pass are views of the same memory."""
    batch = [Segment(i, 4, np.ones(i + 1, np.int32), make_tree([1], [-1])) for i in range(3)]
    packed = pack(batch, CPU, [Reach(window=2)], lengths=True)
    block = packed.blocks[0]
    named = [
        packed.token_ids, packed.positions, packed.lengths, packed.scored, packed.slots,
        packed.columns, packed.back, block.rows, block.place, *block.sight.values(),
    ]  # fmt: skip
    assert len({torch.as_tensor(t).untyped_storage().data_ptr() for t in named}) == 1
