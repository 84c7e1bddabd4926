"""Attention, and sums over the vocabulary, of every row by itself, on CPU: its result does not
depend on what shares the pass.

Matrix kernels choose how they sum by the shapes that they are given, so that a draft node and the
token that it becomes round differently, and near-ties fall otherwise. Here a row takes the columns
that it sees, its text's first and then its ancestors root down, in the order of their positions:
the same numbers in the same order whether they came as drafts, in a prompt or one at a time, alone
or in a batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from draftrec.engine.passes.registers import (
    FLOAT,
    FLOATS,
    LANES,
    LONG,
    after,
    arrays,
    everywhere,
    first_lanes,
    mixed,
    read,
    times_plus,
    variables,
    write,
)
from draftrec.engine.passes.team import carray, over_rows, pointer, share, take, threads_for

# Sums may be reordered, by the compiler and so in the same way for every row.
SUMS = {"reassoc", "contract", "nsz"}
# Keys that a query is multiplied with at a time.
_KEYS = 8
# Columns whose values stay in a core's nearest cache while the heads that share them pass.
_VALUES = 32
# Logits that are summed at a time.
_STRETCH = 2048


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
    """float32 `[S, heads, value_dim]`: softmax(q k) v of `query` float32 `[S, heads, key_dim]`.

    `keys`, `values` float32 `[slots, kv_heads, capacity, dim]`, heads sharing them in groups;
    `seen`: slots int64 `[S]` and what each row sees, int64 `[>= S, 2 + words]` as in
    `packing.Block.sight`. `sinks` `[heads]`: a further score that takes its share and gives
    nothing (GPT-OSS); `softcap`: scores are its tanh (Gemma 2).
    """
    slots, sight = (x.numpy() for x in seen)
    out = torch.empty((len(slots), query.shape[1], values.shape[-1]))
    q, k, v = (x.numpy() for x in (query.contiguous(), keys, values))
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
    """`attend` of arrays, into `out`."""
    rows, heads = query.shape[:2]
    rest = np.full(heads, -np.inf, np.float32) if sinks is None else sinks
    numbers = np.array([scale, softcap or 0.0], np.float32)
    threads = min(threads_for(3.0 * rows * heads * keys.shape[2]), rows)
    if threads > 1:
        share(_loop, rows, threads, query, keys, values, *seen, rest, numbers, out)
    else:
        _attend(0, rows, query, keys, values, *seen, rest, numbers, out)


def log_sum_exp(logits: torch.Tensor) -> torch.Tensor:
    """float32 `[R]`: log(sum(exp)) of each row of `logits` `[R, V]`."""
    rows = logits.float().contiguous().numpy()
    out = np.empty(len(rows), np.float32)
    over_rows(_log_sums, len(rows), rows.size, rows, out)
    return torch.from_numpy(out)


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


def _loop(data: Any) -> None:
    """`_attend` as `team.share` runs it."""
    task = carray(data, 31, np.int64)
    query = carray(pointer(task[3]), (task[4], task[5], task[6]), np.float32)
    keys = carray(pointer(task[7]), (task[8], task[9], task[10], task[11]), np.float32)
    values = carray(pointer(task[12]), (task[13], task[14], task[15], task[16]), np.float32)
    slots = carray(pointer(task[17]), (task[18],), np.int64)
    sight = carray(pointer(task[19]), (task[20], task[21]), np.int64)
    sinks = carray(pointer(task[22]), (task[23],), np.float32)
    numbers = carray(pointer(task[24]), (task[25],), np.float32)
    out = carray(pointer(task[26]), (task[27], task[28], task[29]), np.float32)
    while True:
        first = take(data, task[2])
        if first >= task[1]:
            return
        last = min(first + task[2], task[1])
        _attend(first, last, query, keys, values, slots, sight, sinks, numbers, out)


@njit(cache=True, nogil=True)
def _attend(  # noqa: PLR0913
    first: int, last: int, query: Any, keys: Any, values: Any, slots: Any, sight: Any, sinks: Any,
    numbers: Any, out: Any,
) -> None:  # fmt: skip
    """As `attend`; `numbers`: scale and soft cap, 0 for none."""
    heads, shared = query.shape[1], query.shape[1] // keys.shape[1]
    columns = np.empty(keys.shape[2], np.int64)
    scores = np.empty((shared, keys.shape[2] + _KEYS), np.float32)
    for row in range(first, last):
        count, slot = _columns(sight[row], columns), slots[row]
        out[row] = 0
        for group in range(heads // shared):
            begin = group * shared
            for i in range(0, count, _KEYS):  # heads that share keys take them while they are near
                for h in range(shared):
                    _score(query, row, begin + h, keys, slot, group, columns, i, count, scores, h)  # pyright: ignore[reportCallIssue]
            for h in range(shared):
                _share(scores[h, :count], numbers[0], numbers[1], sinks[begin + h])
            for i in range(0, count, _VALUES):
                end = min(i + _VALUES, count)
                for h in range(shared):
                    _mix(scores, h, columns, i, end, values, slot, group, out, row, begin + h)  # pyright: ignore[reportCallIssue]


@njit(cache=True, nogil=True)
def _columns(seen: Any, columns: Any) -> int:
    """Fill in the columns that a row sees, in order; their number."""
    count = 0
    for column in range(seen[0], seen[1]):
        columns[count] = column
        count += 1
    for word in range(2, len(seen)):
        left, bit = np.uint64(seen[word]), 0
        while left:
            if left & np.uint64(1):
                columns[count] = seen[1] + 64 * (word - 2) + bit
                count += 1
            left >>= np.uint64(1)
            bit += 1
    return count


@intrinsic
def _score(  # type: ignore[no-untyped-def]  # noqa: PLR0913
    typing, query, row, head, keys, slot, group, columns, first, count, scores, line
):
    """Products of a query with the keys at columns `first ..`, `_KEYS` of them, the last one again
    where there are fewer."""
    signature = types.void(query, types.intp, types.intp, keys, types.intp, types.intp, columns,
                           types.intp, types.intp, scores, types.intp)  # fmt: skip

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        query, row, head, keys, slot, group, columns, first, count, scores, line = arrays(
            context, builder, signature, arguments
        )
        last, begin = builder.sub(count, LONG(1)), keys.at(slot, group)
        bytes_of = builder.mul(keys.size(3), LONG(4))
        beginnings = []
        for i in range(_KEYS):
            place = builder.add(first, LONG(i))
            place = builder.select(builder.icmp_signed("<", place, last), place, last)
            column = read(builder, columns.at(place), LONG)
            beginnings.append(builder.add(begin, builder.mul(column, bytes_of)))
        own, sums = query.at(row, head), variables(builder, _KEYS)

        def add(offset: Any, mask: Any = None) -> None:
            q = read(builder, builder.add(own, offset), FLOATS, mask)
            for key, to in zip(beginnings, sums, strict=True):
                k = read(builder, builder.add(key, offset), FLOATS, mask)
                builder.store(times_plus(builder, q, k, builder.load(to)), to)

        whole, rest = _registers(builder, query.size(2))
        with cgutils.for_range(builder, whole) as loop:
            add(builder.mul(loop.index, LONG(4 * LANES)))
        with builder.if_then(builder.icmp_signed(">", rest, LONG(0))):
            add(builder.mul(whole, LONG(4 * LANES)), first_lanes(builder, rest))
        write(builder, _folded(builder, [builder.load(x) for x in sums]), scores.at(line, first))
        return context.get_dummy_value()

    return signature, generate


def _registers(builder: Any, width: Any) -> tuple[Any, Any]:
    """How many whole registers a head fills, and the numbers that are left."""
    return builder.udiv(width, LONG(LANES)), builder.urem(width, LONG(LANES))


def _folded(builder: Any, sums: list[Any]) -> Any:
    """A vector of the sums over the lanes of each of `sums`: each is folded in halves, two by two
    in one register."""
    size = LANES
    while size > 1:
        half = size // 2
        pairs = list(zip(sums[::2], sums[1::2], strict=True)) if len(sums) > 1 else [sums * 2]
        parts = (2 * LANES if len(sums) > 1 else sums[0].type.count) // size
        low = [part * size + i for part in range(parts) for i in range(half)]
        high = [lane + half for lane in low]
        sums = [
            builder.fadd(mixed(builder, a, b, low), mixed(builder, a, b, high)) for a, b in pairs
        ]
        size = half
    return sums[0]


@njit(cache=True, nogil=True, fastmath=SUMS)
def _share(found: Any, scale: Any, softcap: Any, sink: Any) -> None:
    """Softmax of the scaled scores, in place; `sink` takes its share of it."""
    highest = sink
    for i in range(len(found)):
        found[i] *= scale
    if softcap:
        for i in range(len(found)):
            found[i] = np.float32(math.tanh(found[i] / softcap)) * softcap
    highest = _highest(found, highest)
    total = np.float32(math.exp(sink - highest)) if sink > -np.inf else np.float32(0)
    _exp(found, highest)
    for i in range(len(found)):
        total += found[i]
    for i in range(len(found)):
        found[i] /= total


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz", "reassoc"})
def _highest(found: Any, highest: Any) -> Any:
    """The largest of all: without thought of NaN many at a time."""
    for value in found:
        highest = max(highest, value)
    return highest


@njit(cache=True, nogil=True, fastmath={"contract"})
def _exp(x: Any, highest: Any) -> None:
    """exp(x - highest) in place."""
    for i in range(len(x)):
        x[i] = exponential(x[i] - highest)


@njit(cache=True, nogil=True, fastmath={"contract"}, inline="always")
def exponential(x: Any) -> Any:
    """exp of a float32 between -87 and 88, within two units in the last place: loops over it run
    many at a time, over `math.exp` one by one. Polynomial and the split of log(2) as in Cephes'
    `expf`."""
    v = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(v * np.float32(1.44269504) + np.float32(0.5))
    f = v - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * f + np.float32(1.3981999507e-3)
    p = p * f + np.float32(8.3334519073e-3)
    p = p * f + np.float32(4.1665795894e-2)
    p = p * f + np.float32(1.6666665459e-1)
    p = p * f + np.float32(5.0000001201e-1)
    power = (np.int32(n) + np.int32(127)) << np.int32(23)
    return (p * f * f + f + np.float32(1.0)) * np.int32(power).view(np.float32)


@intrinsic
def _mix(  # type: ignore[no-untyped-def]  # noqa: PLR0913
    typing, shares, line, columns, first, last, values, slot, group, out, row, head
):
    """Add the values at columns `first .. last - 1`, weighed by their shares."""
    signature = types.void(shares, types.intp, columns, types.intp, types.intp, values,
                           types.intp, types.intp, out, types.intp, types.intp)  # fmt: skip

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        shares, line, columns, first, last, values, slot, group, out, row, head = arrays(
            context, builder, signature, arguments
        )
        here, to = values.at(slot, group), out.at(row, head)
        bytes_of = builder.mul(values.size(3), LONG(4))

        def add(begin: Any, registers: int, mask: Any = None) -> None:
            offset = builder.mul(begin, LONG(4 * LANES))
            places = [after(builder, builder.add(to, offset), LANES * i) for i in range(registers)]
            sums = variables(builder, registers)
            for place, total in zip(places, sums, strict=True):
                builder.store(read(builder, place, FLOATS, mask), total)
            with cgutils.for_range_slice(builder, first, last, LONG(1)) as (at, _):
                share = everywhere(builder, read(builder, shares.at(line, at), FLOAT), FLOATS)
                column = read(builder, columns.at(at), LONG)
                value = builder.add(here, builder.add(builder.mul(column, bytes_of), offset))
                for i, total in enumerate(sums):
                    v = read(builder, after(builder, value, LANES * i), FLOATS, mask)
                    builder.store(times_plus(builder, share, v, builder.load(total)), total)
            for place, total in zip(places, sums, strict=True):
                write(builder, builder.load(total), place, mask)

        whole, rest = _registers(builder, values.size(3))
        fours = builder.udiv(whole, LONG(4))
        with cgutils.for_range(builder, fours) as loop:
            add(builder.mul(loop.index, LONG(4)), 4)
        with cgutils.for_range(builder, builder.urem(whole, LONG(4))) as loop:
            add(builder.add(builder.mul(fours, LONG(4)), loop.index), 1)
        with builder.if_then(builder.icmp_signed(">", rest, LONG(0))):
            add(whole, 1, first_lanes(builder, rest))
        return context.get_dummy_value()

    return signature, generate


@njit(cache=True, nogil=True, fastmath=SUMS)
def _log_sums(begin: int, end: int, rows: Any, out: Any) -> None:
    """As `log_sum_exp`, in stretches that stay in the cache."""
    stretch = np.empty(_STRETCH, np.float32)
    for row in range(begin, end):
        highest = np.float32(-np.inf)
        for value in rows[row]:
            highest = max(highest, value)
        if highest == -np.inf:
            out[row] = highest
            continue
        total = 0.0
        for first in range(0, len(rows[row]), _STRETCH):
            here = stretch[: min(_STRETCH, len(rows[row]) - first)]
            here[:] = rows[row, first : first + len(here)]
            _exp(here, highest)
            for value in here:
                total += value
        out[row] = highest + np.float32(math.log(total))
