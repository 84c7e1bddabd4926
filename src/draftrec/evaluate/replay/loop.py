"""Replay: strict acceptance of recorded texts, without a model.

A greedy target that writes a text accepts exactly the drafts that agree with it. So a recording is
enough to count the forward passes that a drafter's trees would have saved, and to size pools from
logs. It says nothing about wall time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from draftrec.core import SOURCES, Counts, Drafter, DraftTree, IntArray, Request, Verdict
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.text.stats import record
from draftrec.engine.tree import depths
from draftrec.evaluate.replay.recordings import Recording
from draftrec.evaluate.settings import ReplaySettings

#: A finished text and its group, as pools take them.
PoolText = tuple[IntArray, str | None]


class ReplayDrafter(Drafter, Protocol):
    """A drafter with the texts that it drafts from, which grows by finished ones."""

    @property
    def tokens(self) -> int:
        """Tokens of the texts taken in so far."""
        ...

    @property
    def nbytes(self) -> int | None:
        """Bytes of the index over them; None where the drafter cannot tell."""
        ...

    @property
    def names_sources(self) -> bool:
        """Whether the nodes of its trees say where they come from."""
        ...

    def add(self, texts: Iterable[PoolText]) -> None: ...


@dataclass(slots=True)
class Intake:
    """Processor seconds and tokens of the texts that a drafter has taken in."""

    seconds: float = 0.0
    tokens: int = 0

    def add(self, drafter: ReplayDrafter, texts: Seq[PoolText]) -> None:
        """Give `drafter` the texts and time it."""
        start = time.process_time_ns()
        drafter.add(texts)
        self.seconds += (time.process_time_ns() - start) / 1e9
        self.tokens += sum(len(ids) for ids, _ in texts)

    @property
    def us_per_token(self) -> float:
        return 1e6 * self.seconds / self.tokens if self.tokens else 0.0


@dataclass(slots=True)
class Replayed:
    """What one drafter's trees were worth. Times are processor time, which other programs on the
    machine disturb less than the clock's."""

    texts: int = 0
    tokens: int = 0
    steps: int = 0
    counts: Counts = field(default_factory=Counts)
    lookup_ns: list[int] = field(default_factory=list)
    upkeep_ns: int = 0

    @property
    def drafted(self) -> int:
        """Tokens of all drafts."""
        return self.counts.drafted_tokens

    def summary(self, drafter: ReplayDrafter, intake: Intake) -> dict[str, Any]:
        """The contract's figures: counts, microseconds, bytes; `upkeep_us_per_token` is the time
        for indexing prompts and running texts."""
        steps, tokens, held = max(self.steps, 1), max(self.tokens, 1), drafter.tokens
        nbytes = drafter.nbytes if held else 0
        p50, p99 = np.percentile(self.lookup_ns or [0], [50, 99]) / 1e3
        found: dict[str, Any] = {
            "texts": self.texts,
            "tokens": self.tokens,
            "steps": self.steps,
            "tokens_per_step": round(self.tokens / steps, 4),
            "drafted_per_step": round(self.drafted / steps, 3),
            "lookup_us_p50": round(float(p50), 1),
            "lookup_us_p99": round(float(p99), 1),
            "upkeep_us_per_token": round(self.upkeep_ns / 1e3 / tokens, 2),
            "build_us_per_token": round(intake.us_per_token, 3),
            "bytes_per_token": None if nbytes is None else round(nbytes / max(held, 1), 1),
            "pool_tokens": held,
        }
        if drafter.names_sources:
            by_source = self.counts.accepted_by_source
            found["accepted_by_source"] = dict(zip(SOURCES, by_source, strict=True))
        return found


def replay(
    drafter: ReplayDrafter,
    recordings: Seq[Recording],
    settings: ReplaySettings,
    intake: Intake | None = None,
    watch: Callable[[int], None] = lambda done: None,
) -> Replayed:
    """Replay the recordings one after another in the order given.

    `intake` is charged with finished texts that join the pool; `watch` hears how many texts are
    done. Raises RuntimeError if a drafter goes beyond the budget or the depth: figures of
    different drafters would not be comparable.
    """
    result, intake = Replayed(), intake or Intake()
    # Every text may use the room of the longest: a drafter must not learn when a text will end.
    room = max((len(r.token_ids) for r in recordings), default=0) + settings.depth + 1
    for i, recording in enumerate(recordings):
        if not settings.refresh or recording.previous_ids is not None:
            _replay_text(drafter, recording, settings, room, result)
        if settings.grow:
            intake.add(drafter, [(recording.token_ids, recording.group)])
        watch(i + 1)
    return result


def follow(tree: DraftTree, recorded: IntArray) -> Verdict:
    """Verdict for a tree under which the text goes on with `recorded`: the longest path that it
    contains, then its next token unless the text is over."""
    path: list[int] = []
    tail, left = -1, recorded[: len(tree)].tolist()
    # A child comes after its parent and siblings differ, so one pass finds the whole path.
    for node, (token, parent) in enumerate(
        zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True)
    ):
        if parent == tail and len(path) < len(left) and token == left[len(path)]:
            path.append(node)
            tail = node
    return Verdict(np.array(path, np.int32), recorded[: len(path) + 1])


def _replay_text(
    drafter: Drafter, recording: Recording, settings: ReplaySettings, room: int, result: Replayed
) -> None:
    """Replay one text and add it to `result`."""
    text = recording.token_ids
    request = Request(
        recording.entity_id, recording.prompt_ids, recording.group, recording.previous_ids
    )
    sequence = RunningSequence(result.texts, 0, request, room)
    clock = time.process_time_ns
    start = clock()
    drafter.start(sequence)
    result.upkeep_ns += clock() - start
    while sequence.new_tokens < len(text):
        start = clock()
        tree = drafter.draft([sequence], settings.budget, settings.depth)[0]
        result.lookup_ns.append(clock() - start)
        _refuse_excess(tree, settings)
        verdict = follow(tree, text[sequence.new_tokens :])
        record(sequence, tree, verdict)
        sequence.extend(verdict, frozenset())
        start = clock()
        drafter.observe([sequence], [verdict])
        result.upkeep_ns += clock() - start
        result.steps += 1
    drafter.stop(sequence)
    result.texts += 1
    result.tokens += len(text)
    result.counts += sequence.counts


def _refuse_excess(tree: DraftTree, settings: ReplaySettings) -> None:
    levels = int(depths(tree).max()) + 1 if len(tree) else 0
    if len(tree) > settings.budget or levels > settings.depth:
        raise RuntimeError(
            f"a drafter drew {len(tree)} nodes on {levels} levels, where {settings.budget} "
            f"nodes on {settings.depth} levels are allowed"
        )
