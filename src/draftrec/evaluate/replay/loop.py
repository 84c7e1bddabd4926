"""Replay: strict acceptance of recorded texts, without a model.

A greedy target that writes a text accepts exactly the drafts that agree with it. So a recording is
enough to count the forward passes that a drafter's trees would have saved, and to size pools from
logs. It says nothing about wall time.

Compared are the pool as `generate` uses it, parts of it, and drafters from elsewhere. Those are
named `module:Class`: called with the tokenizer, it gives a `ReplayDrafter`. The rivals in
`benchmarks/rivals` are such classes, which have names of their own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from draftrec.core import (
    SOURCES,
    Counts,
    Drafter,
    DraftTree,
    IntArray,
    Request,
    SequenceView,
    Verdict,
)
from draftrec.data.files.places import place
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.text.stats import record
from draftrec.engine.tree import depths
from draftrec.errors import DraftrecError
from draftrec.evaluate.replay.recordings import Recording
from draftrec.evaluate.settings import ReplaySettings
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.store import Pool

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


#: Makes a drafter that has no texts yet for the tokens of a tokenizer.
Maker = Callable[[Any], ReplayDrafter]

#: Name -> what drafts, in the order in which `--help` has them.
OWN: dict[str, Maker] = {
    "pool": lambda _: FromPool(_empty()),
    "all": lambda _: FromPool(_empty(), grouped=False),
    "group": lambda _: PerGroup(lambda: FromPool(_empty())),
    "prompt": lambda _: FromPrompt(),
}
_TRIE = "rivals.published_trie:of_tokenizer"
#: Rivals' names -> where they are, seen from `benchmarks/`, and whether every group has its own.
RIVALS = {
    "ngram": ("rivals.ngram:NgramDrafter", False),
    "trie": (_TRIE, False),
    "trie-group": (_TRIE, True),
}
NAMES = (*OWN, *RIVALS)
#: Those that can draft from a pool's folder; the others need the texts.
FROM_FOLDER = ("pool", "prompt")

_NEEDED = ("start", "draft", "observe", "stop", "add", "tokens", "nbytes", "names_sources")
_BENCHMARKS = Path(__file__).parents[4] / "benchmarks"


class FromPool(PoolDrafter):
    """A pool and the drafter of `generate`. `grouped` False leaves the level of groups out."""

    names_sources = True
    pool: Pool

    def __init__(self, pool: Pool, *, grouped: bool = True) -> None:
        super().__init__(pool)
        self.grouped = grouped

    @property
    def tokens(self) -> int:
        return self.pool.tokens

    @property
    def nbytes(self) -> int:
        return self.pool.nbytes

    def add(self, texts: Iterable[PoolText]) -> None:
        """Add finished texts."""
        self.pool.add((ids, group if self.grouped else None) for ids, group in texts)


class FromPrompt(PoolDrafter):
    """Drafts from the prompt, the running text and the previous text; finished texts are lost."""

    names_sources = True
    tokens = 0
    nbytes = 0

    def add(self, texts: Iterable[PoolText]) -> None:
        """Nothing is kept."""


class PerGroup:
    """A drafter of its own for every group: each sequence drafts from its group's texts only."""

    def __init__(self, make: Callable[[], ReplayDrafter]) -> None:
        self._make = make
        self._drafters: dict[str | None, ReplayDrafter] = {}
        self.names_sources = make().names_sources

    @property
    def tokens(self) -> int:
        return sum(drafter.tokens for drafter in self._drafters.values())

    @property
    def nbytes(self) -> int | None:
        known = [drafter.nbytes for drafter in self._drafters.values()]
        return None if None in known else sum(n for n in known if n is not None)

    def add(self, texts: Iterable[PoolText]) -> None:
        """Add each text to its group's drafter."""
        by_group: dict[str | None, list[PoolText]] = {}
        for ids, group in texts:
            by_group.setdefault(group, []).append((ids, None))
        for group, own in by_group.items():
            self._of(group).add(own)

    def start(self, sequence: SequenceView) -> None:
        """Let its group's drafter prepare the sequence."""
        self._of(sequence.request.group).start(sequence)

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        """One tree per sequence."""
        return [self._of(s.request.group).draft([s], limit, depth)[0] for s in batch]

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None:
        """Pass on what was just written."""
        for sequence, verdict in zip(batch, verdicts, strict=True):
            self._of(sequence.request.group).observe([sequence], [verdict])

    def stop(self, sequence: SequenceView) -> None:
        """Forget the sequence."""
        self._of(sequence.request.group).stop(sequence)

    def _of(self, group: str | None) -> ReplayDrafter:
        if group not in self._drafters:
            self._drafters[group] = self._make()
        return self._drafters[group]


def maker_of(name: str) -> Maker:
    """What makes the drafter of that name, or `module:Class`.

    Raises DraftrecError for an unknown name, for what cannot be imported, and for a rival's name
    outside a checkout.
    """
    if name in OWN:
        return OWN[name]
    if name in RIVALS:
        if not (_BENCHMARKS / "rivals").is_dir():
            raise DraftrecError(
                f"drafter {name!r} is not part of the package: it lies in benchmarks/rivals of its "
                "source; it is found where draftrec is installed from a checkout (pip install -e .)"
            )
        where, grouped = RIVALS[name]
        make = _imported(where, _BENCHMARKS)
        return (lambda tokenizer: PerGroup(lambda: make(tokenizer))) if grouped else make
    if _is_learned(name):
        raise DraftrecError(
            f"--drafter {name} is a learned drafter, which goes by what the model computes, and "
            "recorded texts hold none of that; measure it with `draftrec tune RECORDS --model "
            f"MODEL --drafter {name}`"
        )
    if ":" not in name:
        raise DraftrecError(
            f"there is no drafter {name!r}; choose from {', '.join(NAMES)}, or name a class of "
            "your own as module:Class"
        )
    make = _imported(name, Path.cwd())

    def made(tokenizer: Any) -> ReplayDrafter:
        drafter = make(tokenizer)
        if lacking := [part for part in _NEEDED if not hasattr(drafter, part)]:
            raise DraftrecError(
                f"{name} has no {lacking[0]}; a drafter to replay needs what ReplayDrafter in "
                "draftrec.evaluate.replay.loop names"
            )
        return drafter

    return made


def _is_learned(name: str) -> bool:
    """Is it a folder of `draftrec drafter fit`?"""
    from draftrec.models.drafters import INFO_FILE

    return (place(name) / INFO_FILE).is_file()


def _imported(where: str, folder: Path) -> Maker:
    """What `module:Class` names; the module may lie in `folder`."""
    module, _, name = where.partition(":")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DraftrecError(
            f"--drafter {where} cannot be imported ({error}); give module:Class, of a module that "
            "is installed or lies in this folder"
        ) from error


def _empty() -> Pool:
    # Replay gets all its texts through one tokenizer, so there is nothing to tell apart.
    return Pool("replay")
