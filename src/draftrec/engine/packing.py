"""From segments (what each sequence contributes) to the flat arrays of one pass.

Host code only: NumPy in, NumPy out. A text contributes a `Segment`: pending tokens, then draft
nodes. A beam search contributes a `BeamSegment`: nodes anywhere in a tree that grows from pass to
pass. Row `i` of a segment is written to KV column `column + i` of its slot.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from draftrec.core import BoolArray, DraftTree, IntArray, LongArray


@dataclass(frozen=True, slots=True)
class Segment:
    """What one sequence contributes to a forward pass.

    `start` rows of its slot are committed. `pending` int32 `[p]`, p >= 1, are known tokens not yet
    computed (a prompt, or the last bonus token). `tree` hangs from the last of them. `scored`
    False: an unfinished prompt, whose rows nobody needs to read. `length`: tokens known of the
    whole text, for models whose rotary factors follow it; 0: no more than these.
    """

    slot: int
    start: int
    pending: IntArray
    tree: DraftTree
    scored: bool = True
    length: int = 0

    @property
    def rows(self) -> int:
        return len(self.pending) + len(self.tree)

    @property
    def column(self) -> int:
        """KV column of the first row."""
        return self.start

    @property
    def past(self) -> int:
        """Columns between `start` and `column`."""
        return 0


@dataclass(frozen=True, slots=True, eq=False)
class BeamSegment:
    """Rows of one beam search: tokens of a tree whose other nodes earlier passes computed.

    Every row sees the first `start` columns of the slot (the prompt, once it is there). The `p`
    columns after them hold the rows of earlier passes, in the order they were computed; `n` new
    rows follow. `token_ids` int32 `[n]`; `positions` int64 `[p + n]`, of past rows and new ones;
    `seen` bool `[n, p + n]`: ancestors, past or new, and the row itself; `wanted` int64 `[r]`: new
    rows whose logits are asked for, ascending.
    """

    slot: int
    start: int
    token_ids: IntArray
    positions: LongArray
    seen: BoolArray
    wanted: LongArray

    @property
    def rows(self) -> int:
        return len(self.token_ids)

    @property
    def past(self) -> int:
        """Columns between `start` and `column`."""
        return len(self.positions) - len(self.token_ids)

    @property
    def column(self) -> int:
        """KV column of the first new row."""
        return self.start + self.past

    @property
    def scored(self) -> bool:
        return len(self.wanted) > 0


AnySegment = Segment | BeamSegment


@dataclass(frozen=True, slots=True)
class Packed:
    """One forward pass over `B` segments with `S` rows in all.

    `token_ids`, `positions`: int64 `[S]`. `row_start`: `[B + 1]`, where each segment's rows begin.
    `parent`: `[S]`, the row within a text's segment whose ancestors this row shares, -1 for the
    first. `scored`: int64 `[R]`, rows whose logits are wanted: for each scored text the last
    pending token's, then its nodes'; for each beam search those it names.
    """

    segments: Seq[AnySegment]
    token_ids: LongArray
    positions: LongArray
    row_start: LongArray
    parent: LongArray
    scored: LongArray


def pack(segments: Seq[AnySegment]) -> Packed:
    """Lay the rows of all segments one after another."""
    rows = np.array([s.rows for s in segments], np.int64)
    row_start = np.concatenate(([0], np.cumsum(rows)))
    total = int(row_start[-1])
    token_ids = np.empty(total, np.int64)
    positions = np.empty(total, np.int64)
    parent = np.empty(total, np.int64)
    scored: list[int] = []
    for segment, first in zip(segments, row_start.tolist(), strict=False):
        here = slice(first, first + segment.rows)
        if isinstance(segment, BeamSegment):
            token_ids[here] = segment.token_ids
            positions[here] = segment.positions[segment.past :]
            parent[here] = -1  # `seen` says it all
            scored.extend((first + segment.wanted).tolist())
            continue
        pending = len(segment.pending)
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


def row_lengths(packed: Packed) -> LongArray:
    """int64 `[S]`: tokens of the text that ends with each row, or of the whole text where more of
    it is known."""
    known = [s.length if isinstance(s, Segment) else 0 for s in packed.segments]
    return np.maximum(packed.positions + 1, np.repeat(known, np.diff(packed.row_start)))


def visibility(packed: Packed, members: Seq[int], width: int) -> BoolArray:
    """bool `[len(members), width, span]`: may row i of that segment see its column `start + j`?

    `span` is `width` where no member has past rows, else enough for the longest of them. A row of a
    text sees itself and whatever its parent sees, which gives the causal triangle for pending
    tokens and the ancestor mask for nodes. Rows past a segment's end see nothing.
    """
    span = max((packed.segments[b].past for b in members), default=0) + width
    if span == 1:
        return np.ones((len(members), 1, 1), np.bool_)
    seen = np.zeros((len(members), width, span), np.bool_)
    for place, b in enumerate(members):
        segment = packed.segments[b]
        view = seen[place]
        if isinstance(segment, BeamSegment):
            view[: segment.rows, : segment.past + segment.rows] = segment.seen
            continue
        first, end = int(packed.row_start[b]), int(packed.row_start[b + 1])
        pending = len(segment.pending)
        view[:pending, :pending] = np.tri(pending, dtype=np.bool_)
        above = packed.parent[first:end]
        for i in range(pending, end - first):
            view[i] = view[above[i]]
            view[i, i] = True
    return seen


def key_positions(packed: Packed, member: int) -> LongArray:
    """int64 `[past + rows]`: positions of what lies from the segment's column `start` on."""
    segment = packed.segments[member]
    if isinstance(segment, BeamSegment):
        return segment.positions
    return packed.positions[int(packed.row_start[member]) : int(packed.row_start[member + 1])]
