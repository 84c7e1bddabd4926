"""Filters: what they let through is what sets of items say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.errors import DraftrecError
from draftrec.items.trie import Filter
from tests.items.catalogues import Catalogue, catalogues


def chosen(data: st.DataObject, catalogue: Catalogue) -> set[int]:
    """Some of the items, all of them, or none; and some that the catalogue does not have."""
    known = st.sets(st.sampled_from(sorted(catalogue.paths)))
    every = st.just(set(catalogue.paths))
    return data.draw(known | every) | data.draw(st.sets(st.integers(100, 105)))


def check(catalogue: Catalogue, found: Filter, offered: set[int]) -> None:
    """A node may be entered if and only if an offered item lies below it."""
    nodes = catalogue.nodes()
    legal = found.legal(np.array([-1, *nodes.values()], np.int64))
    assert legal.tolist() == [False, *(bool(catalogue.below(p) & offered) for p in nodes)]
    items = sorted(catalogue.paths)
    assert found.keeps(np.array(items, np.int64)).tolist() == [i in offered for i in items]


@pytest.mark.slow
@given(catalogues(), st.data())
def test_denied_items_close_what_only_they_need(catalogue: Catalogue, data: st.DataObject) -> None:
    denied = chosen(data, catalogue)
    found = Filter.deny(catalogue.trie(), catalogue.places(denied))
    assert found.allowed is None
    assert found.blocked is not None
    assert (np.diff(found.blocked) > 0).all()
    assert found.items.tolist() == sorted(denied & catalogue.paths.keys())
    check(catalogue, found, set(catalogue.paths) - denied)
    more = chosen(data, catalogue)
    both = Filter.deny(catalogue.trie(), catalogue.places(more), found)
    check(catalogue, both, set(catalogue.paths) - denied - more)
    assert both.listed is None


@pytest.mark.slow
@given(catalogues(), st.data())
def test_allowed_items_open_what_leads_to_them(catalogue: Catalogue, data: st.DataObject) -> None:
    allowed = chosen(data, catalogue)
    places = catalogue.places(allowed)
    if not allowed & catalogue.paths.keys():
        with pytest.raises(DraftrecError, match="none of the allowed items"):
            Filter.allow(catalogue.trie(), places)
        return
    found = Filter.allow(catalogue.trie(), places)
    assert found.blocked is None
    assert found.allowed is not None
    assert (np.diff(found.allowed) > 0).all()
    assert found.items.tolist() == sorted(allowed & catalogue.paths.keys())
    check(catalogue, found, allowed)
    denied = chosen(data, catalogue)
    rest = Filter.allow(catalogue.trie(), places, np.tile(catalogue.places(denied), 2))
    check(catalogue, rest, allowed - denied)
    more = chosen(data, catalogue)
    less = Filter.deny(catalogue.trie(), catalogue.places(more), rest)
    check(catalogue, less, allowed - denied - more)
    assert less.listed is rest.items


def test_an_item_that_shares_its_leaf_is_denied_without_closing_it() -> None:
    catalogue = Catalogue({1: (4, 4), 2: (4, 4), 3: (5, 4)})
    found = Filter.deny(catalogue.trie(), np.array([0, 0]))
    check(catalogue, found, {2, 3})
    assert found.blocked is not None
    assert not len(found.blocked)


def test_denying_everything_blocks_the_root() -> None:
    catalogue = Catalogue({1: (4, 4), 2: (5, 4)})
    assert not Filter.deny(catalogue.trie(), np.array([1, 0])).legal(np.array([0])).any()
