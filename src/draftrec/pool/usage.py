"""What the texts of a pool were worth: counts over its life, and of every text."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from draftrec.core import LongArray, ratio
from draftrec.pool.suffix_states import REACH

#: Fields of a text's row: accepted tokens credited to it, and Unix seconds of when it was added and
#: when it was last credited (0: never).
ROW = np.dtype([("accepted", np.int64), ("added", np.float64), ("used", np.float64)])

Rows = npt.NDArray[Any]


def fresh_rows(count: int, now: float) -> Rows:
    """Rows `[count]` of texts that were added now and not used yet."""
    rows = np.zeros(count, ROW)
    rows["added"] = now
    return rows


@dataclass(slots=True)
class Usage:
    """Counts over a pool's life. `drafts` are trees with nodes from the pool, `hits` those of which
    at least one pool token was accepted. `by_length` int64 `[REACH + 1]`: accepted tokens by how
    many tokens before the draft the pool knew. `by_group`: drafts, hits and accepted tokens per
    group name, "" for texts without one.
    """

    drafts: int = 0
    hits: int = 0
    accepted: int = 0
    by_length: LongArray = field(default_factory=lambda: np.zeros(REACH + 1, np.int64))
    by_group: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    @property
    def hit_rate(self) -> float:
        """Drafts of which a pool token was accepted, 0 to 1."""
        return ratio(self.hits, self.drafts)

    def count(self, group: str | None, drafts: int, accepted: Seq[int]) -> None:
        """Add a text's drafts and what was accepted of each hit."""
        total = sum(accepted)
        self.drafts += drafts
        self.hits += len(accepted)
        self.accepted += total
        row = self.by_group.setdefault(group or "", [0, 0, 0])
        for i, value in enumerate((drafts, len(accepted), total)):
            row[i] += value

    def merged(self, other: Usage) -> Usage:
        """Both together."""
        groups = {name: list(row) for name, row in self.by_group.items()}
        for name, row in other.by_group.items():
            known = groups.get(name, [0, 0, 0])
            groups[name] = [a + b for a, b in zip(known, row, strict=True)]
        return Usage(
            self.drafts + other.drafts,
            self.hits + other.hits,
            self.accepted + other.accepted,
            self.by_length + other.by_length,
            groups,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {
            "drafts": self.drafts,
            "hits": self.hits,
            "accepted": self.accepted,
            "by_length": self.by_length.tolist(),
            "by_group": dict(sorted(self.by_group.items())),
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Usage:
        """Raises TypeError or ValueError if `found` is nothing that `to_json` made."""
        by_length = np.zeros(REACH + 1, np.int64)
        by_length[:] = found["by_length"]
        return cls(**{**found, "by_length": by_length})
