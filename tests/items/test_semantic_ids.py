"""Semantic ids: order of items and tokens, places, vocabularies, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.errors import DraftrecError
from draftrec.items.semantic_ids import SemanticIds

SIDS = SemanticIds.of([7, 2, 9], [["<a_10>", "<b_1>"], ["<a_9>", "<b_1>"], ["<b_1>", "<a_9>"]])


def test_items_ascend_and_tokens_follow_levels_and_numbers() -> None:
    assert SIDS.items.tolist() == [2, 7, 9]
    assert SIDS.tokens == ("<a_9>", "<a_10>", "<b_1>")
    assert SIDS.codes.tolist() == [[0, 2], [1, 2], [2, 0]]
    assert (SIDS.levels, len(SIDS)) == (2, 3)
    assert (SIDS.items.dtype, SIDS.codes.dtype) == (np.int64, np.int32)


def test_tokens_without_an_item_are_dropped() -> None:
    codes = np.array([[2, 0]], np.int32)
    assert SemanticIds.from_codes(np.array([1]), codes, ["x", "", "y"]).tokens == ("y", "x")


@given(
    st.dictionaries(
        st.integers(-(2**40), 2**40),
        st.lists(st.sampled_from(["a", "b", "7", "<c_12>", "<c_2>"]), min_size=2, max_size=2),
        min_size=1,
        max_size=20,
    )
)
def test_what_goes_in_comes_out(sids: dict[int, list[str]]) -> None:
    found = SemanticIds.of(list(sids), list(sids.values()))
    assert found.sids_of(list(sids)) == list(sids.values())
    assert found.places(found.items).tolist() == list(range(len(sids)))
    turned = SemanticIds.of(list(sids)[::-1], list(sids.values())[::-1])
    assert turned.fingerprint() == found.fingerprint()
    assert turned.tokens == found.tokens
    vocabulary = {token: 100 - i for i, token in enumerate(found.tokens)}
    names = {number: token for token, number in vocabulary.items()}
    ids = found.token_ids(vocabulary)
    assert ids.dtype == np.int32
    assert [[names[i] for i in row] for row in ids.tolist()] == found.sids_of(found.items)


def test_fingerprints_tell_items_codes_and_tokens_apart() -> None:
    others = [
        SemanticIds.of([7, 2, 8], [["<a_10>", "<b_1>"], ["<a_9>", "<b_1>"], ["<b_1>", "<a_9>"]]),
        SemanticIds.of([7, 2, 9], [["<a_10>", "<b_1>"], ["<a_9>", "<b_1>"], ["<b_1>", "<b_1>"]]),
        SemanticIds.of([7, 2, 9], [["<a_11>", "<b_1>"], ["<a_9>", "<b_1>"], ["<b_1>", "<a_9>"]]),
    ]
    assert len({SIDS.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_unknown_items_are_named_or_found_nowhere() -> None:
    assert SIDS.find([9, 1, 100, 2]).tolist() == [2, -1, -1, 0]
    assert SIDS.find([]).tolist() == []
    with pytest.raises(DraftrecError, match="item 100 has no semantic id"):
        SIDS.places([9, 100, 101])
    with pytest.raises(DraftrecError, match="item 1 has"):
        SIDS.sids_of([1])


def test_a_vocabulary_must_tell_the_tokens_apart() -> None:
    with pytest.raises(DraftrecError, match="no token '<b_1>'"):
        SIDS.token_ids({"<a_9>": 1, "<a_10>": 2})
    with pytest.raises(DraftrecError, match="one id"):
        SIDS.token_ids({"<a_9>": 1, "<a_10>": 2, "<b_1>": 2})


@pytest.mark.parametrize(
    ("items", "sids", "words"),
    [
        ([], [], "no items"),
        ([1, 2], [["a"], ["a", "b"]], "item 2 has 2 tokens where the first has 1"),
        ([1, 2], [["a"], []], "item 2 is empty"),
        ([5], [[]], "item 5 is empty"),
        ([5], [["a", ""]], "empty token"),
        ([3, 1, 3], [["a"], ["b"], ["c"]], "item 3 has more than one"),
    ],
)
def test_unusable_ids_are_refused(items: list[int], sids: list[list[str]], words: str) -> None:
    with pytest.raises(DraftrecError, match=words):
        SemanticIds.of(items, sids)


def test_a_sid_for_every_item() -> None:
    with pytest.raises(ValueError, match="2 items"):
        SemanticIds.of([1, 2], [["a"]])
