"""The slab moves and copies rows, in every layer and head, and touches nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftrec.engine.kv_cache import KVShape, KVSlab, RowShape
from draftrec.engine.prefixes import SlotPrefixes

WIDE, NARROW = RowShape(kv_heads=3, key_dim=4, value_dim=5), RowShape(1, 2, 2)
SHAPE = KVShape((WIDE, NARROW, WIDE))


def filled(slots: int = 3, capacity: int = 8) -> KVSlab:
    slab = KVSlab(SHAPE, slots, capacity, torch.device("cpu"), torch.float32)
    for number, layer in enumerate(memories(slab)):  # each row of each layer another
        layer.copy_(torch.arange(layer.numel()).view_as(layer) + 10_000 * number)
    slab.keep_features(6, torch.float64)
    features_of(slab).copy_(torch.arange(slots * (capacity + 1) * 6).view(slots, -1, 6))
    return slab


def memories(slab: KVSlab) -> list[torch.Tensor]:
    """Keys and values `[slots, kv_heads, capacity, dim]` of all layers."""
    return [*slab.keys, *slab.values]


def features_of(slab: KVSlab) -> torch.Tensor:
    assert slab.features is not None
    return slab.features


def test_shapes_hold_keys_and_values_of_different_width() -> None:
    slab = filled()
    assert [tuple(x.shape) for x in slab.keys] == [(3, 3, 8, 4), (3, 1, 8, 2), (3, 3, 8, 4)]
    assert [tuple(x.shape) for x in slab.values] == [(3, 3, 8, 5), (3, 1, 8, 2), (3, 3, 8, 5)]
    assert [len(block.keys) for block in slab.blocks] == [2, 1]
    assert features_of(slab).shape == (3, 9, 6)
    assert features_of(slab).dtype == torch.float64
    assert SHAPE.bytes_per_token(torch.bfloat16) == (2 * 3 * 9 + 4) * 2


moves = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 7), st.integers(0, 7)),
    max_size=8,
    unique_by=lambda m: (m[0], m[2]),
)


@given(moves)
def test_all_sources_are_read_before_any_target_is_written(
    drawn: list[tuple[int, int, int]],
) -> None:
    slab, before = filled(), filled()
    slab.move_rows(drawn)
    written = set()
    for slot, src, dst in drawn:
        written.add((slot, dst))
        for now, then in zip(memories(slab), memories(before), strict=True):
            assert torch.equal(now[slot, :, dst], then[slot, :, src])
        assert torch.equal(features_of(slab)[slot, dst], features_of(before)[slot, src])
    for slot in range(3):
        for row in set(range(8)) - {r for s, r in written if s == slot}:
            for now, then in zip(memories(slab), memories(before), strict=True):
                assert torch.equal(now[slot, :, row], then[slot, :, row])
            assert torch.equal(features_of(slab)[slot, row], features_of(before)[slot, row])


@pytest.mark.parametrize("length", [0, 1, 5, 8])
def test_copying_a_prefix_leaves_the_rest(length: int) -> None:
    slab, before = filled(), filled()
    slab.copy_prefix(2, 0, length)
    for now, then in zip(memories(slab), memories(before), strict=True):
        assert torch.equal(now[0, :, :length], then[2, :, :length])
        assert torch.equal(now[0, :, length:], then[0, :, length:])
        assert torch.equal(now[1:], then[1:])
    now, then = features_of(slab), features_of(before)
    assert torch.equal(now[0, :length], then[2, :length])
    assert torch.equal(now[0, length:], then[0, length:])
    assert torch.equal(now[1:], then[1:])


def naive(held: list[int], tokens: list[int]) -> int:
    same = 0
    while same < min(len(held), len(tokens)) and held[same] == tokens[same]:
        same += 1
    return same


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_what_slots_share_with_tokens_is_what_comparing_one_by_one_finds(
    data: st.DataObject,
) -> None:
    """Beginnings that differ early, late and not at all, noted, cut and written over."""
    prefixes = SlotPrefixes(3)
    noted: list[list[int]] = [[], [], []]
    common = list(range(100, 180))
    text = st.builds(
        lambda n, tail: common[:n] + tail,
        st.integers(0, 80),
        st.lists(st.integers(0, 2), max_size=20),
    )
    for _ in range(data.draw(st.integers(1, 8))):
        slot = data.draw(st.integers(0, 2))
        if data.draw(st.booleans()):
            noted[slot] = noted[slot] + data.draw(text)
            prefixes.go_on(slot, np.array(noted[slot], np.int32))
        if data.draw(st.booleans()):
            noted[slot] = data.draw(text)
            prefixes.hold(slot, np.array(noted[slot], np.int32))
        else:
            most = data.draw(st.integers(0, 90))
            noted[slot] = noted[slot][:most]
            prefixes.cut(slot, most)
        asked = data.draw(text)
        found = prefixes.shared(np.array(asked, np.int32))
        assert found.tolist() == [naive(held, asked) for held in noted]
        assert prefixes.shared(np.array(asked, np.int32), slot, slot + 1).tolist() == [found[slot]]
        assert prefixes.tokens(slot).tolist() == noted[slot]
