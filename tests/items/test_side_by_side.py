"""Several kinds of vectors as one: each counts for its weight, whatever its numbers are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.errors import DraftrecError
from draftrec.items.ids import TEXT
from draftrec.items.side_by_side import Kind, side_by_side


def kind(items: list[int], dim: int, seed: int, weight: float = 1.0, name: str = "a") -> Kind:
    random = np.random.default_rng(seed)
    return Kind(name, np.array(items), random.normal(size=(len(items), dim)).astype("f4"), weight)


@given(
    st.integers(2, 40), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99),
    st.floats(0.01, 100), st.floats(0.01, 100), st.sampled_from([1e-20, 1.0, 1e20]),
)  # fmt: skip
def test_each_kind_counts_for_its_weight(
    n: int, one: int, two: int, seed: int, first: float, second: float, scale: float
) -> None:
    """Neither its numbers, how many they are, nor what all of them have in common matter."""
    a, b = kind(list(range(n)), one, seed, first), kind(list(range(n)), two, seed + 1, second)
    moved = Kind("b", b.items, b.vectors * np.float32(scale), second)
    found = side_by_side([a, moved])
    assert found.items.tolist() == list(range(n))
    assert found.known.all()
    parts = found.vectors[:, :one], found.vectors[:, one:]
    squared = [float((part.astype("f8") ** 2).sum(axis=1).mean()) for part in parts]
    largest = max(first, second)
    assert squared == pytest.approx([first / largest, second / largest], rel=1e-4)
    assert found.vectors == pytest.approx(side_by_side([a, b]).vectors, abs=1e-4)
    centred = a.vectors - a.vectors.mean(axis=0)
    assert parts[0] == pytest.approx(
        centred * np.sqrt(first / largest / (centred**2).sum(axis=1).mean()), abs=1e-4
    )


def test_items_that_a_kind_does_not_know_stand_at_its_mean() -> None:
    a, b = kind([5, 3, 9], 2, 0), kind([9, 7, 3, 8], 3, 1)
    found = side_by_side([a, b])
    assert found.items.tolist() == [5, 3, 9, 7, 8]
    assert found.known.tolist() == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]
    assert not found.vectors[3:, :2].any()
    assert not found.vectors[0, 2:].any()
    assert found.vectors.mean(axis=0) == pytest.approx(np.zeros(5), abs=1e-6)
    alone = side_by_side([b]).vectors[[2, 0, 1, 3]]  # of 3, 9, 7, 8
    assert np.array_equal(found.vectors[1:, 2:], alone)


def test_texts_are_told_apart_as_numbers_are() -> None:
    a, b = kind([0, 1, 2], 2, 0), kind([2, 1, 4], 2, 1)
    named = [Kind("a", np.array([f"sku-{i}" for i in one.items], TEXT), one.vectors)
             for one in (a, b)]  # fmt: skip
    found, wanted = side_by_side(named), side_by_side([a, b])
    assert found.items.tolist() == ["sku-0", "sku-1", "sku-2", "sku-4"]
    assert np.array_equal(found.vectors, wanted.vectors)
    assert np.array_equal(found.known, wanted.known)


def test_new_items_do_not_move_what_old_ones_were_measured_with() -> None:
    a, b = kind([1, 2, 3, 4], 2, 0), kind([1, 2, 3, 4], 2, 1)
    before = side_by_side([a, b])
    far = np.full((1, 2), 1e3, np.float32)
    grown = [Kind("a", np.array([1, 2, 3, 4, 9]), np.concatenate((it.vectors, far)))
             for it in (a, b)]  # fmt: skip
    after = side_by_side(grown, np.array([1, 2, 3, 4]))
    assert np.array_equal(after.vectors[:4], before.vectors)
    assert not np.array_equal(side_by_side(grown).vectors[:4], before.vectors)


def test_what_cannot_be_set_side_by_side_is_refused() -> None:
    a = kind([1, 2, 3], 2, 0)
    parts = [a, kind([4, 5], 2, 1, name="b")]
    with pytest.raises(DraftrecError, match="a has no item that another file has"):
        side_by_side(parts)
    with pytest.raises(DraftrecError, match="c has no item that another file has"):
        side_by_side([a, kind([1, 2], 3, 1, name="b"), kind([7], 3, 1, name="c")])
    same = Kind("same", np.array([1, 2]), np.full((2, 3), 0.3, np.float32))
    with pytest.raises(DraftrecError, match="same has the same vector for all items"):
        side_by_side([a, same])
    with pytest.raises(DraftrecError, match="b has no vector of an item of the catalogue"):
        side_by_side([a, kind([3, 9], 2, 1, name="b")], np.array([1, 2]))
