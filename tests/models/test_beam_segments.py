"""Trees that grow from pass to pass score as plain forward passes over every path would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftrec.core import DraftTree
from draftrec.engine.packing import Segment
from draftrec.engine.passes import attention
from draftrec.engine.target import Target
from draftrec.engine.tree import certain
from tests.models import zoo
from tests.strategies import token_lists, trees

SLOTS, CAPACITY = 4, 128


class Growing:
    """One beam search: a prompt, a tree, and the nodes that passes have computed so far."""

    def __init__(self, slot: int, prompt: list[int], tree: DraftTree) -> None:
        self.slot, self.prompt, self.tree = slot, np.array(prompt, np.int32), tree
        self.computed: list[int] = []
        self.started = False

    def segment(self, nodes: list[int]) -> Segment:
        """The rows of `nodes`; the whole prompt comes with the first pass."""
        order = np.array([*self.computed, *nodes], np.int32)
        place = {node: i for i, node in enumerate(order.tolist())} | {-1: -1}
        parents = [place[p] for p in self.tree.parents[order].tolist()]
        drawn = certain(self.tree.token_ids[order], np.array(parents, np.int32))
        past, self.computed = len(self.computed), order.tolist()
        if self.started:
            return Segment(self.slot, len(self.prompt), self.prompt[:0], drawn, past=past)
        self.started = True
        return Segment(self.slot, 0, self.prompt, drawn)

    def ready(self) -> list[int]:
        """Nodes that are not computed and whose ancestors are."""
        done = {-1, *self.computed}
        return [i for i, p in enumerate(self.tree.parents.tolist()) if i not in done and p in done]


def grow(target: Target, name: str, searches: list[Growing], data: st.DataObject) -> None:
    """Passes over drawn nodes until all are computed; every logit is compared."""
    for _ in range(12):
        segments: list[Segment] = []
        expected: list[torch.Tensor] = []
        for search in searches:
            nodes = sorted(data.draw(st.sets(st.sampled_from(r)))) if (r := search.ready()) else []
            # Children may come along with their parents in one pass.
            more = [i for i, p in enumerate(search.tree.parents.tolist()) if p in nodes]
            if more and data.draw(st.booleans()):
                nodes = [*nodes, *more]
            if search.started and not nodes:
                continue
            first = not search.started
            segments.append(search.segment(nodes))
            rows = zoo.plain_rows(zoo.plain(name), search.prompt.tolist(), search.tree)
            expected.append(rows[[*([0] if first else []), *(i + 1 for i in nodes)]])
        if not segments:
            continue
        found = target.score(segments).logits
        torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NAMES)
@settings(max_examples=6)
@given(data=st.data())
def test_nodes_see_their_ancestors_of_earlier_passes(name: str, data: st.DataObject) -> None:
    target = zoo.target(name)
    target.reserve(SLOTS, CAPACITY)
    assert target.slab is not None
    for rows in target.slab.memory:
        rows.normal_()
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


@pytest.mark.slow
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
