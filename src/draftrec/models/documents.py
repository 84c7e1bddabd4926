"""What an encoder is given and gives back, and how a text longer than its limit is cut."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from draftrec.core import FloatArray, LongArray

Overflow = Literal["window", "truncate", "refuse"]


@dataclass(frozen=True, slots=True)
class Document:
    """`knowledge` is what the vector is about and goes first; `history` gets the room left."""

    knowledge: str
    history: str = ""

    @property
    def text(self) -> str:
        """Both, for encoders without a limit."""
        return f"{self.knowledge}\n{self.history}" if self.history else self.knowledge


@dataclass(frozen=True, eq=False, slots=True)
class Encoded:
    """The vectors of N documents, and how much of each the encoder read.

    `vectors` float32 `[N, D]`; the others int64 `[N]`, in the encoder's tokens, special ones left
    out: `tokens` read, `knowledge_lost` and `history_lost` not read, and `windows`, the passes
    that the vector is the mean of. Nothing is read of an empty document, and of one that is
    refused: its vector is zero, and `windows` is 0.
    """

    vectors: FloatArray
    tokens: LongArray
    knowledge_lost: LongArray
    history_lost: LongArray
    windows: LongArray

    def take(self, rows: LongArray) -> Encoded:
        """These rows, in this order; a row may be taken twice."""
        return Encoded(*(getattr(self, field.name)[rows] for field in fields(self)))


def joined(parts: Seq[Encoded]) -> Encoded:
    """All rows of all parts, of which there is at least one."""
    names = [field.name for field in fields(Encoded)]
    return Encoded(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True, slots=True)
class Cut:
    """What is read of one document: the lengths of its windows, one after another from its start,
    and how many tokens of knowledge and of history are lost."""

    windows: tuple[int, ...]
    knowledge_lost: int = 0
    history_lost: int = 0


def cut(knowledge: int, history: int, room: int, overflow: Overflow) -> Cut:
    """Lay `knowledge` and then `history` tokens into passes of `room` tokens.

    `window` reads everything, in as few windows as hold it, of lengths that differ by one at most:
    a rest of three tokens would make a vector of its own that means nothing.
    """
    whole = knowledge + history
    if whole == 0:
        return Cut(())
    if whole <= room:
        return Cut((whole,))
    if overflow == "refuse":
        return Cut((), knowledge, history)
    if overflow == "truncate":
        lost = max(0, knowledge - room)
        return Cut((room,), lost, whole - room - lost)
    count = -(-whole // room)
    return Cut(tuple(whole // count + (i < whole % count) for i in range(count)))
