"""Cells that were lists once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.data.tables.values import as_list

_TEXTS = st.lists(st.text(st.characters(blacklist_categories=["Cs"]), max_size=8), max_size=5)


@pytest.mark.slow
@given(_TEXTS)
def test_what_python_prints_is_read_back(texts: list[str]) -> None:
    assert as_list(str(texts)) == texts


@given(st.lists(st.text("abc,' é[]", max_size=6), max_size=5))
def test_what_numpy_prints_is_read_back(texts: list[str]) -> None:
    assert as_list(str(np.array(texts, object))) == texts


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("['a', None, nan]", ["a", None, None]),
        ("[1 2 3]", [1, 2, 3]),
        ("[1, 2.5]", [1, 2.5]),
        ("[{'title': 'Heat', 'rating': nan}]", [{"title": "Heat", "rating": None}]),
        ("[]", []),
        ([1], [1]),
        ("[REC]", None),
        ("[a, b]", None),
        ("['a' ... 'b']", None),
        ("['a'", None),
        ("Heat", None),
        (None, None),
        ({"a": 1}, None),
    ],
)
def test_other_cells_stay_what_they_are(text: Any, found: list[Any] | None) -> None:
    assert as_list(text) == found
