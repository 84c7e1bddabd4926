"""From segments (pending tokens and a draft tree per sequence) to the flat arrays of one pass.

Host code only: NumPy in, NumPy out. Rows of a segment are its pending tokens, then its draft
nodes; row `i` is written to KV column `start + i` of its slot.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from draftrec.core import DraftTree, IntArray

LongArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segment:
    """What one sequence contributes to a forward pass.

    `start` rows of its slot are committed. `pending` int32 `[p]`, p >= 1, are known tokens not yet
    computed (a prompt, or the last bonus token). `tree` hangs from the last of them. `scored`
    False: an unfinished prompt, whose rows nobody needs to read.
    """

    slot: int
    start: int
    pending: IntArray
    tree: DraftTree
    scored: bool = True

    @property
    def rows(self) -> int:
        return len(self.pending) + len(self.tree)


@dataclass(frozen=True, slots=True)
class Packed:
    """One forward pass over `B` segments with `S` rows in all.

    `token_ids`, `positions`: int64 `[S]`. `row_start`: `[B + 1]`, where each segment's rows begin.
    `parent`: `[S]`, the row within the segment whose ancestors this row shares, -1 for the first.
    `scored`: int64 `[R]`, rows whose logits are wanted: for each scored segment the last pending
    token's, then its nodes'.
    """

    segments: Seq[Segment]
    token_ids: LongArray
    positions: LongArray
    row_start: LongArray
    parent: LongArray
    scored: LongArray


def pack(segments: Seq[Segment]) -> Packed:
    """Lay the rows of all segments one after another."""
    rows = np.array([s.rows for s in segments], np.int64)
    row_start = np.concatenate(([0], np.cumsum(rows)))
    total = int(row_start[-1])
    token_ids = np.empty(total, np.int64)
    positions = np.empty(total, np.int64)
    parent = np.empty(total, np.int64)
    scored: list[int] = []
    for segment, first in zip(segments, row_start.tolist(), strict=False):
        pending = len(segment.pending)
        here = slice(first, first + segment.rows)
        token_ids[here][:pending] = segment.pending
        token_ids[here][pending:] = segment.tree.token_ids
        if segment.rows == 1:  # plain decoding: most rows of most passes
            parent[first], positions[first] = -1, segment.start
            if segment.scored:
                scored.append(first)
            continue
        above = parent[here]
        above[:pending] = np.arange(-1, pending - 1)
        above[pending:] = segment.tree.parents + pending
        place = positions[here]
        place[:pending] = np.arange(segment.start, segment.start + pending)
        for i in range(pending, segment.rows):
            place[i] = place[above[i]] + 1
        if segment.scored:
            scored.extend(range(first + pending - 1, first + segment.rows))
    kept = np.array(scored, np.int64)
    return Packed(segments, token_ids, positions, row_start, parent, kept)


def visibility(packed: Packed, members: Seq[int], width: int) -> npt.NDArray[np.bool_]:
    """bool `[len(members), width, width]`: may row i of that segment see row j of it?

    A row sees itself and whatever its parent sees, which gives the causal triangle for pending
    tokens and the ancestor mask for nodes. Rows past a segment's end see only themselves.
    """
    if width == 1:
        return np.ones((len(members), 1, 1), np.bool_)
    seen = np.zeros((len(members), width, width), np.bool_)
    for place, b in enumerate(members):
        first, end = int(packed.row_start[b]), int(packed.row_start[b + 1])
        pending = len(packed.segments[b].pending)
        view = seen[place]
        view[:pending, :pending] = np.tri(pending, dtype=np.bool_)
        above = packed.parent[first:end]
        for i in range(pending, end - first):
            view[i] = view[above[i]]
            view[i, i] = True
    return seen
