"""Products of rows with weights, on CPU, as fast as the weights come from memory.

A decoding step multiplies a few rows with every weight of the model, so its time is that of reading
the weights, if the loop lets it; oneDNN's kernels, made for many rows, take up to twice as long.
Here weights lie in the order in which they are used: blocks of outputs, inside them pairs of
inputs, so that memory is read straight through; the sums of a tile of rows stay in registers until
all inputs are added up. `benchmarks/packed_weights.py` measures it.

Every sum is taken input by input, in order, whatever the rows, threads and registers are: what a
row gives does not depend on the rows beside it, by construction. Weights are float32 or bfloat16.
Products are taken in float32, those of bfloat16 rows with bfloat16 weights in pairs by the
processor's own instructions where it has them: of its matrix tiles (AMX) for any number of rows, or
of its registers (AVX512-BF16). bfloat16 is rounded to once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch.nn.functional import pad

from draftrec.engine.passes.registers import (
    FLOAT,
    FLOATS,
    INT,
    INTS,
    LANES,
    LONG,
    PAIRS,
    PAIRWISE,
    TALL,
    TILES,
    WIDE,
    after,
    arrays,
    constant,
    empty_tile,
    everywhere,
    free_tiles,
    heights,
    pairs_plus,
    prefetch,
    read,
    read_tile,
    set_tiles,
    tile_plus,
    times_plus,
    variables,
    write,
    write_tile,
)
from draftrec.engine.passes.team import carray, pointer, share, take, threads_for

#: Rows of a tile: with two registers of outputs each they fill the processor's.
MOST = 12 if WIDE else 4
#: Outputs of a block.
WIDTH = 2 * LANES
#: Bytes of a cache line.
LINE = 64
#: Bytes ahead of use that memory is asked for: the processor's own guess ends with each page.
AHEAD = 4096
# Steps of matrix tiles after which other rows take the weights of a block: these are in a core's
# second cache then, those of the next steps on their way to it.
_STEPS = 32
# Cache lines of weights of a step of matrix tiles.
_LINES = 4 * TALL * WIDTH // LINE
# numpy asks the system for huge pages from 4 MB on, which lets weights come by half again as fast.
_PIECE = 1 << 26


class Shelf:
    """Memory for laid out weights, in pieces so large that they get huge pages."""

    def __init__(self) -> None:
        self._left = np.empty(0, np.int32)

    def take(self, *shape: int) -> Any:
        """int32 `shape`, not filled in, from the begin of a cache line."""
        size = int(np.prod(shape))
        if size + LINE > len(self._left):
            self._left = np.empty(max(size + LINE, _PIECE // 4), np.int32)
        begin = -self._left.ctypes.data % LINE // 4
        found = self._left[begin : begin + size].reshape(shape)
        self._left = self._left[begin + size :]
        return found


def lay_out(weights: Sequence[torch.Tensor], shelf: Shelf) -> Any:
    """Weights `[outputs, inputs]`, one below the other, the outputs of a block side by side, zeros
    after the last: float32 `[blocks, inputs, WIDTH]`, or int32 `[blocks, inputs / 2, WIDTH]` of
    bfloat16 ones, in pairs of inputs."""
    outputs, inputs = sum(len(w) for w in weights), weights[0].shape[1]
    narrow = weights[0].dtype == torch.bfloat16
    steps = (inputs + 1) // 2 if narrow else inputs
    laid = shelf.take(-(-outputs // WIDTH), steps, WIDTH)
    first = 0
    for weight in weights:
        whole = pad(weight.detach(), (0, inputs % 2 if narrow else 0)).contiguous()
        _lay_out(first, whole.view(torch.int32).numpy(), laid)
        first += len(weight)
    _lay_out(first, np.zeros((len(laid) * WIDTH - first, steps), np.int32), laid)
    return laid if narrow else laid.view(np.float32)


def taken_out(laid: Any, outputs: int, inputs: int) -> torch.Tensor:
    """The weights `[outputs, inputs]` that `lay_out` was given, as one."""
    kind = torch.bfloat16 if laid.dtype == np.int32 else torch.float32
    rows = laid.transpose(0, 2, 1).reshape(-1, laid.shape[1]).copy()
    return torch.from_numpy(rows).view(kind)[:outputs, :inputs]


def products(rows: Any, laid: Any, bias: Any, room: Any = None) -> Any:
    """`[R, >= outputs]` of `rows` `[R, inputs]`, float32 or, for bfloat16, int16, in their dtype;
    `bias` float32 `[blocks * WIDTH]`. Many rows had better begin with a cache line. `room`: at
    least as many numbers of that dtype, which are overwritten and returned in place of new ones,
    which the system would have to clear first."""
    blocks, steps, _ = laid.shape
    halved, narrow = rows.dtype == np.int16, laid.dtype == np.int32
    tiled = halved and narrow and steps % TALL == 0 and has_tiles()
    if rows.shape[1] < steps * (1 + narrow):
        rows = np.pad(rows, ((0, 0), (0, 1)))
    if halved:
        paired = narrow and PAIRWISE
        rows = rows.view(np.int32) if paired else (rows.astype(np.int32) << 16).view(np.float32)
    shape = len(rows), blocks * WIDTH
    if room is None:
        out = np.empty(shape, np.int16 if halved else np.float32)
    else:
        out = room[: shape[0] * shape[1]].reshape(shape)
    # As long as the weights take to be read, or to be multiplied with all rows.
    numbers = laid.size * (1 + narrow)
    speed = 350 if tiled else 100 if rows.dtype == np.int32 else 50
    threads = min(threads_for(max(laid.nbytes / 25, len(rows) * numbers / speed)), blocks)
    if threads > 1:
        kind = (rows.dtype == np.int32) + 2 * (laid.dtype == np.int32) + 4 * halved + 8 * tiled
        share(_loop, blocks, threads, kind, rows, laid, bias, out)
    else:
        (_tiled if tiled else _blocks)(0, blocks, rows, laid, bias, out)
    return out


@njit(cache=True, nogil=True)
def lines(like: Any, rows: int, width: int) -> Any:
    """`[rows, width]` of the numbers that `like` has, not filled in, from the begin of a cache
    line. Matrix tiles take several times as long to be filled with rows that each lie in two lines;
    numpy's own arrays begin anywhere, and torch's as these do."""
    room = np.empty(rows * width + LINE // like.itemsize, like.dtype)
    begin = -room.ctypes.data % LINE // like.itemsize
    return room[begin : begin + rows * width].reshape((rows, width))


@cache
def has_tiles() -> bool:
    """Has the processor matrix tiles for bfloat16, and does the system let this process use them?
    Linux wants to be asked."""
    return TILES and bool(getattr(torch.cpu, "_init_amx", lambda: False)())


@njit(cache=True, nogil=True)
def _lay_out(first: int, weight: Any, laid: Any) -> None:
    for o in range(len(weight)):
        block, lane = divmod(first + o, laid.shape[2])
        for k in range(weight.shape[1]):
            laid[block, k, lane] = weight[o, k]


def _loop(data: Any) -> None:
    """`_blocks` as `team.share` runs it, or `_tiled`. `kind`: are rows, weights and results narrow
    (1, 2, 4), and is it for matrix tiles (8)?"""
    task = carray(data, 14, np.int64)
    kind = task[3]
    first, last = take(data, task)
    while first < last:
        if kind == 15:
            rows, laid, bias, out = _arrays(task, np.int32, np.int32, np.int16)
            _tiled(first, last, rows, laid, bias, out)
        elif kind == 7:
            _part(task, first, last, np.int32, np.int32, np.int16)
        elif kind == 2:
            _part(task, first, last, np.float32, np.int32, np.float32)
        elif kind == 6:
            _part(task, first, last, np.float32, np.int32, np.int16)
        elif kind == 4:
            _part(task, first, last, np.float32, np.float32, np.int16)
        else:
            _part(task, first, last, np.float32, np.float32, np.float32)
        first, last = take(data, task)


@njit(cache=True, nogil=True)
def _part(task: Any, first: int, last: int, row: Any, weight: Any, result: Any) -> None:
    """`_blocks` of the arrays of a task, which have these types of numbers."""
    rows, laid, bias, out = _arrays(task, row, weight, result)
    _blocks(first, last, rows, laid, bias, out)


@njit(cache=True, nogil=True)
def _arrays(task: Any, row: Any, weight: Any, result: Any) -> Any:
    rows = carray(pointer(task[4]), (task[5], task[6]), row)
    laid = carray(pointer(task[7]), (task[8], task[9], WIDTH), weight)
    bias = carray(pointer(task[11]), (task[12],), np.float32)
    out = carray(pointer(task[13]), (task[5], task[12]), result)
    return rows, laid, bias, out


@njit(cache=True, nogil=True)
def _blocks(first: int, last: int, rows: Any, laid: Any, bias: Any, out: Any) -> None:
    """Blocks `first .. last - 1` of the outputs of all rows, in tiles of nearly equal height."""
    count = len(rows)
    tiles = (count + MOST - 1) // MOST
    for block in range(first, last):
        for part in range(tiles):
            begin, end = count * part // tiles, count * (part + 1) // tiles
            tile(rows, begin, end - begin, laid, block, bias, out, block * WIDTH)


@njit(cache=True, nogil=True)
def _tiled(first: int, last: int, rows: Any, laid: Any, bias: Any, out: Any) -> None:
    """`_blocks` by matrix tiles, for whole numbers of their steps. Many rows take turns with a part
    of a block's weights while it is near."""
    count, steps = len(rows), laid.shape[1] // TALL
    parts = (count + 2 * TALL - 1) // (2 * TALL)
    turn = steps if parts == 1 else _STEPS
    lead = AHEAD if parts == 1 else turn * _LINES * LINE
    sums = lines(bias, count, WIDTH)
    for block in range(first, last):
        for step in range(0, steps, turn):
            end, opened = min(step + turn, steps), 0
            for part in range(parts):
                begin = 2 * TALL * part
                height = min(2 * TALL, count - begin)
                asked = _LINES * part // parts, _LINES * (part + 1) // parts
                task = begin, laid, block, step, end, sums, 0, lead
                if height != opened:
                    open_tiles(height)  # pyright: ignore[reportCallIssue]
                    opened = height
                if height > TALL:
                    two_tiles(rows, *task, *asked)
                else:
                    one_tile(rows, *task, *asked)
                if end == steps:
                    _finished(sums, begin, height, block, bias, out)
    leave_tiles()


def _tile(*, ahead: bool) -> Any:
    """A function of generated code, with a loop for each height of a tile. `ahead`: let it ask
    memory for the weights that come next."""

    def add_up(  # type: ignore[no-untyped-def]  # noqa: PLR0913
        typing, rows, begin, count, laid, block, bias, out, column
    ):
        rounds = out.dtype == types.int16
        narrow = _add_pairs if rows.dtype == types.int32 else _add_halves
        add = narrow if laid.dtype == types.int32 else _add_wide
        signature = types.void(
            rows, types.intp, types.intp, laid, types.intp, bias, out, types.intp
        )

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if add is _add_pairs and not PAIRWISE:  # in loops for every kind, and never asked for
                return context.get_dummy_value()
            rows, begin, count, laid, block, bias, out, column = arrays(
                context, builder, signature, arguments
            )
            more = _both(builder, bias.at(builder.mul(block, LONG(WIDTH))))
            for height in heights(builder, count, MOST):
                lines = [builder.add(begin, LONG(r)) for r in range(height)]
                own, steps = [rows.at(x) for x in lines], laid.size(1)
                sums = _sums(builder, add, own, laid.at(block), steps, ahead=ahead)
                for line, row in zip(lines, sums, strict=True):
                    found = [builder.load(x) for x in row]
                    _end(builder, found, more, out.at(line, column), rounds=rounds)
            return context.get_dummy_value()

        return signature, generate

    return intrinsic(add_up)


#: `tile(rows, begin, count, laid, block, bias, out, column)`: a block of outputs of rows `begin ..
#: begin + count - 1`, at most `MOST`, to the columns of `out` from `column` on; `near` where the
#: weights are in a core's nearest cache.
tile, near = _tile(ahead=True), _tile(ahead=False)


def _tiles(count: int) -> Any:
    """A function of generated code for the rows of one matrix tile, or of two, and a block of
    outputs, which fill two tiles as well."""

    def add_up(  # type: ignore[no-untyped-def]  # noqa: PLR0913
        typing, rows, begin, laid, block, step, end, sums, column, lead, low, high
    ):
        places = [types.intp] * 3, [types.intp] * 4
        signature = types.void(rows, types.intp, laid, *places[0], sums, *places[1])

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if TILES:
                of = arrays(context, builder, signature, arguments)
                _add_tiles(builder, count, *of)
            return context.get_dummy_value()

        return signature, generate

    return intrinsic(add_up)


def _add_tiles(  # noqa: PLR0913
    builder: Any, count: int, rows: Any, begin: Any, laid: Any, block: Any, step: Any, end: Any,
    sums: Any, column: Any, lead: Any, low: Any, high: Any,
) -> None:  # fmt: skip
    """Rows from `begin` on, as many as the tiles are open for, times the weights of a block, steps
    `step .. end - 1`, are added to the columns of `sums` from `column` on, which begin with step 0.
    In each step lines `low .. high - 1` of the weights that lie `lead` bytes on are asked for."""
    line, across = LONG(4 * WIDTH), builder.mul(sums.size(1), LONG(4))
    tops = [begin, builder.add(begin, LONG(TALL))][:count]
    found = {(r, j): 2 * r + j for r in range(count) for j in range(2)}
    places = {
        t: builder.add(sums.at(tops[r], column), LONG(LINE * j)) for (r, j), t in found.items()
    }
    with builder.if_else(builder.icmp_signed("==", step, LONG(0))) as (at_first, later):
        with at_first:
            for tile in places:
                empty_tile(builder, tile)
        with later:
            for tile, place in places.items():
                read_tile(builder, tile, place, across)
    stride, weights = builder.mul(rows.size(1), LONG(4)), laid.at(block)
    with cgutils.for_range_slice(builder, step, end, LONG(1), inc=True) as (k, _):
        here = builder.add(weights, builder.mul(k, LONG(LINE * _LINES)))
        far = builder.add(here, lead)
        with cgutils.for_range_slice(builder, low, high, LONG(1), inc=True) as (asked, _):
            prefetch(builder, builder.add(far, builder.mul(asked, LONG(LINE))))
        for j in range(2):
            read_tile(builder, 6 + j, builder.add(here, LONG(LINE * j)), line)
        for r in range(count):
            inputs = builder.add(rows.at(tops[r]), builder.mul(k, LONG(LINE)))
            read_tile(builder, 4 + r, inputs, stride)
            for j in range(2):
                tile_plus(builder, found[r, j], 4 + r, 6 + j)
    for tile, place in places.items():
        write_tile(builder, tile, place, across)


def _finish(  # noqa: PLR0913
    typing: Any, sums: Any, begin: Any, count: Any, block: Any, bias: Any, out: Any
) -> Any:
    """The block's columns of `out`, of rows `begin .. begin + count - 1`: `sums` `[R, WIDTH]` and
    bias, rounded."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, begin, count, block, bias, out = arrays(context, builder, signature, arguments)
        column = builder.mul(block, LONG(WIDTH))
        more = _both(builder, bias.at(column))
        with cgutils.for_range(builder, count) as loop:
            row = builder.add(begin, loop.index)
            _end(builder, _both(builder, sums.at(row)), more, out.at(row, column), rounds=True)
        return context.get_dummy_value()

    return types.void(sums, types.intp, types.intp, types.intp, bias, out), generate


def _open(typing: Any, rows: Any) -> Any:
    """Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 weights: as many as the processor has."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if TILES:
            (rows,), tall = arguments, LONG(TALL)
            more = builder.icmp_signed(">", rows, tall)
            first = builder.select(more, tall, rows)
            second = builder.select(more, builder.sub(rows, tall), LONG(1))
            heights = [first, first, second, second, first, second, tall, tall]
            set_tiles(builder, dict(enumerate(heights)))
        return context.get_dummy_value()

    return types.void(types.intp), generate


def _leave(typing: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if TILES:
            free_tiles(builder)
        return context.get_dummy_value()

    return types.void(), generate


#: `one_tile(rows, begin, laid, block, step, end, sums, column, lead, low, high)`, see `_add_tiles`:
#: at most `TALL` rows, or twice as many, after `open_tiles(rows)`. `leave_tiles()` is to follow.
one_tile, two_tiles = _tiles(1), _tiles(2)
open_tiles: Any = intrinsic(_open)
_finished: Any = intrinsic(_finish)
leave_tiles: Any = intrinsic(_leave)


def _both(builder: Any, address: Any, kind: Any = FLOATS) -> list[Any]:
    """Two registers of what lies at the address for the outputs of a block."""
    return [read(builder, after(builder, address, j), kind) for j in (0, LANES)]


def _end(builder: Any, sums: list[Any], more: list[Any], address: Any, *, rounds: bool) -> None:
    """Write a row's outputs of a block."""
    for j, (found, own) in enumerate(zip(sums, more, strict=True)):
        value = builder.fadd(found, own)
        size = LANES * j * (2 if rounds else 4)
        to = builder.add(address, LONG(size))
        write(builder, _rounded(builder, value) if rounds else value, to)


def _sums(
    builder: Any, add: Any, rows: list[Any], weights: Any, steps: Any, *, ahead: bool
) -> list[list[Any]]:
    """For each row two registers of outputs, summed over all inputs; `rows` and `weights`
    are addresses."""
    sums = [variables(builder, 2) for _ in rows]
    with cgutils.for_range(builder, steps) as loop:
        here = builder.add(weights, builder.mul(loop.index, LONG(4 * WIDTH)))
        for line in range(0, 4 * WIDTH, LINE) if ahead else ():
            prefetch(builder, builder.add(here, LONG(AHEAD + line)))
        add(builder, rows, loop.index, _both(builder, here, INTS), sums)
    return sums


def _add_pairs(builder: Any, rows: Any, k: Any, weights: Any, sums: Any) -> None:
    """Every row's pair `k` of bfloat16 inputs, times those of all outputs."""
    for row, to in zip(rows, sums, strict=True):
        pair = read(builder, builder.add(row, builder.mul(k, LONG(4))), INT)
        own = builder.bitcast(everywhere(builder, pair, INTS), PAIRS)
        for w, s in zip(weights, to, strict=True):
            more = pairs_plus(builder, own, builder.bitcast(w, PAIRS), builder.load(s))
            builder.store(more, s)


def _add_halves(builder: Any, rows: Any, k: Any, weights: Any, sums: Any) -> None:
    """Every row's float32 inputs `2 k` and `2 k + 1`, times the bfloat16 weights of all outputs."""
    up, high = constant(INTS, 16), constant(INTS, 0xFFFF0000)
    low = [builder.shl(both, up) for both in weights]
    _add_inputs(builder, rows, k, [low, [builder.and_(both, high) for both in weights]], sums)


def _add_wide(builder: Any, rows: Any, k: Any, weights: Any, sums: Any) -> None:
    """Every row's float32 input `k`, times the float32 weights of all outputs."""
    _add_inputs(builder, rows, k, [weights], sums)


def _add_inputs(builder: Any, rows: Any, k: Any, weights: list[Any], sums: Any) -> None:
    """Every row's next float32 inputs, as many as there are `weights`, bits of float32."""
    wide = [[builder.bitcast(w, FLOATS) for w in of_input] for of_input in weights]
    for row, to in zip(rows, sums, strict=True):
        here = builder.add(row, builder.mul(k, LONG(4 * len(wide))))
        for i, of_input in enumerate(wide):
            own = everywhere(builder, read(builder, after(builder, here, i), FLOAT), FLOATS)
            for w, s in zip(of_input, to, strict=True):
                builder.store(times_plus(builder, own, w, builder.load(s)), s)


def _rounded(builder: Any, value: Any) -> Any:
    """bfloat16 bits of float32 numbers: to the nearest, ties to even."""
    bits, half = builder.bitcast(value, INTS), constant(INTS, 16)
    odd = builder.and_(builder.lshr(bits, half), constant(INTS, 1))
    up = builder.add(bits, builder.add(odd, constant(INTS, 0x7FFF)))
    return builder.trunc(builder.lshr(up, half), ir.VectorType(ir.IntType(16), LANES))
