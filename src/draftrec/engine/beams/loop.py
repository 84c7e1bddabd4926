"""THE loop of recommendation: draft levels, score, keep the target's own beams level by level.

Plain beam search is this loop with nothing drafted: one level per pass. Whatever is drafted, the
target's scores choose every beam, so the answer is plain beam search's own (AtSpeed, arXiv
2410.05165, strict top-K verification): a level costs no pass of its own if all beams kept above it
were drafted, and the first level that is not still comes out right, since its candidates are
children of nodes that were scored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from draftrec.core import IntArray, LongArray
from draftrec.engine.beams.accept import BeamRule, StrictRule
from draftrec.engine.beams.drafters import BeamDrafter
from draftrec.engine.beams.model import BeamModel
from draftrec.engine.beams.state import BeamRequest, Beams, BeamTree, Scored, UserSearch
from draftrec.errors import Interrupted


@dataclass(slots=True)
class BeamEngine:
    """The parts of the loop. `width` is K, the beams kept of requests that do not say how many, and
    the most that any of them may keep; `slots` users run at once. `beside`: the most leaves that a
    request may want scores of, whatever its beams are. `prefixes`: further slots, so that prompts'
    rows stay where they are a while longer."""

    target: BeamModel
    drafter: BeamDrafter
    width: int
    slots: int
    rule: BeamRule = field(default_factory=StrictRule)
    beside: int = 0
    prefixes: int = 0

    @property
    def depth(self) -> int:
        """Tokens per item."""
        return self.target.constraint.levels


class SearchBatch:
    """At most `slots` running searches and the requests that wait. `results` by the requests'
    order: numbers from 0, in which they were added. `free`: slots of the cache, of which there may
    be more than searches run, the longest unused first."""

    def __init__(self, requests: Seq[BeamRequest], slots: int, prefixes: int = 0) -> None:
        self.slots = slots
        self.waiting: deque[tuple[int, BeamRequest]] = deque()
        self.running: list[UserSearch] = []
        self.results: dict[int, Beams] = {}
        self.free = list(range(slots + prefixes))
        self.added = 0
        for request in requests:
            self.add(request)

    def add(self, request: BeamRequest) -> int:
        """Let one more request wait; its order."""
        self.waiting.append((self.added, request))
        self.added += 1
        return self.added - 1

    @property
    def active(self) -> bool:
        return bool(self.running or self.waiting)

    @property
    def room(self) -> int:
        """How many more searches may run."""
        return self.slots - len(self.running)

    def finished(self) -> list[Beams]:
        """All results in input order. Raises RuntimeError while some are missing."""
        if len(self.results) != self.added:
            raise RuntimeError("some searches are not finished")
        return [self.results[order] for order in range(self.added)]


def search(
    engine: BeamEngine,
    requests: Iterable[BeamRequest],
    on_step: Callable[[Seq[UserSearch]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    longest: int | None = None,
) -> list[Beams]:
    """The best beams of every request; results in the order of `requests`.

    `on_step` gets the searches that a pass has finished. `longest`: tokens of the longest prompt,
    where requests are made as they are taken: no more of them than can run (None: they are all
    there). Raises Interrupted, after finishing a pass, once `should_stop()` is true.
    """
    if longest is None:
        requests = list(requests)
        longest = max((len(r.prompt_ids) for r in requests), default=1)
    coming = iter(requests)
    reserve(engine, longest)
    batch = SearchBatch((), engine.slots, engine.prefixes)
    try:
        while True:
            for request in islice(coming, batch.room):
                batch.add(request)
            if not batch.active:
                return batch.finished()
            if should_stop and should_stop():
                raise Interrupted
            passed = step(engine, batch)
            if on_step:
                on_step(passed.done)
    finally:
        for s in batch.running:  # of a call that did not end by itself
            drop(engine, batch, s.order)


@dataclass(frozen=True, slots=True)
class BeamStep:
    """What one pass did: the users who took part, the rows it computed, the finished searches."""

    users: int
    rows: int
    done: list[UserSearch]


def step(engine: BeamEngine, batch: SearchBatch) -> BeamStep:
    """One pass of the target over the running searches: draft, score, accept, commit."""
    admit(engine, batch)
    engine.drafter.draft(batch.running)
    rows = score(engine, batch.running)
    accept(engine, batch.running)
    commit(engine, batch.running)
    engine.drafter.observe(batch.running)
    return BeamStep(len(batch.running), rows, retire(engine, batch))


def reserve(engine: BeamEngine, longest: int) -> None:
    """Make room in every cache for prompts of at most `longest` tokens. A cache that is large
    enough keeps its content; a new one begins empty, so nothing may be running then."""
    rows = engine.width * engine.depth + engine.drafter.most_rows
    rows += engine.beside * (engine.depth - 1)
    slots = engine.slots + engine.prefixes
    engine.target.target.reserve(slots, longest + rows)
    engine.drafter.reserve(slots, longest)


def admit(engine: BeamEngine, batch: SearchBatch) -> None:
    """Let waiting requests into free slots, each into the one that holds most of its prompt."""
    while batch.waiting and batch.room:
        order, request = batch.waiting.popleft()
        tree = BeamTree(engine.depth)
        slot = engine.target.slot_for(request.prompt_ids, batch.free)
        batch.free.remove(slot)
        new = UserSearch(order, request, tree, engine.target.open(slot, request, tree))
        if len(request.beside):
            new.beside = planted(engine, tree, request.beside)
        engine.drafter.start(new)
        batch.running.append(new)


def planted(engine: BeamEngine, tree: BeamTree, leaves: LongArray) -> IntArray:
    """The nodes int32 `[n]` of `leaves` in a user's tree. Raises ValueError for more than the
    engine has room for, and without a trie."""
    trie = engine.target.constraint.trie
    if trie is None or len(leaves) > engine.beside:
        raise ValueError(f"{len(leaves)} leaves beside the beams; the engine takes {engine.beside}")
    tokens = trie.paths(leaves)
    return tree.plant(tokens, trie.walk(tokens))


def score(engine: BeamEngine, running: Seq[UserSearch]) -> int:
    """One pass of the target over what is missing of kept beams and drafts; its rows."""
    work: list[tuple[Scored, IntArray]] = []
    for s in running:
        s.trail = []
        nodes = np.concatenate((s.kept.nodes, *s.levels, s.owed()))
        engine.target.learn_forced(s.target, nodes[nodes >= 0])
        missing = s.target.missing(nodes)
        if len(missing) or not s.target.started:
            work.append((s.target, missing))
            s.target_calls += 1
            s.drafted += sum(len(level) for level in s.levels)
    return engine.target.rate(work)


def accept(engine: BeamEngine, running: Seq[UserSearch]) -> None:
    """Go down as many levels as the target can decide."""
    for s in running:
        engine.rule.decide(engine.target, s, s.request.width or engine.width)
        s.accepted_steps += len(s.trail) - 1


def commit(engine: BeamEngine, running: Seq[UserSearch]) -> None:
    """Keep the cached rows of beams, and drop those left behind."""
    moves: list[tuple[int, int, int]] = []
    for s in running:
        if not s.done:
            moves += s.target.forget(s.tree.closure(s.kept.nodes))
    engine.target.move(moves)


def retire(engine: BeamEngine, batch: SearchBatch) -> list[UserSearch]:
    """Move finished searches to `results` and free their slots; returns them."""
    done = [s for s in batch.running if s.done]
    for s in done:
        batch.results[s.order] = s.result()
        batch.free.append(s.target.slot)
        engine.drafter.stop(s)
    if done:
        batch.running = [s for s in batch.running if not s.done]
    return done


def drop(engine: BeamEngine, batch: SearchBatch, order: int) -> None:
    """Take a request out of the batch, whether it waits or runs: nobody wants its result any more.
    Its slot is free at once."""
    batch.waiting = deque(pair for pair in batch.waiting if pair[0] != order)
    for s in batch.running:
        if s.order == order:
            batch.free.append(s.target.slot)
            engine.drafter.stop(s)
            engine.rule.stop(s)
    batch.running = [s for s in batch.running if s.order != order]
