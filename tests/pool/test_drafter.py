"""Where drafts come from: the text itself, the entity's previous text, its group, all."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from draftrec.core import SOURCES, DraftTree, Request, Verdict
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.text.loop import NoDrafter
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.store import Pool

BOOKS, FILMS = [1, 2, 30, 31], [1, 2, 40, 41]


def running(
    *tokens: int,
    group: str | None = None,
    prompt: tuple[int, ...] = (9,),
    previous: tuple[int, ...] = (),
) -> RunningSequence:
    request = Request("a", np.array(prompt, np.int32), group, np.array(previous, np.int32))
    sequence = RunningSequence(0, 0, request, 20)
    if tokens:
        verdict = Verdict(np.arange(len(tokens) - 1, dtype=np.int32), np.array(tokens, np.int32))
        sequence.extend(verdict, frozenset())
    return sequence


def make_pool(*groups: str) -> Pool:
    pool = Pool("t")
    for group in groups:
        text = BOOKS if group == "books" else FILMS
        pool.add([(np.array(text, np.int32), group)])
    return pool


def draft(pool: Pool | None, sequence: RunningSequence) -> DraftTree:
    drafter = PoolDrafter(pool)
    drafter.start(sequence)
    return drafter.draft([sequence], 8, 8)[0]


def first_levels(tree: DraftTree) -> dict[int, str]:
    """Tokens proposed next, and who proposed them."""
    roots = np.flatnonzero(tree.parents == -1)
    return {int(tree.token_ids[i]): SOURCES[tree.sources[i]] for i in roots}


def test_the_entitys_group_comes_before_the_others() -> None:
    pool = make_pool("books", "films", "films")
    assert list(first_levels(draft(pool, running(1, 2))))[:2] == [40, 30]
    tree = draft(pool, running(1, 2, group="books"))
    assert tree.token_ids[0] == 30
    assert first_levels(tree)[40] == "all"


def test_groups_without_pool_fall_back_to_all() -> None:
    pool = make_pool("books", "films")
    unknown, none = running(1, 2, group="music"), running(1, 2)
    assert first_levels(draft(pool, unknown)) == first_levels(draft(pool, none))
    assert set(list(first_levels(draft(pool, unknown)))[:2]) == {30, 40}


def test_the_previous_text_is_followed_first() -> None:
    pool = make_pool("books", "films", "films")
    tree = draft(pool, running(1, 2, previous=(1, 2, 50, 51)))
    assert (int(tree.token_ids[0]), SOURCES[tree.sources[0]]) == (50, "previous")


def test_the_prompt_and_the_text_under_way_are_sources() -> None:
    asked = running(5, prompt=(5, 60, 61, 62))
    tree = draft(None, asked)
    assert next(iter(first_levels(tree).items())) == (60, "prompt")
    drafter = PoolDrafter(None)
    sequence = running(prompt=(9,))
    drafter.start(sequence)
    for tokens in ((70, 71, 72), (8, 70)):
        verdict = Verdict(np.arange(len(tokens) - 1, dtype=np.int32), np.array(tokens, np.int32))
        sequence.extend(verdict, frozenset())
        drafter.observe([sequence], [verdict])
    found = first_levels(drafter.draft([sequence], 8, 8)[0])
    assert next(iter(found.items())) == (71, "prompt")


def test_pools_know_what_texts_begin_with_whatever_the_prompt() -> None:
    pool = make_pool("books")
    for prompt in ((9,), (30, 2), (1, 2, 30)):
        tree = draft(pool, running(prompt=prompt))
        assert first_levels(tree)[1] == "all"


def test_a_stopped_sequence_is_forgotten() -> None:
    drafter = PoolDrafter(make_pool("books"))
    sequence = running(1, previous=(1, 2))
    drafter.start(sequence)
    drafter.stop(sequence)
    with pytest.raises(KeyError):
        drafter.draft([sequence], 8, 8)


def test_no_drafter_proposes_nothing() -> None:
    trees = NoDrafter().draft([running(1), running(2)], 8, 8)
    assert [len(t) for t in trees] == [0, 0]


def test_a_pool_does_not_grow_while_trees_are_drawn_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another thread would move arrays that the kernel has borrowed."""
    pool, sequence = make_pool("books"), running(1, 2)
    drafter, grown, adding = PoolDrafter(pool), threading.Event(), list[threading.Thread]()
    real = drafter.builder.build_many

    def grow() -> None:
        pool.add([(np.array(FILMS, np.int32), None)])
        grown.set()

    def drawn(*given: Any) -> list[DraftTree]:
        adding.append(threading.Thread(target=grow))
        adding[0].start()
        assert not grown.wait(0.2)
        return real(*given)

    monkeypatch.setattr(drafter.builder, "build_many", drawn)
    drafter.start(sequence)
    assert drafter.draft([sequence], 8, 8)[0].token_ids[0] == 30
    assert grown.wait(10)
    adding[0].join()
