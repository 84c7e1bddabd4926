"""Trees of a head and another drafter: what is asked, what is joined, what is kept."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftrec.core import ALL, EMPTY_TREE, HEAD, DraftTree, IntArray, Request, Verdict
from draftrec.engine.learned import growth
from draftrec.engine.learned.drafter import BRANCHES, PLAIN, HeadDrafter
from draftrec.engine.learned.head import DraftHead, HeadPasses, HeadShape, unrolled
from draftrec.engine.learned.rules import ScoreRules
from draftrec.engine.noise import foreseen, noise_of, place_of, uniform
from draftrec.engine.text.loop import NoDrafter
from draftrec.engine.tree import check_tree, depths, make_tree

SHAPE = HeadShape(hidden=16, heads=4, kv_heads=2, head_dim=8, inner=24)
VOCABULARY = 40
TOKENS = np.array([1, 3, 4, 7, 9, 10, 11, 15, 16, 20, 21, 22, 23, 30], np.int64)


@dataclass
class Text:
    """A sequence as the loop has it: all rows but the last token's are there."""

    request: Request
    context: IntArray
    slot: int
    room: int = 30
    late: int = 1
    noise: int | None = None

    @property
    def computed(self) -> int:
        return len(self.context) - self.late


@dataclass
class Fixed(NoDrafter):
    """Proposes the same tree for every sequence."""

    tree: DraftTree = field(default_factory=lambda: EMPTY_TREE)

    def draft(self, batch: Seq[Any], limit: int, depth: int) -> list[DraftTree]:
        return [self.tree] * len(batch)


class World:
    """A head with random weights, and random features of the target's."""

    def __init__(self, texts: int = 2, length: int = 12, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.head = DraftHead(SHAPE)
        for p in self.head.parameters():
            torch.nn.init.normal_(p, std=0.5)
        self.embedding = torch.randn(VOCABULARY, 16)
        self.output = torch.randn(len(TOKENS), 16) * 2
        self.features = torch.randn(texts, 64, 16)
        self.ids = torch.randint(0, VOCABULARY, (texts, length)).int().numpy()
        config = SimpleNamespace(vocab_size=VOCABULARY)
        model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))
        slab = SimpleNamespace(slots=texts, capacity=64, features=self.features)
        self.target: Any = SimpleNamespace(slab=slab, model=model)

    def drafter(self, inner: Any = None, levels: int = 3, rules: ScoreRules = PLAIN) -> HeadDrafter:
        passes = HeadPasses(self.head, lambda i: self.embedding[i], lambda h: h @ self.output.T)
        return HeadDrafter(inner or NoDrafter(), passes, self.target, TOKENS, levels, rules=rules)

    def text(self, slot: int, length: int) -> Text:
        ids = self.ids[slot]
        return Text(Request(str(slot), ids[:3]), ids[:length], slot)

    @torch.no_grad()
    def path_probs(
        self, slot: int, context: IntArray, path: Seq[int], rules: ScoreRules
    ) -> list[float]:
        """The head's probability of each token of a path below the text, as training unrolls it."""
        ids = torch.tensor([*context.tolist(), *path])
        n = len(context)
        before = torch.cat([torch.zeros(1, 16), self.features[slot, : len(ids) - 1]])
        items = unrolled(self.head, self.embedding[ids][None], before[None], n - 1, len(path))
        found = []
        for step, token in enumerate(path):
            logits = items[step][0, step] @ self.output.T
            had = ids[: n + step].tolist()
            for i, known in enumerate(TOKENS.tolist()):
                if known in had:
                    low = logits[i] < 0
                    logits[i] *= rules.repetition if low else 1 / rules.repetition
                written = had[3:].count(known)
                logits[i] -= rules.frequency * written + rules.presence * (written > 0)
            logits /= rules.temperature
            found.append(float(logits.softmax(-1)[TOKENS.tolist().index(token)]))
        return found


def paths(tree: DraftTree) -> list[list[int]]:
    """Token paths down to each node."""
    found: list[list[int]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        found.append([*(found[parent] if parent >= 0 else []), token])
    return found


@pytest.mark.parametrize("rules", [PLAIN, ScoreRules(1.6, 0.4, 0.3, 0.7)], ids=str)
def test_alone_the_head_drafts_what_training_unrolls(rules: ScoreRules) -> None:
    world = World()
    drafter = world.drafter(rules=rules)
    drafter.weights[:] = [0, 0, 0, 0, 1, 0, 0, 0]  # its own estimate, unchanged
    for length in (6, 8):
        texts = [world.text(0, length), world.text(1, length + 3)]
        for text in texts:
            drafter.start(text)
        for text, tree in zip(texts, drafter.draft(texts, 16, 8), strict=True):
            check_tree(tree)
            assert (len(tree), depths(tree).max()) == (16, 2)
            assert set(tree.sources.tolist()) == {HEAD}
            for path, prob in zip(paths(tree), tree.probs.tolist(), strict=True):
                expected = np.prod(world.path_probs(text.slot, text.context, path, rules))
                assert prob == pytest.approx(expected, rel=2e-3, abs=2e-4)


def test_of_sampled_texts_the_noise_chooses_what_is_drafted() -> None:
    """At both levels, where the head alone drafts."""
    world = World()
    drafter = world.drafter(levels=2)
    drafter.weights[:] = [0, 0, 0, 0, 1, 0, 0, 0]
    text = world.text(0, 6)
    text.noise = noise_of(3, 14)
    drafter.start(text)
    tree = drafter.draft([text], 12, 8)[0]
    check_tree(tree)
    found = dict(zip(map(tuple, paths(tree)), tree.probs.tolist(), strict=True))
    second = [path for path in found if len(path) == 2]
    assert second
    for above in ((), second[0][:1]):
        probs = np.array(
            [world.path_probs(0, text.context, [*above, int(t)], PLAIN)[-1] for t in TOKENS]
        )
        place = 3 + len(above)  # the prompt has three tokens, the text so far three as well
        race = [
            np.log(p)
            - growth.BELIEF * np.log(-np.log(uniform(place_of(np.uint64(text.noise), place), t)))
            for p, t in zip(probs, TOKENS, strict=True)
        ]
        best = np.argsort(race)[::-1][:BRANCHES]
        expected = foreseen(
            probs[best], TOKENS[best], 1 - probs[best].sum(), text.noise, place, growth.BELIEF
        )
        over = found[above] if above else 1.0
        for t, p in zip(TOKENS[best].tolist(), expected.tolist(), strict=True):
            if (*above, t) in found:
                assert found[*above, t] == pytest.approx(over * p, rel=1e-2, abs=1e-3)
        mine = [path[-1] for path in found if path[:-1] == above]
        assert set(mine) <= set(TOKENS[best].tolist())


def test_the_noise_is_told_the_other_drafter_where_it_drafts_alone() -> None:
    world = World()
    text = world.text(0, 6)
    text.noise = 5
    seen: list[int | None] = []

    class Listening(Fixed):
        def draft(self, batch: Seq[Any], limit: int, depth: int) -> list[DraftTree]:
            seen.extend(s.noise for s in batch)
            return super().draft(batch, limit, depth)

    drafter = world.drafter(Listening())
    drafter.start(text)
    drafter.draft([text], 8, 8)
    text.late = 2  # its last row but one is not there yet
    drafter.draft([text], 8, 8)
    assert seen == [None, 5]


def test_rows_of_accepted_tokens_are_taken_from_the_target() -> None:
    """A text drafted from step by step gets the trees of one that begins where it is."""
    world = World()
    grown, text = world.drafter(), world.text(0, 5)
    grown.start(text)
    for length in (5, 6, 9, 12):
        text.context = world.ids[0][:length]
        tree = grown.draft([text], 12, 4)[0]
        fresh, other = world.drafter(), world.text(0, length)
        fresh.start(other)
        same = fresh.draft([other], 12, 4)[0]
        assert tree.token_ids.tolist() == same.token_ids.tolist()
        np.testing.assert_allclose(tree.probs, same.probs, rtol=1e-4)


def test_what_both_propose_is_one_node() -> None:
    world = World()
    alone, text = world.drafter(), world.text(0, 7)
    alone.start(text)
    first = int(alone.draft([text], 1, 4)[0].token_ids[0])
    other = next(t for t in range(VOCABULARY) if t not in TOKENS)
    pool = make_tree([first, other, 3, 4], [-1, -1, 0, 2], [0.6, 0.2, 0.5, 0.4], [ALL] * 4)
    both, text = world.drafter(Fixed(pool)), world.text(0, 7)
    both.start(text)
    tree = both.draft([text], 12, 6)[0]
    check_tree(tree)
    root = tree.token_ids[tree.parents < 0].tolist()
    assert root.count(first) == root.count(other) == 1
    assert tree.sources[tree.token_ids.tolist().index(first)] == ALL
    assert {HEAD, ALL} == set(tree.sources.tolist())


def test_what_was_drawn_for_a_pass_that_failed_is_forgotten() -> None:
    drafter, settled = World(1).drafter(), []
    text = World(1).text(0, 8)
    drafter.worth = SimpleNamespace(  # type: ignore[assignment]
        rests=lambda _: False, pays=lambda *_: True, looked=lambda *_, **__: None,
        settle=lambda *found: settled.append(found),
    )  # fmt: skip
    drafter.start(text)
    (tree,) = drafter.draft([text], 8, 3)
    assert len(tree) == 8
    text.late = 2  # asked anew, and the head has no say now
    drafter.draft([text], 30, 3)
    drafter.observe([text], [Verdict(np.arange(20, dtype=np.int32), np.arange(20, dtype=np.int32))])
    assert not settled


def test_prompts_under_way_are_left_to_the_other_drafter() -> None:
    world = World()
    pool = make_tree([5], [-1], [0.5], [ALL])
    drafter, text = world.drafter(Fixed(pool)), world.text(0, 7)
    text.late = 4
    drafter.start(text)
    assert drafter.draft([text], 8, 4)[0] is pool


def test_so_are_those_of_which_neighbours_have_left_a_token() -> None:
    """A tree does not depend on them: relaxed texts would."""
    world = World()
    pool = make_tree([5], [-1], [0.5], [ALL])
    drafter, ids = world.drafter(Fixed(pool)), world.ids[0]
    text = Text(Request("0", ids[:7]), ids[:7], 0)
    drafter.start(text)
    assert drafter.draft([text], 8, 4)[0] is pool
    text.context = ids[:8]
    assert len(drafter.draft([text], 8, 4)[0]) == 8


@given(st.data())
def test_trees_keep_their_promises(data: st.DataObject) -> None:
    world = World(texts=3, seed=data.draw(st.integers(0, 5)))
    n = data.draw(st.integers(0, 8))
    parents = [data.draw(st.integers(-1, i - 1)) for i in range(n)]
    tokens: list[int] = []
    probs: list[float] = []
    for i, parent in enumerate(parents):
        taken = {tokens[j] for j in range(i) if parents[j] == parent}
        tokens.append(data.draw(st.sampled_from(sorted({*range(VOCABULARY)} - taken))))
        over = probs[parent] if parent >= 0 else 1.0
        probs.append(over * data.draw(st.floats(0.01, 0.6)))
    pool = make_tree(tokens, parents, probs, [ALL] * n)
    drafter = world.drafter(Fixed(pool), levels=data.draw(st.integers(1, 4)))
    texts = [world.text(slot, data.draw(st.integers(3, 12))) for slot in range(3)]
    for text in texts:
        drafter.start(text)
    limit = max(n, data.draw(st.integers(1, 20)))
    for tree in drafter.draft(texts, limit, 8):
        check_tree(tree)
        assert len(tree) <= limit
        above = np.where(tree.parents < 0, 1.0, tree.probs[tree.parents])
        assert ((tree.probs >= 0) & (tree.probs <= above + 1e-6)).all()
