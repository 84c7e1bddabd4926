"""Requests that come and go while others run: the same beams, and no trace of dropped ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from draftrec.engine.beams.drafters import ModelDrafter, NoBeamDrafter
from draftrec.engine.beams.loop import BeamEngine, SearchBatch, drop, reserve, search, step
from draftrec.engine.beams.model import BeamModel, Constraint
from draftrec.engine.beams.pace import FixedPace
from draftrec.engine.beams.state import BeamRequest, Beams
from draftrec.engine.target import Target
from tests.engine.beams import toys
from tests.engine.beams.toys import Setting

TRIE, _ = toys.catalogue(1, 60, 4, 5)
ASKED = toys.requests(2, 8)


def engine(width: int = 6, slots: int = 2) -> BeamEngine:
    constraint = Constraint(TRIE, TRIE.levels)
    draft = BeamModel(Target(toys.model(3)), constraint)
    drafter = ModelDrafter(draft, width, FixedPace(10, 2, TRIE.levels))
    return BeamEngine(BeamModel(Target(toys.model(1)), constraint), drafter, width, slots)


def alone(width: int) -> list[Beams]:
    return toys.run(Target(toys.model(1)), TRIE, ASKED, Setting(width=width))


@pytest.mark.slow
def test_requests_enter_a_running_batch_and_keep_their_own_widths() -> None:
    live = engine()
    reserve(live, 12)
    batch = SearchBatch((), live.slots)
    assert not batch.active
    widths = [1, 6, 3, None, 2, 6, 4, 1]
    for request, width in zip(ASKED, widths, strict=True):
        batch.add(replace(request, width=width))
        step(live, batch)
    while batch.active:
        step(live, batch)
    for place, (found, width) in enumerate(zip(batch.finished(), widths, strict=True)):
        expected = alone(width or 6)[place]
        assert len(found.scores) == (width or 6)
        assert toys.same([found], [expected])


def test_a_narrow_search_is_not_the_beginning_of_a_wide_one() -> None:
    """Why the width belongs to the request."""
    narrow, wide = alone(2), alone(6)
    assert any(
        a.tokens.tolist() != b.tokens[:2].tolist() for a, b in zip(narrow, wide, strict=True)
    )


def test_dropped_requests_leave_their_slots_to_others() -> None:
    live = engine()
    reserve(live, 12)
    batch = SearchBatch(ASKED, live.slots)
    step(live, batch)
    assert {s.order for s in batch.running} == {0, 1}
    for order in (0, 1, 5):  # two that run and one that waits
        drop(live, batch, order)
    assert not batch.running
    assert len(batch.free) == 2
    assert live.drafter._users == {}, "the draft model's caches go with the search"
    while batch.active:
        step(live, batch)
    assert sorted(batch.results) == [2, 3, 4, 6, 7]
    expected = alone(6)
    for order, found in batch.results.items():
        assert toys.same([found], [expected[order]])
    with pytest.raises(RuntimeError, match="not finished"):
        batch.finished()


def returning(seed: int, count: int) -> list[BeamRequest]:
    """Users who come back with more or with less of their histories."""
    random = np.random.default_rng(seed)
    histories = random.integers(3, 5, (12, 14)).astype(np.int32)
    histories[:, :6] = histories[:3, :6].repeat(4, 0)
    return [
        BeamRequest(i, histories[random.integers(12), : random.integers(5, 15)])
        for i in range(count)
    ]


@pytest.mark.parametrize("prefixes", [0, 3])
def test_prompts_are_computed_from_where_they_differ_from_cached_ones(prefixes: int) -> None:
    live = replace(engine(), prefixes=prefixes)
    reserve(live, 60)
    batch = SearchBatch((), live.slots, prefixes)
    asked = returning(5, 30)
    for place, request in enumerate(asked):
        batch.add(request)
        step(live, batch)
        if place % 7 == 3:  # others use the same caches for a while
            while batch.active:
                step(live, batch)
            search(live, toys.requests(place, 3))
    while batch.active:
        step(live, batch)
    constraint = live.target.constraint
    plain = BeamEngine(BeamModel(Target(toys.model(1)), constraint), NoBeamDrafter(), 6, 1)
    assert toys.same(batch.finished(), search(plain, asked))


def test_a_user_who_comes_back_costs_the_new_items_alone() -> None:
    (asked,) = toys.requests(2, 1)
    longer = replace(
        asked, prompt_ids=np.concatenate((asked.prompt_ids, np.array([7, 9], np.int32)))
    )
    live = BeamEngine(engine().target, NoBeamDrafter(), 4, 1, prefixes=2)
    reserve(live, 20)
    batch = SearchBatch((), 1, 2)
    rows = []
    for request in (asked, toys.requests(9, 1)[0], longer, longer):
        batch.add(request)
        rows.append(step(live, batch).rows)
        while batch.active:
            step(live, batch)
    assert rows[0] == len(asked.prompt_ids)
    assert rows[2:] == [2, 1]
