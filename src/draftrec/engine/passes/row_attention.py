"""Attention of every row by itself, on CPU: its result does not depend on what shares the pass.

Matrix kernels choose how they sum by the shapes that they are given, so that a draft node and the
token that it becomes round differently, and near-ties fall otherwise. Here a row takes the columns
that it sees, its text's first and then its ancestors root down, in the order of their positions:
the same numbers in the same order whether they came as drafts, in a prompt or one at a time, alone
or in a batch.

Rows of one text see nearly the same, and so do the heads that share keys. They go through keys and
values together, a block at a time, which is brought into a core's nearest cache once: keys laid out
as the weights of a product (`row_products`), by matrix tiles where the processor has them, values
as they are. Every score and every sum is still a row's own, and taken in its order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit

from draftrec.engine.passes.exponentials import softmax
from draftrec.engine.passes.prepacked import stored
from draftrec.engine.passes.registers import LANES, PAIRWISE, TALL
from draftrec.engine.passes.row_kernels import MIXED, lay_out, mixed_in, zeros_above, zeros_below
from draftrec.engine.passes.row_products import (
    MOST,
    WIDTH,
    has_tiles,
    leave_tiles,
    near,
    one_tile,
    open_tiles,
    two_tiles,
)
from draftrec.engine.passes.team import carray, pointer, share, take, threads_for

# Queries, of rows and heads, that take keys and values together; with matrix tiles as many as two
# of these hold.
_TOGETHER = 36


def attend(  # noqa: PLR0913
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seen: tuple[torch.Tensor, torch.Tensor],
    *,
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """float32 `[S, heads, value_dim]`: softmax(q k) v of `query` `[S, heads, key_dim]`.

    `keys`, `values` `[slots, kv_heads, capacity, dim]`, heads sharing them in groups; all three
    float32 or bfloat16, of which the result is not rounded to that. `seen`: slots int64 `[S]` and
    what each row sees, int64 `[>= S, 2 + words]` as in `packing.Block.sight`. `sinks` `[heads]`: a
    further score that takes its share and gives nothing (GPT-OSS); `softcap`: scores are its tanh
    (Gemma 2).
    """
    slots, sight = (x.numpy() for x in seen)
    out = torch.empty((len(slots), query.shape[1], values.shape[-1]))
    q, k, v = (stored(x) for x in (query.contiguous(), keys, values))
    rest = None if sinks is None else sinks.float().numpy()
    attend_arrays(q, k, v, (slots, np.ascontiguousarray(sight)), out.numpy(), scale, softcap, rest)
    return out


def attend_arrays(  # noqa: PLR0913
    query: Any,
    keys: Any,
    values: Any,
    seen: tuple[Any, Any],
    out: Any,
    scale: float,
    softcap: float | None = None,
    sinks: Any = None,
) -> None:
    """`attend` of arrays, into `out`; bfloat16 ones as int16, of an even `key_dim`."""
    heads, groups = query.shape[1], keys.shape[1]
    rest = np.full(heads, -np.inf, np.float32) if sinks is None else sinks
    numbers = np.array([scale, softcap or 0.0], np.float32)
    slots, sight = seen
    tiled = False
    if keys.dtype == np.int16:
        tiled = PAIRWISE and heads // groups <= 2 * TALL and has_tiles()
        keys = keys.view(np.int32)
        query = (
            query.view(np.int32) if PAIRWISE else (query.astype(np.int32) << 16).view(np.float32)
        )
    together = 2 * TALL if tiled else _TOGETHER
    tiles, total = _tiles(slots, sight, max(1, together * groups // heads))
    task = query, keys, values, slots, sight, tiles, rest, numbers, out
    units = (len(tiles) - 1) * groups
    threads = min(threads_for(1.5 * total * heads), units)
    if threads > 1:
        kind = (query.dtype == np.int32) + 2 * (keys.dtype == np.int32) + 4 * tiled
        share(_loop, units, threads, kind, *task)
    else:
        _attend(0, units, *task, int(tiled))


def store(
    rows: torch.Tensor, slab: torch.Tensor, slots: torch.Tensor, columns: torch.Tensor
) -> None:
    """Write `rows` `[S, kv_heads, dim]` to their slots and columns, int64 `[S]`, of `slab`, float32
    as `keys` are; those with column -1 nowhere."""
    _store(rows.float().contiguous().numpy(), slab.numpy(), slots.numpy(), columns.numpy())


@njit(cache=True, nogil=True)
def _store(rows: Any, slab: Any, slots: Any, columns: Any) -> None:
    for row in range(len(rows)):
        if columns[row] >= 0:
            slab[slots[row], :, columns[row]] = rows[row]


@njit(cache=True, nogil=True)
def _tiles(slots: Any, sight: Any, most: int) -> tuple[Any, int]:
    """Rows that go together: where those of a text begin that lie side by side, in nearly equal
    parts of at most `most`, int64 `[tiles + 1]`; and how many columns all rows see, about."""
    begins, count, row, total = np.empty(len(slots) + 1, np.int64), 0, 0, 0
    while row < len(slots):
        end = row
        while end < len(slots) and slots[end] == slots[row]:
            total += sight[end, 1] - sight[end, 0]
            end += 1
        parts = (end - row + most - 1) // most
        for part in range(parts):
            begins[count] = row + (end - row) * part // parts
            count += 1
        row = end
    begins[count] = row
    return begins[: count + 1], total


def _loop(data: Any) -> None:
    """`_attend` as `team.share` runs it. `kind`: are queries and keys pairs of bfloat16 (1, 2), and
    are matrix tiles to be used (4)?"""
    task = carray(data, 34, np.int64)
    kind = task[3]
    first, last = take(data, task)
    while first < last:
        if kind & 3 == 3:
            _part(task, first, last, np.int32, np.int32, np.int16)
        elif kind == 2:
            _part(task, first, last, np.float32, np.int32, np.int16)
        else:
            _part(task, first, last, np.float32, np.float32, np.float32)
        first, last = take(data, task)


@njit(cache=True, nogil=True)
def _part(task: Any, first: int, last: int, asked: Any, key: Any, value: Any) -> None:
    """`_attend` of the arrays of a task, which have these types of numbers."""
    query = carray(pointer(task[4]), (task[5], task[6], task[7]), asked)
    keys = carray(pointer(task[8]), (task[9], task[10], task[11], task[12]), key)
    values = carray(pointer(task[13]), (task[14], task[15], task[16], task[17]), value)
    slots = carray(pointer(task[18]), (task[19],), np.int64)
    sight = carray(pointer(task[20]), (task[21], task[22]), np.int64)
    tiles = carray(pointer(task[23]), (task[24],), np.int64)
    sinks = carray(pointer(task[25]), (task[26],), np.float32)
    numbers = carray(pointer(task[27]), (task[28],), np.float32)
    out = carray(pointer(task[29]), (task[30], task[31], task[32]), np.float32)
    _attend(first, last, query, keys, values, slots, sight, tiles, sinks, numbers, out, task[3] & 4)


@njit(cache=True, nogil=True)
def _attend(  # noqa: PLR0913
    first: int, last: int, query: Any, keys: Any, values: Any, slots: Any, sight: Any, tiles: Any,
    sinks: Any, numbers: Any, out: Any, tiled: int,
) -> None:  # fmt: skip
    """As `attend`, of pairs of a tile and a group of heads, `first .. last - 1`; `numbers`: scale
    and soft cap, 0 for none. `tiled`: scores by matrix tiles."""
    groups, capacity, steps = keys.shape[1:]
    shared = query.shape[1] // groups
    most = shared * np.max(tiles[1:] - tiles[:-1])
    whole = (steps + LANES - 1) // LANES * LANES
    asked = np.zeros((most, whole * (query.shape[2] // steps)), query.dtype)
    laid, nothing = np.empty((1, whole, WIDTH), keys.dtype), np.zeros(WIDTH, np.float32)
    scores = np.empty((most, capacity + 2 * WIDTH), np.float32)
    sums, scales = np.empty((most, values.shape[3]), np.float32), np.empty(most, np.float32)
    columns = np.empty(capacity + 2 * WIDTH, np.int64)
    for unit in range(first, last):
        tile, group = unit // groups, unit % groups
        rows, slot, begin = sight[tiles[tile] : tiles[tile + 1]], slots[tiles[tile]], group * shared
        low, end = _extent(rows)
        count = len(rows) * shared
        for n in range(count):
            row, head = tiles[tile] + n // shared, begin + n % shared
            for i in range(query.shape[2]):
                asked[n, i] = query[row, head, i]
        task = keys, slot, group, low, end, asked, count, laid, scores
        if tiled:
            _by_tiles(*task)
        else:
            _by_registers(*task, nothing)
        for i in range(end - low):
            columns[i] = low + i
        for n in range(count):
            seen, sink = rows[n // shared], sinks[begin + n % shared]
            found = scores[n]
            behind = _gathered(seen, low, found)
            scales[n] = softmax(found[seen[0] - low : behind], numbers[0], numbers[1], sink)
        sums[:count] = 0
        _mix_all(scores, rows, shared, low, columns, values, slot, group, sums)
        for n in range(count):
            row, head = tiles[tile] + n // shared, begin + n % shared
            for i in range(sums.shape[1]):
                out[row, head, i] = scales[n] * sums[n, i]


@njit(cache=True, nogil=True)
def _extent(rows: Any) -> tuple[int, int]:
    """The first column that any of the rows sees, and the one behind the last."""
    low, end = rows[0, 0], 0
    for row in range(len(rows)):
        low, end = min(low, rows[row, 0]), max(end, rows[row, 0], rows[row, 1])
        for word in range(2, rows.shape[1]):
            bits = np.uint64(rows[row, word])
            if bits:
                end = max(end, rows[row, 1] + 64 * (word - 1) - zeros_above(bits))
    return low, end


@njit(cache=True, nogil=True)
def _by_registers(  # noqa: PLR0913
    keys: Any, slot: int, group: int, low: int, end: int, asked: Any, count: int, laid: Any,
    scores: Any, nothing: Any,
) -> None:  # fmt: skip
    """Products of all queries with the keys of columns `low .. end - 1`, to `scores`."""
    parts = (count + MOST - 1) // MOST
    for column in range(low, end, WIDTH):
        lay_out(keys, slot, group, column, laid)  # pyright: ignore[reportCallIssue]
        for part in range(parts):
            begin, behind = count * part // parts, count * (part + 1) // parts
            near(asked, begin, behind - begin, laid, 0, nothing, scores, column - low)


@njit(cache=True, nogil=True)
def _by_tiles(  # noqa: PLR0913
    keys: Any, slot: int, group: int, low: int, end: int, asked: Any, count: int, laid: Any,
    scores: Any,
) -> None:  # fmt: skip
    """`_by_registers`, of at most as many queries as two matrix tiles hold."""
    steps = laid.shape[1] // TALL
    open_tiles(count)  # pyright: ignore[reportCallIssue]
    for column in range(low, end, WIDTH):
        lay_out(keys, slot, group, column, laid)  # pyright: ignore[reportCallIssue]
        task = 0, laid, 0, 0, steps, scores, column - low, 0, 0, 0
        if count > TALL:
            two_tiles(asked, *task)
        else:
            one_tile(asked, *task)
    leave_tiles()  # pyright: ignore[reportCallIssue]


@njit(cache=True, nogil=True)
def _gathered(seen: Any, low: int, found: Any) -> int:
    """Put the numbers of a row's ancestors, in place, behind those of the columns that it sees one
    after the other, which begin at `seen[0] - low`; where they end."""
    place = max(seen[0], seen[1]) - low
    for word in range(2, len(seen)):
        left, first = np.uint64(seen[word]), seen[1] + 64 * (word - 2) - low
        while left:
            found[place] = found[first + zeros_below(left)]
            place += 1
            left &= left - np.uint64(1)
    return place


@njit(cache=True, nogil=True)
def _mix_all(  # noqa: PLR0913
    shares: Any, rows: Any, shared: int, low: int, columns: Any, values: Any, slot: int,
    group: int, sums: Any,
) -> None:  # fmt: skip
    """Add to each query's sums the values that its row sees, weighed by its shares. What all rows
    see goes through in blocks."""
    first, last = rows[0, 0], rows[0, 1]
    for row in range(len(rows)):
        first, last = max(first, rows[row, 0]), min(last, rows[row, 1])
    first, last = first - low, last - low
    for row in range(len(rows)):
        begin, end = rows[row, 0] - low, min(first, max(rows[row, 0], rows[row, 1]) - low)
        if begin < end:
            _mix(shares, row * shared, shared, columns, begin, end, values, slot, group, sums)
    for begin in range(first, last, WIDTH):
        end = min(begin + WIDTH, last)
        _mix(shares, 0, len(rows) * shared, columns, begin, end, values, slot, group, sums)
    for row in range(len(rows)):
        behind = max(rows[row, 0], rows[row, 1]) - low
        begin, end = max(last, min(first, behind)), _gathered(rows[row], low, columns)
        if begin < end:
            _mix(shares, row * shared, shared, columns, begin, end, values, slot, group, sums)
        for i in range(behind, end):
            columns[i] = low + i


@njit(cache=True, nogil=True)
def _mix(  # noqa: PLR0913
    shares: Any, first_query: int, queries: int, columns: Any, first: int, last: int, values: Any,
    slot: int, group: int, sums: Any,
) -> None:  # fmt: skip
    """Add the values at columns `first .. last - 1` to the sums of queries."""
    parts = (queries + MIXED - 1) // MIXED
    for part in range(parts):
        begin, end = queries * part // parts, queries * (part + 1) // parts
        line = first_query + begin
        mixed_in(shares, line, end - begin, columns, first, last, values, slot, group, sums)  # pyright: ignore[reportCallIssue]
