"""From segments (what each sequence contributes) to the tensors of one forward pass.

One compiled kernel walks over all rows of all segments, past drafts and new ones, and writes all
that the pass needs into one int64 buffer; one transfer brings it to the device, where every tensor
is a view of it.

What a row may see is a record of int64: it sees columns `low .. high - 1` of its slot and, of those
from `high` on, the ones whose bits are set in the words that follow. So a mask of any layer is made
on the device, from a few numbers per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit

from draftrec.core import DraftTree, IntArray, LongArray
from draftrec.engine.masks import FULL, Reach

# Bringing in one key with its value, which all queries of its sequence then share, in scores (one
# query against one key).
_KEY_COST = 16
#: Keys of a call with a mask, in multiples of, by device type: kernels copy masks of lengths that
#: are no multiple of eight, and some prepare themselves anew for every length, which grows at every
#: step. The slab has room for as many.
KEYS = {"cuda": 64}


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """What one sequence contributes to a forward pass. A row sees the first `start` columns of its
    slot, its ancestors and itself.

    `pending` int32 `[p]` are known tokens not yet computed (a prompt, or the last bonus token),
    each the child of the one before. `tree` hangs from the last of them. The first `past` nodes of
    it were computed by earlier passes and lie, in this order, in the columns from `start` on;
    nothing is pending then. Rows are the pending tokens, then the new nodes; row `i` is written to
    column `column + i`. `scored` False: an unfinished prompt, whose rows nobody needs to read.
    `length`: tokens known of the whole text, for models whose rotary factors follow it; 0: no more
    than these.
    """

    slot: int
    start: int
    pending: IntArray
    tree: DraftTree
    scored: bool = True
    length: int = 0
    past: int = 0

    @property
    def rows(self) -> int:
        return len(self.pending) + len(self.tree) - self.past

    @property
    def column(self) -> int:
        """KV column of the first row."""
        return self.start + self.past


@dataclass(slots=True)
class Block:
    """Rows attended to in one call: of slots `first .. last - 1`, `width` rows each, `length` keys.

    `rows` gathers the rows of the pass into the block; -1 where a slot has fewer, which takes
    whatever row is last and the record behind all rows, which sees column 0. `back` picks the real
    rows out of the result (None: all of them), `place` says which rows of the pass they are.
    `sight` int64 `[P + 1, 2 + words]`: what each row sees, by reach; words have `nodes` bits in
    use. `open`: a row that sees all keys.
    """

    first: int
    last: int
    width: int
    length: int
    rows: slice | torch.Tensor
    back: torch.Tensor | None
    place: slice | torch.Tensor
    sight: dict[Reach, torch.Tensor]
    nodes: int
    open: bool = False
    _masks: dict[Any, torch.Tensor | None] = field(default_factory=dict[Any, "torch.Tensor | None"])

    def mask(self, reach: Reach, repeat: int, dtype: torch.dtype) -> torch.Tensor | None:
        """Additive `[slots, 1, repeat * width, length]`, or None where everything is visible."""
        if reach.within(self.length):
            reach = FULL
        key = (reach, repeat, dtype)
        if key not in self._masks:
            mask = None
            if not self.open or reach != FULL:
                mask = self.additive(reach, dtype, float("-inf")).repeat(1, repeat, 1)[:, None]
            self._masks[key] = mask
        return self._masks[key]

    def additive(self, reach: Reach, dtype: torch.dtype, hidden: float) -> torch.Tensor:
        """`[slots, width, length]`: 0 where a row sees a column, `hidden` elsewhere."""
        sight = self.sight[FULL if reach.within(self.length) else reach][self.rows]
        sight = sight.view(self.last - self.first, self.width, -1)
        seen = visible(sight, self.length, self.nodes)
        mask = torch.zeros(seen.shape, device=sight.device, dtype=dtype)
        return mask.masked_fill_(~seen, hidden)


def visible(sight: torch.Tensor, length: int, nodes: int) -> torch.Tensor:
    """bool `[..., length]`: the columns that records `[..., 2 + words]` of `sight` show; `nodes`:
    bits of the words that are in use."""
    low, high, words = sight[..., :1], sight[..., 1:2], sight[..., 2:]
    columns = torch.arange(length + nodes, device=sight.device)
    seen = (columns >= low) & (columns < high)
    if nodes:
        bits = columns[:nodes]
        own = (words[..., bits >> 6] >> (bits & 63)) & 1
        seen.scatter_(-1, high + bits, own.bool())
    return seen[..., :length]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """One forward pass over `S` rows, on the device; all tensors int64.

    `token_ids`, `positions` `[P]`, P >= S, and if asked for `lengths` `[P]`: tokens of the text
    that ends with each row, or of the whole text where more of it is known (`text_lengths` on the
    host). `scored`: rows whose logits are wanted, the last pending one and the new nodes of each
    segment, `wanted` of them and then others. `slots`, `columns` `[P]`: where keys and values go,
    column -1 for rows that are no one's; the same by segment in `spans`: slot, first row, last row,
    first column. `back`: places in the block that rows share, if there is one. `sight` `[P + 1, 2 +
    words]` by reach: as in `Block.sight`; rows that are no one's see nothing.
    """

    rows: int
    wanted: int
    token_ids: torch.Tensor
    positions: torch.Tensor
    lengths: torch.Tensor
    text_lengths: LongArray
    scored: torch.Tensor
    slots: torch.Tensor
    columns: torch.Tensor
    back: torch.Tensor
    spans: list[list[int]]
    blocks: list[Block]
    sight: dict[Reach, torch.Tensor]

    def seen(self, reach: Reach) -> torch.Tensor:
        """What each row sees, int64 `[P, 2 + words]`."""
        return self.sight.get(reach, self.sight[FULL])[:-1]


def pack(
    segments: Seq[Segment],
    device: torch.device,
    reaches: Iterable[Reach] = (),
    *,
    launch: int | None = None,
    padded: Callable[[int], int] = int,
    lengths: bool = False,
) -> Packed:
    """Lay the rows of all segments one after another and say what each of them sees.

    `reaches`: those of the model's layers. `launch`: what a further block costs, in scores; None:
    all rows share one. Row arrays are made `padded(rows)` long, with zeros. Blocks that need a mask
    get a multiple of `KEYS` keys, of which those behind the last are seen by no row.
    """
    keys = KEYS.get(device.type, 1)
    about = np.array([_about(s) for s in segments], np.int64)
    shape = _Shape(*_survey(about, -1 if launch is None else launch))
    kinds = [FULL, *{r for r in reaches if not r.within(_multiple(shape.length, keys))}]
    many, record = padded(shape.rows), 2 + (shape.nodes + 63) // 64
    sight_shape = len(kinds), many + 1, record
    sizes = [
        many, many, many if lengths else 0, padded(shape.wanted), many, many,
        len(kinds) * (many + 1) * record, (shape.last - shape.first) * shape.width,
        shape.shared, shape.shared,
    ]  # fmt: skip
    host, spans = _filled(segments, about, kinds, shape, sizes, pinned=device.type == "cuda")
    ids, positions, known, scored, slots, columns, sight, gather, place, back = host.to(
        device, non_blocking=True
    ).split(sizes)
    seen = dict(zip(kinds, sight.view(sight_shape), strict=True))
    bounds = spans.tolist()
    blocks: list[Block] = []
    if shape.shared:
        whole = shape.shared == len(gather)
        to = (None, gather) if whole else (back, place)
        size = shape.first, shape.last, shape.width, _multiple(shape.end, keys)
        blocks.append(Block(*size, gather, *to, seen, shape.nodes))
    for segment, (slot, begin, end, column) in zip(segments, bounds, strict=True):
        if end - begin > shape.width:
            rows, here = end - begin, slice(begin, end)
            lone = rows == 1 and not segment.past
            size = slot, slot + 1, rows, column + rows if lone else _multiple(column + rows, keys)
            blocks.append(Block(*size, here, None, here, seen, shape.nodes, lone))
    text_lengths = host.numpy()[2 * many : 2 * many + len(known)]
    return Packed(
        shape.rows, shape.wanted, ids, positions, known, text_lengths, scored, slots, columns,
        back, bounds, blocks, seen,
    )  # fmt: skip


class Rows(NamedTuple):
    """A pass of `R` rows as views of one buffer: `token_ids`, `positions`, `scored`, `slots`,
    `columns` int64 `[R]` and `sight` int64 `[kinds, R, 2 + words]`, all as in `Packed`."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    scored: torch.Tensor
    slots: torch.Tensor
    columns: torch.Tensor
    sight: torch.Tensor

    @classmethod
    def of(cls, buffer: torch.Tensor, kinds: int, rows: int, words: int) -> Rows:
        """Those of a buffer of `pack_rows`."""
        sizes = [rows] * 5 + [kinds * (rows + 1) * (2 + words)]
        ids, positions, scored, slots, columns, sight = buffer.split(sizes)
        sight = sight.view(kinds, rows + 1, 2 + words)[:, :rows]
        return cls(ids, positions, scored, slots, columns, sight)


def pack_rows(
    segments: Seq[Segment], kinds: Seq[Reach], size: tuple[int, int], *, pinned: bool
) -> tuple[torch.Tensor, int]:
    """The same for a pass of `size`: at least as many rows as there are, and words of nodes. One
    int64 buffer on the host for `Rows`, and how many logits are wanted."""
    rows, words = size
    about = np.array([_about(s) for s in segments], np.int64)
    shape = _Shape(*_survey(about, 0))._replace(width=0)
    sizes = [rows, rows, 0, rows, rows, rows, len(kinds) * (rows + 1) * (2 + words), 0, 0, 0]
    return _filled(segments, about, kinds, shape, sizes, pinned=pinned)[0], shape.wanted


def _filled(
    segments: Seq[Segment],
    about: LongArray,
    kinds: Seq[Reach],
    shape: _Shape,
    sizes: list[int],
    *,
    pinned: bool,
) -> tuple[torch.Tensor, LongArray]:
    """The arrays of a pass on the host, and its spans."""
    host = torch.empty(sum(sizes), dtype=torch.int64, pin_memory=pinned)
    spans = np.empty((len(segments), 4), np.int64)
    _lay(
        about,
        np.concatenate([s.pending for s in segments], dtype=np.int32),
        np.concatenate([s.tree.token_ids for s in segments], dtype=np.int32),
        np.concatenate([s.tree.parents for s in segments], dtype=np.int32),
        np.array([(r.window or 0, r.chunk or 0) for r in kinds], np.int64),
        shape,
        np.array(sizes),
        host.numpy(),
        spans,
    )
    return host, spans


def _multiple(length: int, step: int) -> int:
    return -(-length // step) * step


def _about(segment: Segment) -> tuple[int, ...]:
    """Slot, start, pending tokens, past nodes, nodes, whether it is scored, its text's length."""
    s = segment
    return s.slot, s.start, len(s.pending), s.past, len(s.tree), s.scored, s.length


class _Shape(NamedTuple):
    """Sizes of a pass: `rows` in all, `wanted` ones; most `nodes` of a segment; columns of the
    longest slot, `length`. Segments of at most `width` rows share a block of slots `first .. last -
    1`, with `shared` rows in all and `end` columns."""

    rows: int
    wanted: int
    nodes: int
    length: int
    width: int
    first: int
    last: int
    shared: int
    end: int


@njit(cache=True, nogil=True)
def _survey(about: Any, launch: int) -> tuple[int, ...]:
    """The fields of `_Shape`; a block for all if `launch` is negative."""
    rows = wanted = nodes = length = widest = alone = 0
    for segment in about:
        count, end = _extent(segment)
        rows += count
        wanted += (count - max(segment[2] - 1, 0)) * segment[5]
        nodes, length, widest = max(nodes, segment[4]), max(length, end), max(widest, count)
        alone += end * (_KEY_COST + count) + launch
    width = widest if launch < 0 else 0
    limit = widest if launch >= 0 else 0
    while limit:  # the width that costs least, padding included
        first, last, _, end, rest, narrower = _shared(about, limit, launch)
        cost = (last - first) * end * (_KEY_COST + limit) + launch + rest
        if cost < alone:
            alone, width = cost, limit
        limit = narrower
    first, last, shared, end, _, _ = _shared(about, width, launch)
    return rows, wanted, nodes, length, width, first, last, shared, end


@njit(cache=True, nogil=True)
def _shared(about: Any, width: int, launch: int) -> tuple[int, ...]:
    """Segments of at most `width` rows together: their first slot, the one behind their last, rows
    and columns; then what all others cost, each alone, and the next width below."""
    first, last, shared, longest, rest, narrower = 1 << 40, 0, 0, 0, 0, 0
    for segment in about:
        count, end = _extent(segment)
        if count > width:
            rest += end * (_KEY_COST + count) + launch
            continue
        first, last = min(first, segment[0]), max(last, segment[0] + 1)
        shared, longest = shared + count, max(longest, end)
        if count < width:
            narrower = max(narrower, count)
    return min(first, last), last, shared, longest, rest, narrower


@njit(cache=True, nogil=True, inline="always")
def _extent(segment: Any) -> tuple[int, int]:
    """Its rows, and the columns of its slot with them."""
    count = segment[2] + segment[4] - segment[3]
    return count, segment[1] + segment[3] + count


@njit(cache=True, nogil=True)
def _lay(  # noqa: PLR0913
    about: Any, pending: Any, tokens: Any, parents: Any, reaches: Any, shape: Any, sizes: Any,
    buffer: Any, spans: Any,
) -> None:  # fmt: skip
    """Fill `buffer`, arrays of `sizes` one after another, and `spans`.

    `about` int64 `[B, 7]` as `_about` says, `pending`, `tokens`, `parents` of all segments one
    after another; `reaches` int64 `[kinds, 2]`: window and chunk, 0 for none.
    """
    ends = np.cumsum(sizes)
    token_ids, positions = buffer[: ends[0]], buffer[ends[0] : ends[1]]
    lengths, scored = buffer[ends[1] : ends[2]], buffer[ends[2] : ends[3]]
    slots, columns = buffer[ends[3] : ends[4]], buffer[ends[4] : ends[5]]
    sight = buffer[ends[5] : ends[6]].reshape(len(reaches), len(token_ids) + 1, -1)
    gather, place, back = (
        buffer[ends[6] : ends[7]], buffer[ends[7] : ends[8]], buffer[ends[8] : ends[9]]
    )  # fmt: skip
    depth = np.empty(len(parents), np.int64)
    row = tokens_before = nodes_before = wanted = member = 0
    for b in range(len(about)):
        slot, start, known, past = about[b, 0], about[b, 1], about[b, 2], about[b, 3]
        nodes, asked, length = about[b, 4], about[b, 5], about[b, 6]
        base, own = start + known, depth[nodes_before : nodes_before + nodes]
        above = parents[nodes_before : nodes_before + nodes]
        for node in range(nodes):
            own[node] = own[above[node]] + 1 if above[node] >= 0 else 0
        count = known + nodes - past
        spans[b] = slot, row, row + count, start + past
        for i in range(count):
            node = past + i - known if i >= known else -1
            if node < 0:
                position, high = start + i, start + i + 1
                token_ids[row], columns[row] = pending[tokens_before + i], position
            else:
                position, high = base + own[node], base
                token_ids[row], columns[row] = tokens[nodes_before + node], base + node
            slots[row], positions[row] = slot, position
            if len(lengths):
                lengths[row] = max(position + 1, length)
            for kind in range(len(reaches)):
                low = _lowest(position, reaches[kind, 0], reaches[kind, 1])
                sight[kind, row, 0], sight[kind, row, 1] = low, high
                _mark(sight[kind, row, 2:], node, above, own, low - base)
            if asked and i >= known - 1:
                scored[wanted] = row
                wanted += 1
            if count <= shape.width:
                place[member], back[member] = row, (slot - shape.first) * shape.width + i
                member += 1
            row += 1
        tokens_before += known
        nodes_before += nodes
    token_ids[row:] = 0
    positions[row:] = 0
    lengths[row:] = 0
    scored[wanted:] = 0
    slots[row:] = 0
    columns[row:] = -1
    sight[:, row:] = 0
    sight[:, -1, 1] = 1
    gather[:] = -1
    for i in range(member):
        gather[back[i]] = place[i]


@njit(cache=True, nogil=True, inline="always")
def _mark(words: Any, node: int, above: Any, depth: Any, least: int) -> None:
    """Set the bits of a node and of its ancestors that are at least so deep."""
    words[:] = 0
    while node >= 0 and depth[node] >= least:
        words[node >> 6] |= np.int64(1) << (node & 63)
        node = above[node]


@njit(cache=True, nogil=True, inline="always")
def _lowest(position: int, window: int, chunk: int) -> int:
    """The least position that a row at `position` sees."""
    if chunk:
        return position // chunk * chunk
    return max(0, position - window + 1) if window else 0
