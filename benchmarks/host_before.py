"""How the host laid out a pass before one kernel did: what `host_time.py` measures against.

A frozen copy of those functions, for texts: a Python walk over the nodes of each tree to cut it, to
place its rows, to say what they see, and an array of its own for everything the device is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from draftrec.core import EMPTY_TREE, BoolArray, DraftTree, IntArray, LongArray
from draftrec.engine.masks import Reach
from draftrec.engine.packing import Segment

_KEY_COST = 16
Span = tuple[int, int, int, int]


def depths(tree: DraftTree) -> IntArray:
    """int32 `[n]`: 0 for children of the last committed token, one more per level."""
    out = np.zeros(len(tree), np.int32)
    for i, parent in enumerate(tree.parents.tolist()):
        out[i] = out[parent] + 1 if parent >= 0 else 0
    return out


def trim(tree: DraftTree, keep: BoolArray) -> DraftTree:
    """The nodes where `keep` is True; nodes below a dropped one are dropped too."""
    if keep.all():
        return tree
    new_place = np.full(len(tree) + 1, -1, np.int32)
    kept: list[int] = []
    for i, parent in enumerate(tree.parents.tolist()):
        if keep[i] and (parent < 0 or new_place[parent] >= 0):
            new_place[i] = len(kept)
            kept.append(i)
    if not kept:
        return EMPTY_TREE
    places = np.asarray(kept)
    parents = new_place[tree.parents[places]]
    return DraftTree(tree.token_ids[places], parents, tree.probs[places], tree.sources[places])


def within(tree: DraftTree, depth: int) -> DraftTree:
    """The tree without nodes deeper than `depth`."""
    return tree if len(tree) <= depth else trim(tree, depths(tree) < depth)


@dataclass(frozen=True)
class Packed:
    """int64 `[S]` by row, `row_start` `[B + 1]` by segment, `scored` `[R]`: rows asked for."""

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
    token_ids, positions, parent = (np.empty(int(row_start[-1]), np.int64) for _ in range(3))
    scored: list[int] = []
    for segment, first in zip(segments, row_start.tolist(), strict=False):
        here = slice(first, first + segment.rows)
        pending = len(segment.pending)
        token_ids[here][:pending] = segment.pending
        token_ids[here][pending:] = segment.tree.token_ids
        if segment.rows == 1:
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
    return Packed(segments, token_ids, positions, row_start, parent, np.array(scored, np.int64))


def visibility(packed: Packed, members: Seq[int], width: int) -> BoolArray:
    """bool `[len(members), width, width]`: may row i of that segment see its row j?"""
    if width == 1:
        return np.ones((len(members), 1, 1), np.bool_)
    seen = np.zeros((len(members), width, width), np.bool_)
    for place, b in enumerate(members):
        first, end = int(packed.row_start[b]), int(packed.row_start[b + 1])
        pending, view = len(packed.segments[b].pending), seen[place]
        view[:pending, :pending] = np.tri(pending, dtype=np.bool_)
        above = packed.parent[first:end]
        for i in range(pending, end - first):
            view[i] = view[above[i]]
            view[i, i] = True
    return seen


@dataclass
class Block:
    """Queries attended to in one call, and what they see from column `start` of each slot on."""

    first: int
    last: int
    width: int
    length: int
    start: torch.Tensor
    seen: torch.Tensor
    own_positions: torch.Tensor
    key_positions: torch.Tensor
    rows: torch.Tensor | None
    back: torch.Tensor | None
    place: slice | torch.Tensor

    def visible(self, reach: Reach) -> torch.Tensor:
        """bool `[slots, width, length]`."""
        columns = torch.arange(self.length)
        own = columns[None, :] - self.start[:, None]
        slots, span = len(self.start), self.seen.shape[2]
        place = own.clamp(0, span - 1)[:, None, :].expand(slots, self.width, self.length)
        fresh = torch.gather(self.seen, 2, place) & (own < span)[:, None, :]
        visible = (own < 0)[:, None, :] | fresh
        keys = torch.gather(self.key_positions, 1, place[:, 0])
        theirs = torch.where(own < 0, columns[None, :], keys)[:, None, :]
        queries = self.own_positions[:, :, None]
        if reach.window is not None:
            visible &= theirs > queries - reach.window
        if reach.chunk is not None:
            visible &= theirs // reach.chunk == queries // reach.chunk
        return visible


@dataclass
class Plan:
    """What one pass hands to the model and to its attention."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    scored: torch.Tensor
    slots: torch.Tensor
    columns: torch.Tensor
    spans: list[Span]
    blocks: list[Block]


def plan(packed: Packed, launch: int, padded: Callable[[int], int]) -> Plan:
    """Choose blocks and make every tensor."""
    bounds = zip(packed.segments, packed.row_start, packed.row_start[1:], strict=False)
    spans = [(s.slot, int(a), int(b), s.column) for s, a, b in bounds]
    slots = np.concatenate([np.full(b - a, slot) for slot, a, b, _ in spans])
    columns = np.concatenate([np.arange(c, c + b - a) for _, a, b, c in spans])
    rows = (packed.token_ids, packed.positions, packed.scored)
    sent = (torch.as_tensor(_padded(x, padded(len(x)))) for x in rows)
    return Plan(
        *sent,
        torch.as_tensor(slots),
        torch.as_tensor(columns),
        spans,
        [_block(packed, [spans[i] for i in g], g) for g in _group(spans, launch)],
    )


def _padded(values: LongArray, rows: int) -> LongArray:
    if len(values) == rows:
        return values
    out = np.zeros(rows, np.int64)
    out[: len(values)] = values
    return out


def _group(spans: list[Span], launch: int) -> list[list[int]]:
    widths = [b - a for _, a, b, _ in spans]

    def cost(members: Seq[int]) -> int:
        slots = [spans[i][0] for i in members]
        length = max(spans[i][3] + widths[i] for i in members)
        width = max(widths[i] for i in members)
        return (max(slots) - min(slots) + 1) * length * (_KEY_COST + width) + launch

    every = range(len(spans))
    alone = [cost([i]) for i in every]
    best, groups = sum(alone), [[i] for i in every]
    for limit in sorted(set(widths), reverse=True):
        narrow = [i for i in every if widths[i] <= limit]
        wide = [i for i in every if widths[i] > limit]
        total = cost(narrow) + sum(alone[i] for i in wide)
        if total < best:
            best, groups = total, [narrow, *([i] for i in wide)]
    return groups


def _block(packed: Packed, spans: list[Span], members: Seq[int]) -> Block:
    slots, begins, ends, columns = np.array(spans).T
    first, last = int(slots.min()), int(slots.max()) + 1
    width = int((ends - begins).max())
    length = int((columns + ends - begins).max())
    found = visibility(packed, members, width)
    start = np.zeros(last - first, np.int64)
    seen = np.zeros((last - first, width, width), np.bool_)
    rows, positions = (np.zeros((last - first, width), np.int64) for _ in range(2))
    keys, real = np.zeros_like(rows), np.zeros((last - first, width), np.bool_)
    places = slots - first
    start[places] = [packed.segments[b].start for b in members]
    seen[places] = found
    if width == 1:
        rows[places, 0], positions[places, 0] = begins, packed.positions[begins]
        keys[places, 0], real[places, 0] = packed.positions[begins], True
    for slot, begin, end, _ in spans if width > 1 else ():
        rows[slot - first, : end - begin] = np.arange(begin, end)
        positions[slot - first, : end - begin] = packed.positions[begin:end]
        real[slot - first, : end - begin] = True
        keys[slot - first, : end - begin] = packed.positions[begin:end]
    seen[..., 0] |= ~seen.any(-1)
    put: Any = torch.as_tensor
    alone = len(members) == 1
    return Block(
        first, last, width, length, put(start), put(seen), put(positions), put(keys),
        None if alone else put(rows.reshape(-1)),
        None if alone or real.all() else put(np.flatnonzero(real.reshape(-1))),
        slice(int(begins[0]), int(ends[0])) if alone else put(rows[real]),
    )  # fmt: skip
