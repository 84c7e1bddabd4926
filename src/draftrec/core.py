"""Values and protocols shared by every floor. Depends on NumPy only.

Shapes: `n` draft nodes of one sequence, `m` accepted nodes, `R` scored rows of a whole batch.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]
LongArray = npt.NDArray[np.int64]
HalfArray = npt.NDArray[np.float16]
FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]

#: Why a text ended: an end-of-text token, no more room, a stop string.
FinishReason = Literal["eos", "length", "stop"]

#: Where a draft node came from; `DraftTree.sources` holds positions in this tuple.
SOURCES = ("prompt", "previous", "group", "all", "grammar", "head")
PROMPT, PREVIOUS, GROUP, ALL, GRAMMAR, HEAD = range(len(SOURCES))
#: In place of a position in `SOURCES`: the token was not drafted.
OWN = 255


@dataclass(frozen=True, slots=True)
class DraftTree:
    """Continuations proposed for one sequence, as a flat tree.

    `token_ids` int32 `[n]`; `parents` int32 `[n]`, a position smaller than the node's own or -1 for
    a child of the last committed token; `probs` float32 `[n]`, the estimated probability that the
    whole path down to the node is accepted; `sources` uint8 `[n]`, positions in `SOURCES`.
    Siblings carry distinct tokens.
    """

    token_ids: IntArray
    parents: IntArray
    probs: FloatArray
    sources: ByteArray

    def __len__(self) -> int:
        return len(self.token_ids)


EMPTY_TREE = DraftTree(
    np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.uint8)
)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What one text wants otherwise than the engine it is written by; None: as the engine has it.

    `rules`: an `engine.text.loop.TextRules`. `drafts`: whether anything is drafted. `log_probs`:
    keep the log-probability of every token, and of so many of the likeliest at its place.
    """

    rules: Any = None
    seed: int | None = None
    max_new_tokens: int | None = None
    drafts: bool = True
    log_probs: int | None = None


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token's log-probability where it stands, by the target's scores as they are: before
    penalties, masks and temperature. `likeliest`: tokens there with theirs, best first."""

    token_id: int
    log_prob: float
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One text to write: `prompt_ids` int32 `[p]`, p >= 1, special tokens included.

    `previous_ids` is the entity's own earlier text (refresh), the first thing to draft from.
    `key` seeds the sampling of this text alone, so that it depends on no other request. `sample`:
    which of its record's texts it is, counted from 0.
    """

    entity_id: str
    prompt_ids: IntArray
    group: str | None = None
    previous_ids: IntArray | None = None
    key: int = 0
    sample: int = 0
    wishes: Wishes = Wishes()


def ratio(part: float, whole: float) -> float:
    """The one over the other; 0 where there is nothing that it could be a part of."""
    return part / whole if whole else 0.0


@dataclass(slots=True)
class Counts:
    """What one sequence cost and what its drafts were worth, or several together (`+`). All are
    plain counts; those of `accepted_by_source` follow `SOURCES`."""

    target_calls: int = 0
    draft_calls: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    relaxed_tokens: int = 0
    accepted_by_source: list[int] = field(default_factory=lambda: [0] * len(SOURCES))

    def __post_init__(self) -> None:
        # What was written before a source existed has counted nothing for it.
        missing = len(SOURCES) - len(self.accepted_by_source)
        self.accepted_by_source = [*self.accepted_by_source, *[0] * missing]

    def __add__(self, other: Counts) -> Counts:
        own, more = self.accepted_by_source, other.accepted_by_source
        return Counts(
            **{name: getattr(self, name) + getattr(other, name) for name in COUNTED},
            accepted_by_source=[a + b for a, b in zip(own, more, strict=True)],
        )

    @classmethod
    def of(cls, work: Any) -> Counts:
        """Those that `work` has under the same names."""
        numbers = {name: getattr(work, name) for name in COUNTED}
        return cls(**numbers, accepted_by_source=list(work.accepted_by_source))

    def rates(self, new_tokens: int) -> dict[str, float]:
        """What the counts mean for texts of so many tokens; 0 where nothing was counted."""
        parts = {
            "tokens_per_call": (new_tokens, self.target_calls),
            "mean_accepted_tokens": (self.accepted_tokens, self.draft_calls),
            "acceptance_rate": (self.accepted_tokens, self.drafted_tokens),
            "relaxed_share": (self.relaxed_tokens, new_tokens),
        }
        return {name: ratio(part, whole) for name, (part, whole) in parts.items()}


#: Names of the counts that are one number.
COUNTED = tuple(f.name for f in fields(Counts) if f.name != "accepted_by_source")


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished text. `token_ids` int32: new tokens only, EOS included if it was emitted. `loss`:
    nats of log-probability that its relaxed tokens gave up; `sources` uint8, of each token: its
    position in `SOURCES`, or `OWN`; None where nobody noted them. `scores`: of
    every token, where its request wished for them."""

    entity_id: str
    token_ids: IntArray
    finish_reason: FinishReason
    prompt_tokens: int
    counts: Counts
    loss: float = 0.0
    sources: ByteArray | None = None
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verification decided for one sequence in one step.

    `path` int32 `[m]`: accepted nodes from the root down. `token_ids` int32: their tokens, then the
    bonus token unless the path ended in EOS. `deviations`: of each accepted node that was not the
    target's own choice, its place in the path and the nats of log-probability that it gave up.
    """

    path: IntArray
    token_ids: IntArray
    deviations: tuple[tuple[int, float], ...] = ()

    @property
    def relaxed(self) -> int:
        """Accepted nodes that were not the target's own choice."""
        return len(self.deviations)

    @property
    def loss(self) -> float:
        """Nats of log-probability that they gave up."""
        return sum((nats for _, nats in self.deviations), 0.0)

    def first(self, tokens: int) -> Verdict:
        """The verdict of a text that ends after that many of its tokens: what follows is dropped,
        and counted nowhere."""
        if tokens >= len(self.token_ids):
            return self
        kept = tuple(it for it in self.deviations if it[0] < tokens)
        return Verdict(self.path[:tokens], self.token_ids[:tokens], kept)


class SequenceView(Protocol):
    """What a drafter may know of a running sequence."""

    @property
    def request(self) -> Request: ...
    @property
    def context(self) -> IntArray:
        """int32: prompt and committed tokens so far, a view that must not be written to."""
        ...

    @property
    def room(self) -> int:
        """Tokens this sequence may still emit."""
        ...

    @property
    def noise(self) -> int | None:
        """What the tokens of a sampled text are drawn by, for `engine.noise.foreseen`; None where
        they are not drawn."""
        ...

    @property
    def slot(self) -> int:
        """Where its rows lie in the target's memory."""
        ...

    @property
    def computed(self) -> int:
        """How many of its tokens have theirs there; all but the last while it is decoded."""
        ...


class SequenceProxy:
    """A sequence as a drafter inside of another is to see it: as it is, but for what a subclass
    changes."""

    def __init__(self, sequence: SequenceView) -> None:
        self._sequence = sequence

    @property
    def request(self) -> Request:
        return self._sequence.request

    @property
    def context(self) -> IntArray:
        return self._sequence.context

    @property
    def room(self) -> int:
        return self._sequence.room

    @property
    def noise(self) -> int | None:
        return self._sequence.noise

    @property
    def slot(self) -> int:
        return self._sequence.slot

    @property
    def computed(self) -> int:
        return self._sequence.computed


class Drafter(Protocol):
    """Proposes continuations. The lifecycle of a sequence is start, (draft, observe)*, stop."""

    def start(self, sequence: SequenceView) -> None: ...

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        """One tree of at most `limit` nodes, `depth` deep, per sequence; empty = plain decoding."""
        ...

    def observe(self, batch: Seq[SequenceView], verdicts: Seq[Verdict]) -> None: ...

    def stop(self, sequence: SequenceView) -> None: ...


class Turn:
    """What one thread has at a time, others waiting: `with` it. A copy, and what was in a pickle,
    has one of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()
