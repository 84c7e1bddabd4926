"""Generated code of `row_attention`: keys turned into the layout of weights, values added to sums
that stay in registers, and how many zeros a word has.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from draftrec.engine.passes.registers import (
    FLOAT,
    FLOATS,
    HALVES,
    INTS,
    LANES,
    LONG,
    WIDE,
    after,
    arrays,
    constant,
    everywhere,
    first_lanes,
    heights,
    mixed,
    prefetch,
    read,
    times_plus,
    variables,
    write,
)
from draftrec.engine.passes.row_products import LINE, WIDTH

#: Queries whose sums of values stay in registers, four each.
MIXED = 6 if WIDE else 2
# Blocks of keys or values ahead of use that memory is asked for.
_AHEAD = 4


def _zeros_of(count: str) -> Any:
    """How many zeros a word, which is not zero, has above or below its ones."""

    def zeros(typing, word):  # type: ignore[no-untyped-def]
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, count)(arguments[0], ir.Constant(ir.IntType(1), 1))

        return types.intp(types.uint64), generate

    return intrinsic(zeros)


zeros_above, zeros_below = _zeros_of("ctlz"), _zeros_of("cttz")


@intrinsic
def lay_out(typing, keys, slot, group, first, laid):  # type: ignore[no-untyped-def]
    """Write `WIDTH` keys from column `first` on to `laid`, side by side."""
    signature = types.void(keys, types.intp, types.intp, types.intp, laid)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        keys, slot, group, first, laid = arrays(context, builder, signature, arguments)
        last = builder.sub(keys.size(2), LONG(1))
        begin, bytes_of = keys.at(slot, group), builder.mul(keys.size(3), LONG(4))
        ahead = builder.mul(bytes_of, LONG(_AHEAD * WIDTH))
        places: list[Any] = []
        for i in range(WIDTH):
            column = builder.add(first, LONG(i))
            column = builder.select(builder.icmp_signed("<", column, last), column, last)
            places.append(builder.add(begin, builder.mul(column, bytes_of)))

        def turn(half: int, offset: Any, mask: Any = None) -> None:
            here = [builder.add(x, offset) for x in places[half : half + LANES]]
            for place in here:
                prefetch(builder, builder.add(place, ahead), level=2)
            to = builder.add(laid.at(LONG(0)), builder.mul(offset, LONG(WIDTH)))
            given = [read(builder, place, FLOATS, mask) for place in here]
            for i, line in enumerate(_turned(builder, given)):
                write(builder, line, after(builder, to, i * WIDTH + half))

        whole, rest = _registers(builder, keys.size(3))
        for half in (0, LANES):
            with cgutils.for_range(builder, whole) as loop:
                turn(half, builder.mul(loop.index, LONG(4 * LANES)))
            with builder.if_then(builder.icmp_signed(">", rest, LONG(0))):
                turn(half, builder.mul(whole, LONG(4 * LANES)), first_lanes(builder, rest))
        return context.get_dummy_value()

    return signature, generate


def _turned(builder: Any, lines: list[Any]) -> list[Any]:
    """As many registers as one has lanes, rows for columns: by fours within quarters of a register,
    for which processors have their quickest shuffles, then the quarters."""

    def zipped(a: Any, b: Any) -> list[Any]:
        """Numbers of both in turn, of the first halves and of the second halves of quarters."""
        return [
            mixed(
                builder, a, b, [q + i for q in range(h, LANES, 4) for i in (0, LANES, 1, LANES + 1)]
            )
            for h in (0, 2)
        ]

    def quarters(rows: list[Any]) -> list[Any]:
        if len(rows) == 1:
            return rows
        found: list[Any] = [None] * len(rows)
        for odd in (0, 1):
            lanes = [4 * q + i for q in range(odd, LANES // 2, 2) for i in range(4)]
            some = [mixed(builder, a, b, lanes) for a, b in zip(rows[::2], rows[1::2], strict=True)]
            found[odd::2] = quarters(some)
        return found

    fours: list[list[Any]] = []
    for i in range(0, LANES, 4):
        a, b, c, d = lines[i : i + 4]
        pairs = zip(zipped(a, c), zipped(b, d), strict=True)
        fours.append([x for one, other in pairs for x in zipped(one, other)])
    columns = [quarters([four[j] for four in fours]) for j in range(4)]
    return [columns[i % 4][i // 4] for i in range(LANES)]


def _registers(builder: Any, width: Any) -> tuple[Any, Any]:
    """How many whole registers so many numbers fill, and the numbers that are left."""
    return builder.udiv(width, LONG(LANES)), builder.urem(width, LONG(LANES))


@intrinsic
def mixed_in(  # type: ignore[no-untyped-def]  # noqa: PLR0913
    typing, shares, line, count, columns, first, last, values, slot, group, sums
):
    """`row_attention._mix` of `count` queries from `line` on, at most `MIXED`, with a loop for each
    number."""
    signature = types.void(shares, types.intp, types.intp, columns, types.intp, types.intp, values,
                           types.intp, types.intp, sums)  # fmt: skip

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        shares, line, count, columns, first, last, values, slot, group, sums = arrays(
            context, builder, signature, arguments
        )
        whole, rest = _registers(builder, values.size(3))
        fours = builder.udiv(whole, LONG(4))
        for height in heights(builder, count, MIXED):
            lines = [builder.add(line, LONG(i)) for i in range(height)]
            own = [shares.at(x) for x in lines], [sums.at(x) for x in lines]
            seen = first, last, columns, values, values.at(slot, group)
            with cgutils.for_range(builder, fours) as loop:
                _add_values(builder, *own, *seen, builder.mul(loop.index, LONG(4)), 4)
            with cgutils.for_range(builder, builder.urem(whole, LONG(4))) as loop:
                place = builder.add(builder.mul(fours, LONG(4)), loop.index)
                _add_values(builder, *own, *seen, place, 1)
            with builder.if_then(builder.icmp_signed(">", rest, LONG(0))):
                _add_values(builder, *own, *seen, whole, 1, first_lanes(builder, rest))
        return context.get_dummy_value()

    return signature, generate


def _add_values(  # noqa: PLR0913
    builder: Any, shares: list[Any], sums: list[Any], first: Any, last: Any, columns: Any,
    values: Any, begin: Any, place: Any, registers: int, mask: Any = None,
) -> None:  # fmt: skip
    """Add what so many registers hold of the values, from the `place`-th on, to the sums of each
    query; `shares`, `sums` and `begin` are addresses."""
    bytes_of, place = (
        builder.mul(values.size(3), LONG(values.item)),
        builder.mul(place, LONG(LANES)),
    )
    ahead = builder.mul(bytes_of, LONG(_AHEAD * WIDTH))
    begin = builder.add(begin, builder.mul(place, LONG(values.item)))
    totals = [variables(builder, registers) for _ in sums]
    places = [
        [
            after(builder, builder.add(x, builder.mul(place, LONG(4))), LANES * i)
            for i in range(registers)
        ]
        for x in sums
    ]
    both = [pair for x in zip(places, totals, strict=True) for pair in zip(*x, strict=True)]
    for where, total in both:
        builder.store(read(builder, where, FLOATS, mask), total)
    with cgutils.for_range_slice(builder, first, last, LONG(1)) as (at, _):
        column = read(builder, columns.at(at), LONG)
        value = builder.add(begin, builder.mul(column, bytes_of))
        for line in range(0, registers * LANES * values.item, LINE):
            prefetch(builder, builder.add(value, builder.add(ahead, LONG(line))), level=2)
        steps = [LONG(values.item * LANES * i) for i in range(registers)]
        numbers = [_wide(builder, builder.add(value, x), values.item == 2, mask) for x in steps]
        for weight, own in zip(shares, totals, strict=True):
            number = read(builder, builder.add(weight, builder.mul(at, LONG(4))), FLOAT)
            share = everywhere(builder, number, FLOATS)
            for v, total in zip(numbers, own, strict=True):
                builder.store(times_plus(builder, share, v, builder.load(total)), total)
    for where, total in both:
        write(builder, builder.load(total), where, mask)


def _wide(builder: Any, address: Any, narrow: bool, mask: Any) -> Any:  # noqa: FBT001
    """float32 numbers at the address, bfloat16 ones if `narrow`."""
    if not narrow:
        return read(builder, address, FLOATS, mask)
    bits = builder.zext(read(builder, address, HALVES, mask), INTS)
    return builder.bitcast(builder.shl(bits, constant(INTS, 16)), FLOATS)
