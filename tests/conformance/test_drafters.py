"""What the loop relies on, of every drafter: trees within bounds, one per text, whatever the
neighbours; nothing kept of texts that are gone; the same words as without it."""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import pytest

from draftrec.config import AcceptConfig
from draftrec.core import Drafter, Request, SequenceView
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.text.loop import NoDrafter, generate
from draftrec.engine.tree import check_tree, depths
from draftrec.evaluate.replay.loop import NAMES, maker_of
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.store import Pool
from draftrec.serve.work import SwitchingDrafter
from tests.engine.text.toy import EOS, toy_engine, toy_requests
from tests.evaluate.replay.tokenizer import ToyTokenizer

VOCABULARY, GROUPS = 7, ("a", "b", None)


def texts(count: int, length: int = 30) -> list[tuple[np.ndarray, str | None]]:
    """Texts that repeat themselves and each other, in groups."""
    random = np.random.default_rng(5)
    pieces = random.integers(1, VOCABULARY, (6, 5))
    made = [np.concatenate(pieces[random.integers(6, size=length // 5)]) for _ in range(count)]
    return [(ids.astype(np.int32), GROUPS[i % 3]) for i, ids in enumerate(made)]


def replayed(name: str) -> Drafter:
    drafter = maker_of(name)(ToyTokenizer(bos_token_id=1, eos_token_id=EOS))
    drafter.add(texts(20))
    return drafter


def pooled() -> Drafter:
    pool = Pool("t")
    pool.add(texts(20))
    return PoolDrafter(pool)


MAKERS: dict[str, Callable[[], Drafter]] = {
    "nothing": NoDrafter,
    "the text alone": PoolDrafter,
    "pool": pooled,
    "switching": lambda: SwitchingDrafter(pooled()),
    **{f"replay {name}": lambda name=name: replayed(name) for name in NAMES},
}


@pytest.fixture(params=MAKERS)
def drafter(request: pytest.FixtureRequest) -> Drafter:
    return MAKERS[request.param]()


def running(number: int, room: int = 40) -> RunningSequence:
    """A text that has its prompt and the beginning of one of `texts`."""
    ids, group = texts(8)[number]
    request = Request(str(number), ids[:12], group, previous_ids=ids[:20] if number % 2 else None)
    return RunningSequence(number, number, request, room)


def wanted(drafter: Drafter, batch: Seq[SequenceView], limit: int, depth: int) -> list[Any]:
    return [
        (t.token_ids.tolist(), t.parents.tolist(), t.probs.tolist(), t.sources.tolist())
        for t in drafter.draft(batch, limit, depth)
    ]


@pytest.mark.parametrize(("limit", "depth"), [(1, 1), (8, 3), (30, 24)])
def test_a_tree_per_text_within_its_bounds(drafter: Drafter, limit: int, depth: int) -> None:
    batch = [running(i) for i in range(5)]
    for sequence in batch:
        drafter.start(sequence)
    assert drafter.draft([], limit, depth) == []
    trees = drafter.draft(batch, limit, depth)
    assert len(trees) == 5
    for tree in trees:
        check_tree(tree)
        assert len(tree) <= limit
        assert (depths(tree) < depth).all()
        assert ((tree.token_ids >= 0) & (tree.token_ids < VOCABULARY)).all()
        assert ((tree.probs >= 0) & (tree.probs <= 1)).all()


def test_a_tree_does_not_depend_on_the_neighbours(drafter: Drafter) -> None:
    """Relaxed texts would be others beside other texts."""
    batch = [running(i) for i in range(6)]
    for sequence in batch:
        drafter.start(sequence)
    together = wanted(drafter, batch, 12, 8)
    assert [wanted(drafter, [s], 12, 8)[0] for s in batch] == together
    assert wanted(drafter, batch[::-1], 12, 8) == together[::-1]


def test_nothing_is_kept_of_a_text_that_is_gone(drafter: Drafter) -> None:
    for _ in range(3):  # a later text may get the place of an earlier one in memory
        sequence = running(1)
        gone = weakref.ref(sequence)
        drafter.start(sequence)
        drafter.draft([sequence], 8, 4)
        drafter.stop(sequence)
        del sequence
        assert gone() is None


def reachable(root: Any) -> int:
    """How many objects hang on one, code apart."""
    seen: dict[int, Any] = {}
    queue = [root]
    while queue:
        one = queue.pop()
        code = isinstance(one, (type, types.ModuleType, types.FunctionType, types.MethodType))
        if id(one) not in seen and not code:
            seen[id(one)] = one
            queue += gc.get_referents(one)
    return len(seen)


def test_what_a_drafter_holds_does_not_grow_with_the_texts_that_it_has_seen(
    drafter: Drafter,
) -> None:
    def served(sequence: RunningSequence) -> None:
        drafter.start(sequence)
        drafter.draft([sequence], 8, 4)
        drafter.stop(sequence)

    batch = [running(i % 8) for i in range(24)]  # all kept, so that none has another's place
    for sequence in batch[:8]:
        served(sequence)
    before = reachable(drafter)
    for sequence in batch[8:]:
        served(sequence)
    assert reachable(drafter) == before


def test_texts_come_and_go_in_any_order(drafter: Drafter) -> None:
    first, second, third = (running(i) for i in range(3))
    drafter.start(first)
    drafter.start(second)
    alone = wanted(drafter, [second], 8, 4)
    drafter.stop(first)
    drafter.start(third)
    assert wanted(drafter, [third, second], 8, 4)[1:] == alone
    drafter.stop(second)
    drafter.stop(third)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_strict_texts_are_those_of_plain_decoding(drafter: Drafter, temperature: float) -> None:
    random = np.random.default_rng(0)
    table = 2 * random.normal(size=(VOCABULARY, VOCABULARY))
    config = AcceptConfig(temperature=temperature, seed=3)
    told: list[int] = []
    plain = generate(toy_engine(table, config, most=25), toy_requests(8))
    engine = toy_engine(table, config, drafter, most=25)
    drafted = generate(engine, toy_requests(8), lambda step: told.append(step.drafted_tokens))
    assert [g.token_ids.tolist() for g in drafted] == [g.token_ids.tolist() for g in plain]
    assert sum(told) > 0 or isinstance(drafter, NoDrafter)
