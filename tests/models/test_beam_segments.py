"""Trees that grow from pass to pass score as plain forward passes over every path would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftrec.core import EMPTY_TREE, DraftTree
from draftrec.engine import attention
from draftrec.engine.packing import BeamSegment, Segment, pack, visibility
from draftrec.engine.target import Target
from draftrec.engine.tree import ancestor_mask, depths
from tests.models import zoo
from tests.strategies import token_lists, trees

SLOTS, CAPACITY = 4, 128


class Growing:
    """One beam search: a prompt, a tree, and the nodes that passes have computed so far."""

    def __init__(self, slot: int, prompt: list[int], tree: DraftTree) -> None:
        self.slot, self.prompt, self.tree = slot, np.array(prompt, np.int32), tree
        self.mask, self.depths = ancestor_mask(tree), depths(tree)
        self.computed: list[int] = []
        self.started = False

    def segment(self, nodes: list[int], wanted: list[int]) -> BeamSegment:
        """The rows of `nodes`; the whole prompt comes with the first pass."""
        order = [*self.computed, *nodes]
        positions = len(self.prompt) + self.depths[order].astype(np.int64)
        seen = self.mask[nodes][:, order] if nodes else np.zeros((0, len(order)), np.bool_)
        ids = self.tree.token_ids[nodes]
        asked = np.array([nodes.index(i) for i in wanted], np.int64)
        start = len(self.prompt)
        if not self.started:
            start, p = 0, len(self.prompt)
            ids = np.concatenate((self.prompt, ids))
            positions = np.concatenate((np.arange(p), positions))
            whole = np.zeros((p + len(nodes),) * 2, np.bool_)
            whole[:, :p], whole[:p, :p], whole[p:, p:] = True, np.tri(p, dtype=bool), seen
            seen, asked = whole, np.concatenate(([p - 1], asked + p))
            self.started = True
        self.computed = order
        return BeamSegment(self.slot, start, ids, positions, seen, asked)

    def ready(self) -> list[int]:
        """Nodes that are not computed and whose ancestors are."""
        done = {-1, *self.computed}
        return [i for i, p in enumerate(self.tree.parents.tolist()) if i not in done and p in done]


def grow(target: Target, name: str, searches: list[Growing], data: st.DataObject) -> None:
    """Passes over drawn nodes until all are computed; every logit is compared."""
    for _ in range(12):
        segments: list[BeamSegment] = []
        expected: list[torch.Tensor] = []
        for search in searches:
            nodes = sorted(data.draw(st.sets(st.sampled_from(r)))) if (r := search.ready()) else []
            # Children may come along with their parents in one pass.
            more = [i for i, p in enumerate(search.tree.parents.tolist()) if p in nodes]
            if more and data.draw(st.booleans()):
                nodes = [*nodes, *more]
            if search.started and not nodes:
                continue
            wanted = [i for i in nodes if data.draw(st.booleans())]
            first = not search.started
            segments.append(search.segment(nodes, wanted))
            rows = zoo.plain_rows(zoo.plain(name), search.prompt.tolist(), search.tree)
            expected.append(rows[[*([0] if first else []), *(i + 1 for i in wanted)]])
        if not segments:
            continue
        found = target.score(segments).logits
        torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", zoo.NAMES)
@settings(max_examples=6)
@given(data=st.data())
def test_nodes_see_their_ancestors_of_earlier_passes(name: str, data: st.DataObject) -> None:
    target = zoo.target(name)
    target.reserve(SLOTS, CAPACITY)
    assert target.slab is not None
    target.slab.keys.normal_()
    target.slab.values.normal_()
    slots = data.draw(st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=3, unique=True))
    searches = [
        Growing(
            slot,
            data.draw(token_lists(zoo.VOCABULARY, 1, 20)),
            data.draw(trees(zoo.VOCABULARY, 14)),
        )
        for slot in slots
    ]
    launch = data.draw(st.sampled_from([0, 1 << 40]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(attention._LAUNCH_COST, "cpu", launch)
        grow(target, name, searches, data)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
@settings(max_examples=6)
@given(data=st.data())
def test_the_fallback_sees_them_too(name: str, data: st.DataObject) -> None:
    model: Any = zoo.build(name)
    model._supports_attention_backend = False
    target = Target(model)
    target.reserve(SLOTS, CAPACITY)
    prompt = data.draw(token_lists(zoo.VOCABULARY, 1, 20))
    grow(target, name, [Growing(2, prompt, data.draw(trees(zoo.VOCABULARY, 14)))], data)


def test_texts_and_beam_searches_share_a_pass() -> None:
    """A block of both: each sees its own."""
    beam = BeamSegment(
        0,
        3,
        np.array([7, 8], np.int32),
        np.array([3, 3, 4, 4]),
        np.array([[1, 0, 1, 0], [0, 1, 0, 1]], np.bool_),
        np.array([1]),
    )
    text = Segment(1, 5, np.array([1, 2], np.int32), EMPTY_TREE)
    packed = pack([beam, text])
    assert (beam.column, beam.past, beam.rows) == (5, 2, 2)
    assert packed.positions.tolist() == [4, 4, 5, 6]
    assert packed.scored.tolist() == [1, 3]
    seen = visibility(packed, [0, 1], 2)
    assert seen.shape == (2, 2, 4)
    assert seen[0].tolist() == beam.seen.tolist()
    assert seen[1].astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]
