"""Proposed items enter the draft, and the answer stays plain beam search's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftrec.engine.beams.drafters import (
    BeamDrafter,
    ItemDrafter,
    MixedDrafter,
    ModelDrafter,
    NoBeamDrafter,
    Proposals,
)
from draftrec.engine.beams.loop import BeamEngine, search
from draftrec.engine.beams.model import BeamModel, Constraint
from draftrec.engine.beams.pace import FixedPace, whole
from draftrec.engine.beams.state import BeamRequest
from draftrec.engine.target import Target
from draftrec.items.trie import Filter, ItemTrie
from tests.engine.beams import toys
from tests.engine.beams.toys import Setting

TARGET, DRAFT = Target(toys.model(0)), Target(toys.model(7, layers=1))


class Fixed:
    """Proposes given places, the first one as the heaviest."""

    def __init__(self, places: np.ndarray) -> None:
        self.places = places

    def propose(self, history: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        found = self.places[:most]
        return found, 1.0 / np.arange(1, len(found) + 1)


def searched(trie: ItemTrie, asked: list[BeamRequest], drafter: BeamDrafter, width: int) -> list:
    constraint = Constraint(trie, trie.levels)
    return search(BeamEngine(BeamModel(TARGET, constraint), drafter, width, 3), asked)


@pytest.mark.slow
@settings(max_examples=40)
@given(data=st.data())
def test_proposals_change_nothing_but_the_number_of_calls(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10_000))
    levels = data.draw(st.integers(1, 4))
    trie, _ = toys.catalogue(seed, data.draw(st.integers(3, 60)), levels, 6)
    random = np.random.default_rng(seed)
    some = random.permutation(len(trie.items))
    asked = toys.requests(seed, 5, [None, Filter.deny(trie, some[::3])])
    width = data.draw(st.integers(1, 5))
    wanted = toys.run(TARGET, trie, asked, Setting(width))
    proposals = Proposals(trie, Fixed(some), data.draw(st.integers(0, 60)))
    more = st.lists(st.integers(0, 8), min_size=levels - 1, max_size=levels - 1)
    widths = [width + extra for extra in data.draw(more)]
    pace = FixedPace(widths, data.draw(st.integers(0, 4)), levels)
    drafter: BeamDrafter = ItemDrafter(proposals, pace)
    if data.draw(st.booleans()):
        draft = ModelDrafter(BeamModel(DRAFT, Constraint(trie, levels)), width, pace)
        drafter = MixedDrafter(draft, proposals, data.draw(st.integers(0, 9)))
    assert toys.same(searched(trie, asked, drafter, width), wanted)


def test_the_right_items_save_all_further_calls() -> None:
    """Proposals that hold every beam of every level: one pass, beside a useless draft model too."""
    trie, ids = toys.catalogue(1, 40, 4, 5)
    asked = toys.requests(1, 4)
    everything = Proposals(trie, Fixed(np.arange(len(ids))))
    alone = ItemDrafter(everything, FixedPace(200, 3, 4))
    useless = ModelDrafter(BeamModel(DRAFT, Constraint(trie, 4)), 3, FixedPace(3, 3, 4))
    for drafter in (alone, MixedDrafter(useless, everything, 200)):
        found = searched(trie, asked, drafter, 3)
        assert [b.target_calls for b in found] == [1, 1, 1, 1]
    even = searched(trie, asked, MixedDrafter(useless, everything, 200, even=True), 3)
    most = 3 * 2 * whole(3)  # of a pass: three levels, each as many proposals as drafts
    assert all(b.drafted <= b.target_calls * most for b in even)
    assert all(b.drafted > most for b in found)
    few = ItemDrafter(everything, FixedPace(200, 1, 4))
    assert [b.target_calls for b in searched(trie, asked, few, 3)] == [2, 2, 2, 2]


@pytest.mark.slow
def test_levels_that_hardly_branch_are_drafted_whole() -> None:
    """Five first tokens, three drafted by someone who knows nothing: all five are, and the first
    level costs no pass of its own."""
    trie, _ = toys.catalogue(1, 40, 4, 5)
    asked = toys.requests(1, 12)
    pace = FixedPace(3, 1, 4)
    useless = ModelDrafter(BeamModel(DRAFT, Constraint(trie, 4)), 3, pace)
    for drafter in (ItemDrafter(Proposals(trie, Fixed(np.arange(0))), pace), useless):
        assert max(b.target_calls for b in searched(trie, asked, drafter, 3)) <= 3
    denied = [
        BeamRequest(r.key, r.prompt_ids, Filter.deny(trie, np.arange(0, 40, 3))) for r in asked
    ]
    nobody = ItemDrafter(Proposals(trie, Fixed(np.arange(0))), pace)
    assert toys.same(searched(trie, denied, nobody, 3), toys.run(TARGET, trie, denied, Setting(3)))


def test_what_is_denied_takes_no_rows() -> None:
    """Neither as a proposal nor in a level that is drafted whole."""
    ids = np.array([[3, 5], [3, 6], [4, 5], [7, 6]], np.int32)
    trie = ItemTrie.build(np.arange(4), ids)
    denied = BeamRequest(0, np.array([4, 8], np.int32), Filter.deny(trie, np.array([0, 1])))
    for proposed, width in ((np.arange(4), 2), (np.arange(0), 3)):
        drafter = ItemDrafter(Proposals(trie, Fixed(proposed)), FixedPace(width, 1, 2))
        (found,) = searched(trie, [denied], drafter, 2)
        assert (found.target_calls, found.drafted) == (1, 2)


def test_a_prefix_weighs_what_its_items_weigh() -> None:
    ids = np.array([[3, 5], [3, 6], [4, 5], [4, 6]], np.int32)
    trie = ItemTrie.build(np.arange(4), ids)
    proposals = Proposals(trie, Fixed(np.array([3, 0, 1])))  # weights 1, 1/2, 1/3
    request = BeamRequest(0, np.array([1], np.int32))
    leaves, weights = proposals._legal(request)
    assert dict(zip(leaves.tolist(), weights.tolist(), strict=True)) == {6: 1.0, 3: 0.5, 4: 1 / 3}


@pytest.mark.slow
@settings(max_examples=30)
@given(data=st.data())
def test_scores_beside_the_beams_are_a_whole_searchs_and_move_no_beam(
    data: st.DataObject,
) -> None:
    """Of any leaves, beams end there or not, whoever drafts, filtered or renormalised or not."""
    seed = data.draw(st.integers(0, 10_000))
    levels = data.draw(st.integers(1, 4))
    trie, ids = toys.catalogue(seed, data.draw(st.integers(3, 50)), levels, 5)
    random = np.random.default_rng(seed)
    denied = Filter.deny(trie, random.permutation(len(ids))[::3])
    constraint = Constraint(trie, levels, data.draw(st.booleans()))
    plain = toys.requests(seed, 5, [None, denied])
    asked = []
    for request in plain:
        places = random.permutation(len(ids))[: random.integers(0, 12)]
        leaves = np.unique(trie.leaves_of(places))
        if request.filter is not None:
            leaves = leaves[request.filter.legal(leaves)]
        asked.append(replace(request, beside=leaves))
    width = data.draw(st.integers(1, 4))
    pace = FixedPace(width + 3, data.draw(st.integers(0, 3)), levels)
    proposals = Proposals(trie, Fixed(random.permutation(len(ids))))
    drafters: list[BeamDrafter] = [
        NoBeamDrafter(),
        ItemDrafter(proposals, pace),
        ModelDrafter(BeamModel(DRAFT, constraint), width, pace),
    ]
    target = BeamModel(TARGET, constraint)
    wanted = search(BeamEngine(target, NoBeamDrafter(), width, 3), plain)
    everything = search(BeamEngine(target, NoBeamDrafter(), trie.leaves, 2), plain)
    for drafter in drafters:
        found = search(BeamEngine(target, drafter, width, 3, beside=12), asked)
        assert toys.same(found, wanted)
        for request, beams, all_ in zip(asked, found, everything, strict=True):
            scores = dict(zip(all_.leaves.tolist(), all_.scores.tolist(), strict=True))
            theirs = [scores[leaf] for leaf in request.beside.tolist()]
            np.testing.assert_allclose(beams.beside, theirs, atol=1e-4)
            own = dict(zip(beams.leaves.tolist(), beams.scores.tolist(), strict=True))
            beside = zip(request.beside.tolist(), beams.beside.tolist(), strict=True)
            assert all(own[leaf] == score for leaf, score in beside if leaf in own)


def test_leaves_beside_the_beams_need_room_and_save_passes() -> None:
    trie, ids = toys.catalogue(1, 40, 4, 5)
    every = np.unique(trie.leaves_of(np.arange(len(ids))))
    asked = [replace(r, beside=every) for r in toys.requests(1, 4)]
    target = BeamModel(TARGET, Constraint(trie, 4))
    found = search(BeamEngine(target, NoBeamDrafter(), 3, 2, beside=len(every)), asked)
    assert [b.target_calls for b in found] == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="beside"):
        search(BeamEngine(target, NoBeamDrafter(), 3, 2, beside=3), asked)
