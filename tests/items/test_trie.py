"""The item trie: every answer agrees with sets of prefixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.errors import DraftrecError
from draftrec.items import trie as item_trie
from draftrec.items.trie import ItemTrie
from tests.items.catalogues import VOCABULARY, Catalogue, catalogues


@given(catalogues())
def test_nodes_are_the_distinct_prefixes_breadth_first(catalogue: Catalogue) -> None:
    trie, nodes = catalogue.trie(), catalogue.nodes()
    assert (trie.levels, trie.nodes) == (catalogue.levels, len(nodes))
    assert trie.leaves == len(catalogue.prefixes(catalogue.levels))
    assert trie.tokens.tolist() == [-1, *(prefix[-1] for prefix in nodes if prefix)]
    sizes = [len(catalogue.prefixes(level)) for level in range(catalogue.levels + 1)]
    assert trie.level_start.tolist() == np.cumsum([0, *sizes]).tolist()
    assert trie.first[-1] == trie.nodes
    assert trie.nbytes > 0


@given(catalogues())
def test_leaves_hold_their_items_in_order(catalogue: Catalogue) -> None:
    trie, nodes = catalogue.trie(), catalogue.nodes()
    for prefix, node in nodes.items():
        if len(prefix) == catalogue.levels:
            assert trie.items_at(node).tolist() == sorted(catalogue.below(prefix))
    assert sorted(trie.items.tolist()) == sorted(catalogue.paths)
    leaves = trie.leaves_of(np.arange(len(catalogue.paths)))
    assert leaves.tolist() == [nodes[catalogue.paths[item]] for item in sorted(catalogue.paths)]


@given(catalogues())
def test_likely_prefixes_count_for_as_many_items_as_they_have(catalogue: Catalogue) -> None:
    found = catalogue.trie().followed()
    for level, mean in enumerate(found):
        below = [prefix[:level] for prefix in catalogue.prefixes(level + 1)]
        counts = [below.count(path[:level]) for path in catalogue.paths.values()]
        assert mean == pytest.approx(np.mean(counts))
    assert len(found) == catalogue.levels


@given(catalogues(), st.data())
def test_walks_end_where_no_item_goes_on(catalogue: Catalogue, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, catalogue.levels))
    row = st.lists(st.integers(-1, VOCABULARY), min_size=length, max_size=length)
    known = st.sampled_from([list(p[:length]) for p in catalogue.paths.values()])
    rows = np.array(data.draw(st.lists(row | known, min_size=1, max_size=8)), np.int32)
    nodes = catalogue.nodes()
    expected = [[nodes.get(tuple(r[: i + 1]), -1) for i in range(length)] for r in rows.tolist()]
    found = catalogue.trie().walk(rows)
    assert found.tolist() == expected
    assert found.dtype == np.int64


@pytest.mark.slow
@given(catalogues(), st.data())
def test_children_and_masks_are_the_tokens_that_lead_on(
    catalogue: Catalogue, data: st.DataObject
) -> None:
    trie, nodes = catalogue.trie(), catalogue.nodes()
    asked = data.draw(st.lists(st.sampled_from([-1, *nodes.values()]), max_size=10))
    names = {node: prefix for prefix, node in nodes.items()}
    offsets, below = trie.children(np.array(asked, np.int64))
    mask = trie.masks(np.array(asked, np.int64), VOCABULARY)
    assert mask.shape == (len(asked), VOCABULARY)
    for row, node in enumerate(asked):
        prefix = names.get(node)
        expected = sorted(
            child
            for name, child in nodes.items()
            if prefix is not None and len(name) == len(prefix) + 1 and name[:-1] == prefix
        )
        assert below[offsets[row] : offsets[row + 1]].tolist() == expected
        assert np.flatnonzero(mask[row]).tolist() == [names[child][-1] for child in expected]


@given(catalogues())
def test_paths_and_parents_lead_back(catalogue: Catalogue) -> None:
    trie, nodes = catalogue.trie(), catalogue.nodes()
    full = catalogue.prefixes(catalogue.levels)
    leaves = np.array([nodes[prefix] for prefix in full], np.int64)
    assert trie.paths(leaves).tolist() == [list(prefix) for prefix in full]
    assert trie.paths(leaves).dtype == np.int32
    for level in range(1, catalogue.levels + 1):
        names = catalogue.prefixes(level)
        found = trie.parents(np.array([nodes[name] for name in names], np.int64), level)
        assert found.tolist() == [nodes[name[:-1]] for name in names]


@given(catalogues())
def test_tokens_too_far_apart_to_count_are_sorted_all_the_same(catalogue: Catalogue) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_trie, "_COUNTABLE", 0)
        sparse = Catalogue(
            {item: tuple(t * 9000 for t in path) for item, path in catalogue.paths.items()}
        ).trie()
    plain = catalogue.trie()
    assert (sparse.first == plain.first).all()
    assert (sparse.items == plain.items).all()
    assert sparse.tokens.tolist() == [max(-1, t * 9000) for t in plain.tokens.tolist()]


@pytest.mark.slow
@given(catalogues())
def test_the_order_of_items_does_not_matter(catalogue: Catalogue) -> None:
    turned = Catalogue(dict(sorted(catalogue.paths.items(), reverse=True))).trie()
    trie = catalogue.trie()
    for name in ("first", "tokens", "level_start", "item_start", "items", "positions"):
        assert (getattr(trie, name) == getattr(turned, name)).all(), name


def test_arrays_are_as_small_as_promised() -> None:
    trie = Catalogue({3: (1, 2), 1: (1, 2), 2: (0, 2)}).trie()
    types = {"first": np.int32, "tokens": np.int32, "items": np.int64, "positions": np.int32}
    assert {name: getattr(trie, name).dtype for name in types} == types


@pytest.mark.parametrize(
    ("items", "tokens", "message"),
    [
        ([1, 2], [[1]], "do not fit"),
        ([1], [1], "do not fit"),
        ([1], [[]], "do not fit"),
        ([1], [[-1]], "negative"),
        ([2, 1, 2], [[1], [2], [3]], "distinct"),
    ],
)
def test_what_is_no_catalogue_is_refused(items: list, tokens: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ItemTrie.build(np.array(items, np.int64), np.array(tokens, np.int32))


def test_a_catalogue_without_items_is_refused() -> None:
    with pytest.raises(DraftrecError, match="no items"):
        ItemTrie.build(np.empty(0, np.int64), np.empty((0, 2), np.int32))


def test_questions_that_have_no_answer_are_refused() -> None:
    trie = Catalogue({1: (1, 7)}).trie()
    with pytest.raises(ValueError, match="leaves"):
        trie.items_at(1)
    with pytest.raises(ValueError, match="leaves"):
        trie.paths(np.array([3]))
    with pytest.raises(ValueError, match="beyond a vocabulary of 7"):
        trie.masks(np.array([1]), 7)
