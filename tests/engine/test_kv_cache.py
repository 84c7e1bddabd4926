"""The slab moves and copies rows, in every layer and head, and touches nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftrec.engine.kv_cache import KVShape, KVSlab

SHAPE = KVShape(layers=2, kv_heads=3, key_dim=4, value_dim=5)


def filled(slots: int = 3, capacity: int = 8) -> KVSlab:
    slab = KVSlab(SHAPE, slots, capacity, torch.device("cpu"), torch.float32)
    slab.keys.copy_(torch.arange(slab.keys.numel()).view_as(slab.keys))
    slab.values.copy_(-torch.arange(slab.values.numel()).view_as(slab.values))
    slab.keep_features(6, torch.float64)
    features_of(slab).copy_(torch.arange(slots * (capacity + 1) * 6).view(slots, -1, 6))
    return slab


def features_of(slab: KVSlab) -> torch.Tensor:
    assert slab.features is not None
    return slab.features


def test_shapes_hold_keys_and_values_of_different_width() -> None:
    slab = filled()
    assert slab.keys.shape == (2, 3, 3, 8, 4)
    assert slab.values.shape == (2, 3, 3, 8, 5)
    assert features_of(slab).shape == (3, 9, 6)
    assert features_of(slab).dtype == torch.float64
    assert SHAPE.bytes_per_token(torch.bfloat16) == 2 * 3 * 9 * 2


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
        assert torch.equal(slab.keys[:, slot, :, dst], before.keys[:, slot, :, src])
        assert torch.equal(slab.values[:, slot, :, dst], before.values[:, slot, :, src])
        assert torch.equal(features_of(slab)[slot, dst], features_of(before)[slot, src])
    for slot in range(3):
        for row in set(range(8)) - {r for s, r in written if s == slot}:
            assert torch.equal(slab.keys[:, slot, :, row], before.keys[:, slot, :, row])
            assert torch.equal(slab.values[:, slot, :, row], before.values[:, slot, :, row])
            assert torch.equal(features_of(slab)[slot, row], features_of(before)[slot, row])


@pytest.mark.parametrize("length", [0, 1, 5, 8])
def test_copying_a_prefix_leaves_the_rest(length: int) -> None:
    slab, before = filled(), filled()
    slab.copy_prefix(2, 0, length)
    for now, then in ((slab.keys, before.keys), (slab.values, before.values)):
        assert torch.equal(now[:, 0, :, :length], then[:, 2, :, :length])
        assert torch.equal(now[:, 0, :, length:], then[:, 0, :, length:])
        assert torch.equal(now[:, 1:], then[:, 1:])
    now, then = features_of(slab), features_of(before)
    assert torch.equal(now[0, :length], then[2, :length])
    assert torch.equal(now[0, length:], then[0, length:])
    assert torch.equal(now[1:], then[1:])
