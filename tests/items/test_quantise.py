"""Quantising item vectors: caps hold, assignments are stable, and items end up apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.errors import DraftrecError
from draftrec.items import quantise
from draftrec.items.quantise import (
    QuantiseSettings,
    assign,
    capped_assignment,
    relative_error,
    residual_kmeans,
    rounding_share,
    semantic_ids,
    separate,
)


def blobs(n: int, seed: int = 0, centres: int = 12, width: int = 16) -> np.ndarray:
    """Vectors in crowds of very different sizes, as catalogues have them."""
    random = np.random.default_rng(seed)
    middles = random.normal(size=(centres, width))
    share = 1.0 / np.arange(1, centres + 1)
    crowd = random.choice(centres, n, p=share / share.sum())
    return (middles[crowd] + 0.3 * random.normal(size=(n, width))).astype(np.float32)


def squared(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return ((vectors[:, None] - centroids) ** 2).sum(axis=2)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Points and centroids on a small grid, so that many distances are equal; and a cap."""
    k = draw(st.integers(1, 6))
    point = st.tuples(st.integers(-3, 3), st.integers(-3, 3))
    points = draw(st.lists(point, min_size=1, max_size=40))
    centroids = draw(st.lists(point, min_size=k, max_size=k))
    cap = draw(st.integers(-(-len(points) // k), len(points)))
    return np.array(points, np.float32), np.array(centroids, np.float32), cap


@given(problems())
def test_no_cluster_is_too_large_and_nobody_would_rather_swap(
    problem: tuple[np.ndarray, np.ndarray, int],
) -> None:
    vectors, centroids, cap = problem
    codes = capped_assignment(vectors, centroids, cap)
    apart = squared(vectors, centroids)
    own = apart[np.arange(len(vectors)), codes]
    assert codes.dtype == np.int32
    assert np.bincount(codes).max() <= cap
    for cluster in range(len(centroids)):
        held = own[codes == cluster]
        # Whoever is nearer to another cluster finds it full of members at least as near.
        envious = apart[apart[:, cluster] < own, cluster]
        if len(envious):
            assert len(held) == cap
            assert held.max() <= envious.min()


@given(problems())
def test_without_a_cap_the_nearest_centroid_wins(
    problem: tuple[np.ndarray, np.ndarray, int],
) -> None:
    vectors, centroids, _ = problem
    codes = capped_assignment(vectors, centroids, len(vectors))
    assert codes.tolist() == squared(vectors, centroids).argmin(axis=1).tolist()


def test_caps_without_room_are_refused() -> None:
    with pytest.raises(ValueError, match="no room for 5"):
        capped_assignment(np.zeros((5, 2), np.float32), np.zeros((2, 2), np.float32), 2)


def test_many_vectors_are_assigned_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, centroids = blobs(200), blobs(8, seed=1)
    whole = capped_assignment(vectors, centroids, 30)
    monkeypatch.setattr(quantise, "_CHUNK", 17)
    assert (capped_assignment(vectors, centroids, 30) == whole).all()


@pytest.mark.slow
@given(st.data())
def test_separation_moves_as_few_as_it_must(data: st.DataObject) -> None:
    n, k = data.draw(st.integers(1, 25)), data.draw(st.integers(1, 5))
    levels, room = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    rows = st.lists(st.integers(0, k - 1), min_size=levels, max_size=levels)
    codes = np.array(data.draw(st.lists(rows, min_size=n, max_size=n)), np.int32)
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    residual = random.normal(size=(n, 3)).astype(np.float32)
    codebook = random.normal(size=(k, 3)).astype(np.float32)
    before = codes.copy()
    apart, moved = separate(codes, residual, codebook, room)
    assert (codes == before).all()
    assert (apart[:, :-1] == codes[:, :-1]).all()
    assert moved == (apart != codes).any(axis=1).sum()
    for prefix in {tuple(row[:-1]) for row in codes.tolist()}:
        below = [i for i in range(n) if tuple(codes[i, :-1].tolist()) == prefix]
        was = np.bincount(codes[below, -1], minlength=k)
        now = np.bincount(apart[below, -1], minlength=k)
        # All that is above the room moves, as far as others have room.
        needed = min(np.maximum(was - room, 0).sum(), np.maximum(room - was, 0).sum())
        assert np.maximum(was - now, 0).sum() == needed
        assert np.maximum(now - room, 0).sum() == max(0, len(below) - k * room)


def test_the_nearest_keeps_its_code_and_the_next_takes_the_nearest_free_one() -> None:
    codebook = np.array([[0.0], [1.0], [5.0], [9.0]], np.float32)
    residual = np.array([[0.4], [0.1], [0.3], [1.0]], np.float32)
    codes = np.array([[7, 0], [7, 0], [7, 0], [7, 1]], np.int32)
    apart, moved = separate(codes, residual, codebook, 1)
    assert apart[:, 1].tolist() == [3, 0, 2, 1]
    assert moved == 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_crowded_vectors_get_different_ids(seed: int) -> None:
    vectors = blobs(1500, seed)
    settings = QuantiseSettings(levels=3, codes=16, max_load=1.5, seed=seed)
    found = residual_kmeans(vectors, settings)
    assert len(np.unique(found.codes, axis=0)) == len(vectors)
    assert np.bincount(found.codes[:, 0]).max() <= settings.cap(len(vectors))
    assert relative_error(vectors, found.vectors()) < 0.5
    again = residual_kmeans(vectors, settings)
    assert (again.codes == found.codes).all()


def test_more_levels_rebuild_better() -> None:
    vectors = blobs(800)
    errors = [
        relative_error(vectors, residual_kmeans(vectors, QuantiseSettings(n, 16)).vectors())
        for n in (3, 4, 6)
    ]
    assert errors == sorted(errors, reverse=True)


def test_close_items_share_their_first_code() -> None:
    vectors = blobs(600, centres=4)
    codes = residual_kmeans(vectors, QuantiseSettings(2, 8)).codes
    nearest = squared(vectors[:100], vectors).argsort(axis=1)[:, 1]
    assert (codes[:100, 0] == codes[nearest, 0]).mean() > 0.5


def test_large_catalogues_are_fitted_to_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "_PER_CODE", 8)
    vectors = blobs(900)
    found = residual_kmeans(vectors, QuantiseSettings(2, 8, rounds=1))
    assert relative_error(vectors, found.vectors()) < 0.8


def test_equal_vectors_are_told_apart_as_far_as_codes_go() -> None:
    found = residual_kmeans(np.ones((20, 3), np.float32), QuantiseSettings(2, 4))
    assert len(np.unique(found.codes, axis=0)) == 16
    assert np.abs(found.vectors() - 1).max() < 1e-6


def test_given_codebooks_are_used_as_they_are() -> None:
    vectors = blobs(300)
    settings = QuantiseSettings(levels=2, codes=16)
    fitted = residual_kmeans(vectors, settings)
    found = assign(vectors, fitted.codebooks, settings)
    assert (found.codes == fitted.codes).all()
    assert found.moved == fitted.moved


def test_fewer_items_than_codes_are_refused() -> None:
    with pytest.raises(DraftrecError, match="15 items are too few for 16 codes"):
        residual_kmeans(blobs(15), QuantiseSettings(2, 16))


def test_codes_become_tokens_of_their_level() -> None:
    sids = semantic_ids(np.array([5, 3]), np.array([[12, 0], [1, 12]], np.int32))
    assert sids.sids_of([3, 5]) == [["<a_1>", "<b_12>"], ["<a_12>", "<b_0>"]]
    assert sids.tokens == ("<a_1>", "<a_12>", "<b_0>", "<b_12>")


def test_errors_are_shares_of_the_spread() -> None:
    vectors = np.array([[0.0], [2.0]], np.float32)
    assert relative_error(vectors, vectors) == 0.0
    assert relative_error(vectors, np.ones_like(vectors)) == 1.0
    assert relative_error(np.ones_like(vectors), np.ones_like(vectors)) == 0.0


def test_vectors_that_differ_in_their_last_digits_alone_are_noise() -> None:
    some = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    assert rounding_share(1 + 1e-7 * some) > 0.1
    assert rounding_share(some) < 1e-10
    offset = np.concatenate([some, np.full((200, 2), 1e4, np.float32)], axis=1)
    assert rounding_share(offset) < 1e-10
    assert rounding_share(np.ones((5, 2), np.float32)) == 0
