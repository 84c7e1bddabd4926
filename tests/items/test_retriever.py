"""The item retriever: counted by hand, against a slow reference, and in files."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.errors import DraftrecError
from draftrec.items.retriever import ItemRetriever, RetrieverSettings

PLAIN = RetrieverSettings(
    window=9, decay=0.5, backward=0.0, from_power=0.0, to_power=0.0, shrinkage=0.0,
    neighbours=99, last=9, recency=1.0, popularity=0.01,
)  # fmt: skip


def arrays(*lists: list[int]) -> list[np.ndarray]:
    return [np.array(places, np.int64) for places in lists]


def slow_scores(
    sequences: list[list[int]], items: int, settings: RetrieverSettings, history: list[int]
) -> np.ndarray:
    """The definition, pair by pair."""
    counts = np.zeros(items)
    pairs = np.zeros((items, items))
    for sequence in sequences:
        for i, first in enumerate(sequence):
            counts[first] += 1
            for j in range(i + 1, min(i + settings.window, len(sequence) - 1) + 1):
                weight = settings.decay ** (j - i - 1)
                pairs[first, sequence[j]] += weight
                pairs[sequence[j], first] += weight * settings.backward
    np.fill_diagonal(pairs, 0)
    shrunk = np.maximum(counts, 1) + settings.shrinkage
    near = pairs * shrunk[:, None] ** -settings.from_power * shrunk**-settings.to_power
    for row in near:
        row[np.argsort(-row, kind="stable")[settings.neighbours :]] = 0
    scores = settings.popularity * (counts + 1) / (counts.max() + 1)
    for age, place in enumerate(history[::-1][: settings.last]):
        scores = scores + near[place] * settings.recency**age
    return scores


def test_pairs_are_counted_in_order_and_by_distance() -> None:
    retriever = ItemRetriever.fit(arrays([0, 1, 2], [0, 1]), 4, PLAIN)
    assert retriever.near.toarray()[0].tolist() == [0.0, 2.0, 0.5, 0.0]
    assert retriever.near.toarray()[1].tolist() == [0.0, 0.0, 1.0, 0.0]
    both = ItemRetriever.fit(arrays([0, 1, 2], [0, 1]), 4, replace(PLAIN, backward=0.5))
    assert both.near.toarray()[1].tolist() == [1.0, 0.0, 1.0, 0.0]
    near = ItemRetriever.fit(arrays([0, 1, 2]), 4, replace(PLAIN, window=1)).near.toarray()
    assert near[0].tolist() == [0.0, 1.0, 0.0, 0.0]


def test_counts_become_a_cosine_or_a_conditional_probability() -> None:
    sequences = arrays([0, 1], [0, 1], [0, 2], [0], [1])
    cosine = replace(PLAIN, from_power=0.5, to_power=0.5)
    near = ItemRetriever.fit(sequences, 3, cosine).near.toarray()
    assert near[0].tolist() == pytest.approx([0.0, 2 / np.sqrt(4 * 3), 1 / np.sqrt(4 * 1)])
    conditional = replace(PLAIN, from_power=1.0, shrinkage=1.0)
    near = ItemRetriever.fit(sequences, 3, conditional).near.toarray()
    assert near[0].tolist() == pytest.approx([0.0, 2 / 5, 1 / 5])
    whole = replace(PLAIN, from_power=1, to_power=0, shrinkage=1)  # not floats
    assert np.array_equal(ItemRetriever.fit(sequences, 3, whole).near.toarray(), near)


def test_an_empty_history_gets_the_popular_items() -> None:
    retriever = ItemRetriever.fit(arrays([3, 1, 3], [3, 2], [1]), 5)
    places, weights = retriever.propose(np.empty(0, np.int64), 5)
    assert places.tolist() == [3, 1, 2, 0, 4]
    assert weights.tolist() == pytest.approx([4 / 11, 3 / 11, 2 / 11, 1 / 11, 1 / 11])


def test_the_last_item_counts_most_and_old_ones_not_at_all() -> None:
    settings = replace(PLAIN, recency=0.5, last=2)
    retriever = ItemRetriever.fit(arrays([0, 3], [1, 4], [2, 5]), 6, settings)
    scores = retriever.scores(np.array([0, 1, 2])) - retriever.prior
    assert scores.tolist() == pytest.approx([0, 0, 0, 0, 0.5, 1.0])


def test_seen_items_can_be_left_out() -> None:
    retriever = ItemRetriever.fit(arrays([0, 1, 2], [0, 1, 2]), 4, replace(PLAIN, backward=1.0))
    history = np.array([0, 1, 1], np.int64)
    assert retriever.propose(history, 3)[0].tolist() == [2, 0, 1]
    assert retriever.propose(history, 3, exclude_seen=True)[0].tolist() == [2, 3]
    places, weights = retriever.propose_many([history, history[:0]], 3, exclude_seen=True)
    assert places.tolist() == [[2, 3, -1], [0, 1, 2]]
    assert weights[0, 2] == 0


PLACES = st.lists(st.integers(0, 11), max_size=7)
SETTINGS = st.builds(
    RetrieverSettings,
    window=st.integers(1, 8), decay=st.sampled_from([0.0, 0.5, 1.0]),
    backward=st.sampled_from([0.0, 0.7, 1.0]), from_power=st.sampled_from([0.0, 0.5, 1.0]),
    to_power=st.sampled_from([0.0, 0.5]), shrinkage=st.sampled_from([0.0, 3.0]),
    neighbours=st.integers(20, 30), last=st.integers(1, 8),
    recency=st.sampled_from([0.0, 0.6, 1.0]), popularity=st.sampled_from([1e-3, 1.0]),
)  # fmt: skip


@pytest.mark.slow
@given(st.lists(PLACES, max_size=8), SETTINGS, st.lists(PLACES, min_size=1, max_size=4))
def test_scores_equal_a_slow_reference(
    sequences: list[list[int]], settings: RetrieverSettings, histories: list[list[int]]
) -> None:
    retriever = ItemRetriever.fit(arrays(*sequences), 12, settings)
    for history, got in zip(histories, retriever.scores_many(arrays(*histories)), strict=True):
        assert got == pytest.approx(slow_scores(sequences, 12, settings, history), rel=1e-5)
        assert np.array_equal(got, retriever.scores(*arrays(history)))


@pytest.mark.slow
@given(
    st.lists(PLACES, max_size=8), SETTINGS, st.lists(PLACES, min_size=1, max_size=4),
    st.integers(1, 14), st.sampled_from([{}, {"exclude_seen": True}]),
)  # fmt: skip
def test_proposals_are_the_best_of_all_items(
    sequences: list[list[int]], settings: RetrieverSettings, histories: list[list[int]], m: int,
    more: dict[str, bool],
) -> None:  # fmt: skip
    retriever = ItemRetriever.fit(arrays(*sequences), 12, settings)
    places, weights = retriever.propose_many(arrays(*histories), m, **more)
    for row, history in enumerate(arrays(*histories)):
        scores = retriever.scores(history)
        allowed = np.setdiff1d(np.arange(12), history) if more else np.arange(12)
        best = allowed[np.lexsort((allowed, -scores[allowed]))][:m]
        assert places[row].tolist() == [*best.tolist(), *[-1] * (m - len(best))]
        shares = scores[best] / scores.sum(dtype=np.float64)
        assert weights[row, : len(best)] == pytest.approx(shares, rel=1e-5)
        alone = retriever.propose(history, m, **more)
        assert np.array_equal(alone[0], best)
        assert np.array_equal(alone[1], weights[row, : len(best)])
        assert retriever.shares(history, best) == pytest.approx(weights[row, : len(best)], rel=1e-6)
        every = np.arange(12)
        assert retriever.shares(history, every) == pytest.approx(scores / scores.sum(), rel=1e-5)


def test_proposals_for_many_users_take_the_memory_of_some() -> None:
    """What follows anybody's items was held of all users at once: of those whose items everything
    follows, the whole catalogue each."""
    retriever = ItemRetriever.fit(arrays(list(range(400))), 400, replace(PLAIN, window=400))
    histories = arrays(*([i % 300] for i in range(4_000)))
    tracemalloc.start()
    try:
        retriever.propose_many(histories[:256], 5)
        _, some = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        retriever.propose_many(histories, 5)
        assert tracemalloc.get_traced_memory()[1] < 4 * some
    finally:
        tracemalloc.stop()


def test_what_a_user_takes_does_not_grow_with_the_catalogue() -> None:
    """Every user's proposals went through all items, some times over."""
    items = 300_000
    retriever = ItemRetriever.fit(arrays([5, 6, 7]), items, PLAIN)
    tracemalloc.start()
    try:
        places, weights = retriever.propose(np.array([5]), 3)
        shares = retriever.shares(np.array([5]), places)
        assert tracemalloc.get_traced_memory()[1] < items
    finally:
        tracemalloc.stop()
    assert places.tolist() == [6, 7, 5]
    assert np.array_equal(shares, weights)


def test_only_the_nearest_neighbours_are_kept() -> None:
    sequences = arrays([0, 1], [0, 2], [0, 2], [0, 3], [4, 3])
    near = ItemRetriever.fit(sequences, 5, replace(PLAIN, neighbours=2)).near.toarray()
    assert near[0].tolist() == [0.0, 1.0, 2.0, 0.0, 0.0]
    assert near[4].tolist() == [0.0, 0.0, 0.0, 1.0, 0.0]


def test_files_hold_everything(tmp_path: Path) -> None:
    settings = replace(PLAIN, backward=0.3, neighbours=3)
    retriever = ItemRetriever.fit(arrays([0, 1, 2, 3], [3, 1, 0, 4]), 6, settings)
    retriever.save(tmp_path / "items.npz")
    again = ItemRetriever.load(tmp_path / "items.npz")
    assert again.settings == settings
    history = np.array([1, 4], np.int64)
    assert np.array_equal(again.scores(history), retriever.scores(history))
    assert np.array_equal(again.propose(history, 6)[0], retriever.propose(history, 6)[0])
    assert again.nbytes == retriever.nbytes > 0


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DraftrecError, match="no items"):
        ItemRetriever.fit([], 0)
    with pytest.raises(ValueError, match="between 0 and 2"):
        ItemRetriever.fit(arrays([0, 3]), 3)
    retriever = ItemRetriever.fit(arrays([0, 1]), 3)
    with pytest.raises(ValueError, match="between 0 and 2"):
        retriever.propose(np.array([-1]), 2)
    with pytest.raises(ValueError, match="impossible settings"):
        RetrieverSettings(popularity=0.0)
    with pytest.raises(ValueError, match="impossible settings"):
        RetrieverSettings(decay=1.5)
    (tmp_path / "other.npz").write_bytes(b"PK")
    np.savez(tmp_path / "foreign.npz", x=np.zeros(2))
    for name in ("missing", "other", "foreign"):
        with pytest.raises(DraftrecError, match="no saved item retriever"):
            ItemRetriever.load(tmp_path / f"{name}.npz")
