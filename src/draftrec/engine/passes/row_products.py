"""Products of rows with bfloat16 weights, on CPU, as fast as the weights come from memory.

A decoding step multiplies a few rows with every weight of the model, so its time is that of reading
the weights, if the loop lets it; oneDNN's kernels, made for many rows, take up to twice as long.
Here weights lie in the order in which they are used: blocks of outputs, inside them pairs of
inputs, so that memory is read straight through; the sums of a tile of rows stay in registers until
all inputs are added up. `benchmarks/packed_weights.py` measures it.

Every sum is taken input by input, in order, whatever the rows, threads and registers are: what a
row gives does not depend on the rows beside it, by construction. float32 rows are multiplied in
float32; bfloat16 rows in pairs by the processor's own instruction (AVX512-BF16) where it has that,
else as float32, and rounded once at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from draftrec.engine.passes.row_attention import over_rows

# What the compiler is allowed to use; users narrow it by numba's own variables.
_GIVEN: Any = config
_FEATURES = (get_host_cpu_features() if _GIVEN.CPU_FEATURES is None else _GIVEN.CPU_FEATURES).split(
    ","
)
_WIDE = "+avx512f" in _FEATURES and not _GIVEN.CPU_NAME
#: Can bfloat16 pairs be multiplied as they are?
_PAIRWISE = _WIDE and "+avx512bf16" in _FEATURES
# Numbers in a register, and rows of a tile: with two registers of outputs each they fill the
# processor's 32 (or, without AVX-512, 16).
_LANES, _MOST = (16, 12) if _WIDE else (8, 4)
#: Outputs of a block.
WIDTH = 2 * _LANES
# Bytes ahead of use that weights are asked for: the processor's own guess ends with each page.
_AHEAD = 4096
# numpy asks the system for huge pages from 4 MB on, which lets weights come by half again as fast.
_PIECE = 1 << 26
_LINE = 64


class Shelf:
    """Memory for laid out weights, in pieces so large that they get huge pages."""

    def __init__(self) -> None:
        self._left = np.empty(0, np.int32)

    def take(self, *shape: int) -> Any:
        """int32 `shape`, not filled in, from the begin of a cache line."""
        size = int(np.prod(shape))
        if size + _LINE > len(self._left):
            self._left = np.empty(max(size + _LINE, _PIECE // 4), np.int32)
        begin = -self._left.ctypes.data % _LINE // 4
        found = self._left[begin : begin + size].reshape(shape)
        self._left = self._left[begin + size :]
        return found


def lay_out(weights: Sequence[torch.Tensor], shelf: Shelf) -> Any:
    """int32 `[blocks, inputs / 2, WIDTH]` of bfloat16 weights `[outputs, inputs]`, one below the
    other: pairs of inputs, the outputs of a block side by side, zeros after the last."""
    outputs, inputs = sum(len(w) for w in weights), weights[0].shape[1]
    pairs = (inputs + 1) // 2
    laid = shelf.take(-(-outputs // WIDTH), pairs, WIDTH)
    first = 0
    for weight in weights:
        whole = torch.nn.functional.pad(weight, (0, inputs % 2)).contiguous()
        _lay_out(first, whole.view(torch.int32).numpy(), laid)
        first += len(weight)
    _lay_out(first, np.zeros((len(laid) * WIDTH - first, pairs), np.int32), laid)
    return laid


def multiply(rows: torch.Tensor, laid: Any, bias: Any, outputs: int) -> torch.Tensor:
    """`[R, outputs]` of `rows` `[R, inputs]`, float32 or bfloat16, in their dtype; `bias` float32
    `[blocks * WIDTH]`."""
    blocks, pairs, _ = laid.shape
    narrow = rows.dtype == torch.bfloat16
    if rows.shape[1] < 2 * pairs:
        rows = torch.nn.functional.pad(rows, (0, 1))
    out = torch.empty((len(rows), blocks * WIDTH), dtype=rows.dtype)
    made = (out.view(torch.int16) if narrow else out).numpy()
    rows = rows.contiguous()
    given = (rows.view(torch.int32) if narrow and _PAIRWISE else rows.float()).numpy()
    work = laid.size // 2  # numbers come by faster here than in loops over rows
    over_rows(_blocks, blocks, work, given, laid, bias, made)
    return out if outputs == out.shape[1] else out[:, :outputs].contiguous()


@njit(cache=True, nogil=True)
def _lay_out(first: int, weight: Any, laid: Any) -> None:
    for o in range(len(weight)):
        block, lane = divmod(first + o, laid.shape[2])
        for k in range(weight.shape[1]):
            laid[block, k, lane] = weight[o, k]


@njit(cache=True, nogil=True)
def _blocks(first: int, last: int, rows: Any, laid: Any, bias: Any, out: Any) -> None:
    """Blocks `first .. last - 1` of the outputs of all rows, in tiles of nearly equal height."""
    count = len(rows)
    tiles = (count + _MOST - 1) // _MOST
    for block in range(first, last):
        for tile in range(tiles):
            begin, end = count * tile // tiles, count * (tile + 1) // tiles
            _tile(rows, begin, end - begin, laid, block, bias, out)  # pyright: ignore[reportCallIssue]


_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(_F32, _LANES), ir.VectorType(_I32, _LANES)
_HALVES = ir.VectorType(_I16, _LANES)


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_PAIRS = ir.VectorType(_BFloat(), 2 * _LANES)


@intrinsic
def _tile(  # type: ignore[no-untyped-def]  # noqa: PLR0913
    typing, rows, begin, count, laid, block, bias, out
):  # fmt: skip
    """Write a block of outputs of rows `begin .. begin + count - 1`: sums over all inputs in
    registers, a loop for each height of a tile."""
    pairwise, rounds = rows.dtype == types.int32, out.dtype == types.int16
    signature = types.void(rows, types.intp, types.intp, laid, types.intp, bias, out)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        rows, begin, count, laid, block, bias, out = (
            _Array(context, builder, kind, value) if isinstance(kind, types.Array) else value
            for kind, value in zip(kinds, arguments, strict=True)
        )
        pairs = laid.size(1)
        weights = builder.mul(block, builder.mul(pairs, _I64(4 * WIDTH)))
        column = builder.mul(block, _I64(WIDTH))
        after = builder.function.append_basic_block("after")
        choice = builder.switch(count, after)
        for height in range(1, _MOST + 1):
            case = builder.function.append_basic_block(f"rows{height}")
            choice.add_case(_I64(height), case)
            builder.position_at_end(case)
            at = [builder.mul(builder.add(begin, _I64(r)), rows.size(1)) for r in range(height)]
            sums = _sums(builder, pairs, [rows.at(builder.mul(a, _I64(4))) for a in at],
                         laid.at(weights), pairwise=pairwise)  # fmt: skip
            for r, row in enumerate(sums):
                line = builder.mul(builder.add(begin, _I64(r)), out.size(1))
                for j, total in enumerate(row):
                    place = builder.add(column, _I64(_LANES * j))
                    more = _load(builder, bias.at(builder.mul(place, _I64(4))), _FLOATS)
                    value = builder.fadd(total, more)
                    stored = _rounded(builder, value) if rounds else value
                    to = out.at(builder.mul(builder.add(line, place), _I64(2 if rounds else 4)))
                    _store(builder, stored, to)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return signature, generate


class _Array:
    """Addresses and sizes of a numpy array inside generated code."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        self._builder = builder
        held = context.make_array(kind)(context, builder, value)
        self._begin = builder.ptrtoint(held.data, _I64)
        self._shape = cgutils.unpack_tuple(builder, held.shape)

    def size(self, axis: int) -> Any:
        return self._shape[axis]

    def at(self, offset: Any) -> Any:
        """Address `offset` bytes after the first number."""
        return self._builder.add(self._begin, offset)


def _sums(
    builder: Any, pairs: Any, rows: list[Any], weights: Any, *, pairwise: bool
) -> list[list[Any]]:
    """For each row two registers of outputs, summed over all `pairs` of inputs; `rows`, `weights`:
    addresses."""
    start = builder.block
    loop = builder.function.append_basic_block("pairs")
    done = builder.function.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(_I64)
    k.add_incoming(_I64(0), start)
    sums = [[builder.phi(_FLOATS) for _ in range(2)] for _ in rows]
    here = builder.add(weights, builder.mul(k, _I64(4 * WIDTH)))
    both = [_load(builder, builder.add(here, _I64(4 * _LANES * j)), _INTS) for j in range(2)]
    for line in range(0, 4 * WIDTH, _LINE):
        _prefetch(builder, builder.add(here, _I64(_AHEAD + line)))
    if pairwise:
        step = _pairwise
        read = [builder.bitcast(w, _PAIRS) for w in both]
    else:
        step = _one_by_one
        low, high = _constant(_INTS, 16), _constant(_INTS, 0xFFFF0000)
        read = [
            (builder.bitcast(builder.shl(w, low), _FLOATS),
             builder.bitcast(builder.and_(w, high), _FLOATS)) for w in both
        ]  # fmt: skip
    offset = builder.mul(k, _I64(4 if pairwise else 8))
    new = [
        step(builder, builder.add(row, offset), read, s) for row, s in zip(rows, sums, strict=True)
    ]
    following = builder.add(k, _I64(1))
    k.add_incoming(following, loop)
    for before, after in zip(sums, new, strict=True):
        for held, value in zip(before, after, strict=True):
            held.add_incoming(_constant(_FLOATS, 0.0), start)
            held.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", following, pairs), loop, done)
    builder.position_at_end(done)
    return new


def _pairwise(builder: Any, row: Any, weights: list[Any], sums: list[Any]) -> list[Any]:
    """Add a row's next pair of bfloat16 inputs, times those of all outputs."""
    pair = builder.bitcast(_everywhere(builder, _load(builder, row, _I32), _INTS), _PAIRS)
    kind = ir.FunctionType(_FLOATS, [_FLOATS, _PAIRS, _PAIRS])
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    add = cgutils.get_or_insert_function(builder.module, kind, name)
    return [builder.call(add, [s, pair, w]) for s, w in zip(sums, weights, strict=True)]


def _one_by_one(builder: Any, row: Any, weights: list[Any], sums: list[Any]) -> list[Any]:
    """Add a row's next two float32 inputs, times those of all outputs."""
    first = _everywhere(builder, _load(builder, row, _F32), _FLOATS)
    second = _everywhere(builder, _load(builder, builder.add(row, _I64(4)), _F32), _FLOATS)
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{_LANES}f32")
    return [
        builder.call(add, [second, w[1], builder.call(add, [first, w[0], s])])
        for s, w in zip(sums, weights, strict=True)
    ]


def _rounded(builder: Any, value: Any) -> Any:
    """bfloat16 bits of float32 numbers: to the nearest, ties to even."""
    bits = builder.bitcast(value, _INTS)
    odd = builder.and_(builder.lshr(bits, _constant(_INTS, 16)), _constant(_INTS, 1))
    up = builder.add(bits, builder.add(odd, _constant(_INTS, 0x7FFF)))
    return builder.trunc(builder.lshr(up, _constant(_INTS, 16)), _HALVES)


def _constant(kind: Any, number: float) -> Any:
    return ir.Constant(kind, [number] * _LANES)


def _everywhere(builder: Any, value: Any, kind: Any) -> Any:
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, value, _I32(0))
    return builder.shuffle_vector(first, nothing, _constant(_INTS, 0))


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=2)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=2)


def _prefetch(builder: Any, address: Any) -> None:
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
    ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(ask, [builder.inttoptr(address, byte), _I32(0), _I32(3), _I32(1)])
