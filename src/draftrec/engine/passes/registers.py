"""Words of generated code for kernels whose sums stay in vector registers, which compiled Python
loops put into memory. LLVM turns them into whatever the processor has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.core.errors import TypingError

# What the compiler is allowed to use; users narrow it by numba's own variables.
_GIVEN: Any = config
_ALLOWED = get_host_cpu_features() if _GIVEN.CPU_FEATURES is None else _GIVEN.CPU_FEATURES
#: Has it 32 registers of 16 numbers (AVX-512)? Otherwise 16 of 8 are counted on.
WIDE = "+avx512f" in _ALLOWED.split(",") and not _GIVEN.CPU_NAME
#: Can it multiply pairs of bfloat16 as they are?
PAIRWISE = WIDE and "+avx512bf16" in _ALLOWED.split(",")
#: Has it matrix tiles for them (AMX)? Whether a process may use them, the system says.
TILES = PAIRWISE and {"+amx-tile", "+amx-bf16"} <= set(_ALLOWED.split(","))
#: Rows of a matrix tile, each of as many bytes as a cache line has.
TALL = 16
#: float32 numbers of a register.
LANES = 16 if WIDE else 8

FLOAT, INT, LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
FLOATS, INTS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT, LANES)
#: bfloat16 numbers, as bits, that fill a register when they are wide.
HALVES = ir.VectorType(ir.IntType(16), LANES)
_BYTE, _SHORT = ir.IntType(8), ir.IntType(16)
_BYTES = _BYTE.as_pointer()


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


#: bfloat16 numbers of a register.
PAIRS = ir.VectorType(_BFloat(), 2 * LANES)


class Array:
    """Addresses and sizes of a numpy array whose rows lie one after the other."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        if kind.layout != "C":
            raise TypingError(f"rows of {kind} do not lie one after the other")
        self._builder = builder
        held = context.make_array(kind)(context, builder, value)
        self._begin = builder.ptrtoint(held.data, LONG)
        self._shape = cgutils.unpack_tuple(builder, held.shape)
        self.item = int(kind.dtype.bitwidth) // 8

    def size(self, axis: int) -> Any:
        return self._shape[axis]

    def at(self, *place: Any) -> Any:
        """Address of the number at `place`, or of the first one there."""
        offset: Any = LONG(0)
        for axis in range(len(self._shape)):
            offset = self._builder.mul(offset, self.size(axis))
            if axis < len(place):
                offset = self._builder.add(offset, place[axis])
        return self._builder.add(self._begin, self._builder.mul(offset, LONG(self.item)))


def arrays(context: Any, builder: Any, signature: Any, arguments: Any) -> list[Any]:
    """The arguments of an intrinsic, its arrays as `Array`."""
    return [
        Array(context, builder, kind, value) if isinstance(kind, types.Array) else value
        for kind, value in zip(signature.args, arguments, strict=True)
    ]


def variables(builder: Any, count: int) -> list[Any]:
    """Registers that loops add to, zero at first."""
    found = [cgutils.alloca_once(builder, FLOATS) for _ in range(count)]
    for place in found:
        builder.store(constant(FLOATS, 0.0), place)
    return found


def after(builder: Any, address: Any, numbers: int) -> Any:
    """The address so many numbers of four bytes on."""
    return builder.add(address, LONG(4 * numbers))


def read(builder: Any, address: Any, kind: Any, mask: Any = None) -> Any:
    """What lies at the address; zero in lanes of FLOATS or HALVES that `mask` leaves out, which are
    not touched."""
    place = builder.inttoptr(address, kind.as_pointer())
    if mask is None:
        return builder.load(place, align=2)
    takes = ir.FunctionType(kind, [place.type, INT, mask.type, kind])
    name = f"llvm.masked.load.v{kind.count}{'i16' if kind == HALVES else 'f32'}.p0"
    given = cgutils.get_or_insert_function(builder.module, takes, name)
    return builder.call(given, [place, INT(2), mask, ir.Constant(kind, None)])


def write(builder: Any, value: Any, address: Any, mask: Any = None) -> None:
    place = builder.inttoptr(address, value.type.as_pointer())
    if mask is None:
        builder.store(value, place, align=2)
        return
    takes = ir.FunctionType(ir.VoidType(), [value.type, place.type, INT, mask.type])
    name = f"llvm.masked.store.v{LANES}f32.p0"
    taken = cgutils.get_or_insert_function(builder.module, takes, name)
    builder.call(taken, [value, place, INT(2), mask])


def first_lanes(builder: Any, count: Any) -> Any:
    """A mask of the first `count` lanes."""
    lanes = ir.Constant(INTS, list(range(LANES)))
    return builder.icmp_signed("<", lanes, everywhere(builder, builder.trunc(count, INT), INTS))


def heights(builder: Any, count: Any, most: int) -> Iterator[int]:
    """A piece of code for every height up to `most`, of which `count` chooses one: each is built
    while the loop over these numbers is at it."""
    end = builder.function.append_basic_block("end")
    choice = builder.switch(count, end)
    for height in range(1, most + 1):
        case = builder.function.append_basic_block(f"height{height}")
        choice.add_case(LONG(height), case)
        builder.position_at_end(case)
        yield height
        builder.branch(end)
    builder.position_at_end(end)


def constant(kind: Any, number: float) -> Any:
    return ir.Constant(kind, [number] * kind.count)


def everywhere(builder: Any, value: Any, kind: Any) -> Any:
    """A register with the value in every lane."""
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, value, INT(0))
    return builder.shuffle_vector(first, nothing, constant(INTS, 0))


def mixed(builder: Any, first: Any, second: Any, lanes: Sequence[int]) -> Any:
    """A register of chosen lanes of the first and, counted on from them, of the second."""
    kind = ir.VectorType(INT, len(lanes))
    return builder.shuffle_vector(first, second, ir.Constant(kind, list(lanes)))


def times_plus(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c of float32, rounded once where the processor can."""
    kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
    name = f"llvm.fmuladd.v{LANES}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])


def pairs_plus(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Sums of products of bfloat16 pairs, added to float32 `c`; where `PAIRWISE`."""
    kind = ir.FunctionType(FLOATS, [FLOATS, PAIRS, PAIRS])
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [c, a, b])


def set_tiles(builder: Any, heights: Mapping[int, Any]) -> None:
    """From now on tile `i` has so many rows; what the tiles held is gone."""
    form = ir.ArrayType(LONG, 8)
    settings = cgutils.alloca_once(builder, form)
    builder.store(ir.Constant(form, [1] + [0] * 7), settings)
    begin = builder.ptrtoint(settings, LONG)
    for number, height in heights.items():
        for kind, place, value in (
            (_SHORT, 16 + 2 * number, _SHORT(64)),  # bytes of a row
            (_BYTE, 48 + number, builder.trunc(height, _BYTE)),
        ):
            at = builder.inttoptr(builder.add(begin, LONG(place)), kind.as_pointer())
            builder.store(value, at, align=1)
    _on_tiles(builder, "ldtilecfg", builder.bitcast(settings, _BYTES))


def free_tiles(builder: Any) -> None:
    """Let the system forget them, as it has to keep what they hold for whoever runs in between."""
    _on_tiles(builder, "tilerelease")


def empty_tile(builder: Any, tile: int) -> None:
    _on_tiles(builder, "tilezero", _BYTE(tile))


def read_tile(builder: Any, tile: int, address: Any, stride: Any) -> None:
    """Fill a tile with rows that lie `stride` bytes apart."""
    _on_tiles(builder, "tileloadd64", _BYTE(tile), builder.inttoptr(address, _BYTES), stride)


def write_tile(builder: Any, tile: int, address: Any, stride: Any) -> None:
    _on_tiles(builder, "tilestored64", _BYTE(tile), builder.inttoptr(address, _BYTES), stride)


def tile_plus(builder: Any, to: int, rows: int, weights: int) -> None:
    """Add to tile `to` the products of bfloat16 pairs: of each row of tile `rows` with each column
    of tile `weights`."""
    _on_tiles(builder, "tdpbf16ps", _BYTE(to), _BYTE(rows), _BYTE(weights))


def _on_tiles(builder: Any, name: str, *arguments: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [x.type for x in arguments])
    given = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}")
    builder.call(given, arguments)


def prefetch(builder: Any, address: Any, *, level: int = 1) -> None:
    """Ask for the line at the address to be brought into the core's first or second cache."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTES, INT, INT, INT])
    ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(ask, [builder.inttoptr(address, _BYTES), INT(0), INT(4 - level), INT(1)])
