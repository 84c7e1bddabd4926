"""Cutting: the knowledge comes first, and what is lost is counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.models.encoders import Cut, Document, Overflow, cut


@pytest.mark.parametrize(
    ("knowledge", "history", "overflow", "expected"),
    [
        (4, 6, "truncate", Cut((10,))),
        (4, 7, "truncate", Cut((10,), 0, 1)),
        (10, 7, "truncate", Cut((10,), 0, 7)),
        (13, 7, "truncate", Cut((10,), 3, 7)),
        (13, 7, "refuse", Cut((), 13, 7)),
        (10, 0, "refuse", Cut((10,))),
        (11, 0, "window", Cut((6, 5))),
        (13, 8, "window", Cut((7, 7, 7))),
        (0, 0, "window", Cut(())),
        (0, 0, "truncate", Cut(())),
    ],
)
def test_known_cuts(knowledge: int, history: int, overflow: Overflow, expected: Cut) -> None:
    assert cut(knowledge, history, 10, overflow) == expected


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 64))
def test_windows_hold_everything(knowledge: int, history: int, room: int) -> None:
    found = cut(knowledge, history, room, "window")
    assert sum(found.windows) == knowledge + history
    assert (found.knowledge_lost, found.history_lost) == (0, 0)
    assert max(found.windows, default=0) <= room
    assert max(found.windows, default=0) - min(found.windows, default=0) <= 1
    assert len(found.windows) == -(-(knowledge + history) // room)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 64))
def test_truncation_gives_up_history_before_knowledge(k: int, h: int, room: int) -> None:
    found = cut(k, h, room, "truncate")
    assert sum(found.windows) + found.knowledge_lost + found.history_lost == k + h
    assert sum(found.windows) == min(room, k + h)
    assert found.knowledge_lost == 0 or found.history_lost == h


def test_a_document_without_history_is_its_knowledge() -> None:
    assert Document("a").text == "a"
    assert Document("a", "b").text == "a\nb"
