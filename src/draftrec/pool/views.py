"""Indexes as kernels see them: a row of numbers per index, arrays by their addresses.

One call draws trees for many sequences, each from indexes of two kinds, and passing every array of
every index as an argument would cost more than the drawing. So an index is handed over as int64
`[FIELDS]`: its kind, then address and length of each array. Whoever passes a handle keeps the index
alive and unchanged during the call.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import (
    njit,
    types,  # pyright: ignore[reportPrivateImportUsage]
)
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from draftrec.core import LongArray

#: Compiles a kernel that borrows its arrays. Numba counts references to arrays like Python, by an
#: atomic instruction at every slice and every call; drawing a tree spent four fifths of its time
#: there. Such a kernel can make views but neither allocate nor return arrays, and is called by one
#: that holds them (`_nrt`, no runtime for references, is the option that Numba's own library uses).
kernel: Any = njit(cache=True, nogil=True, _nrt=False)  # pyright: ignore[reportCallIssue]

#: Compiles a function that is written into its callers: it may return arrays that they borrow.
inlined: Any = njit(cache=True, nogil=True, inline="always")


Handle = LongArray

FIELDS = 24
# Behind the arrays of a closed index: its most frequent tokens, and how many tokens it holds.
_COMMON, _TOTAL = 19, 21
NOTHING, TRIE, CLOSED = range(3)


class Trie(NamedTuple):
    """See `ngrams.Arrays`."""

    nodes: Any
    table: Any
    text: Any


class Sorted(NamedTuple):
    """See `suffixes.ClosedIndex`."""

    vocabulary: Any
    tokens: Any
    order: Any
    starts: Any
    shared: Any
    follows: Any
    states: Any
    children: Any
    blocks: Any


def no_handle() -> Handle:
    """No index at all."""
    return np.zeros(FIELDS, np.int64)


def trie_handle(nodes: Any, table: Any, text: Any) -> Handle:
    """The handle of a trie; void as soon as the trie is moved to larger arrays."""
    return _handle(TRIE, [nodes, table, text])


def closed_handle(index: Any) -> Handle:
    """The handle of a closed index, of nothing if it is empty."""
    if not len(index.tokens):
        return no_handle()
    handle = _handle(CLOSED, [getattr(index, name) for name in (*Sorted._fields, "common")])
    handle[_TOTAL] = len(index.tokens) - index.texts
    return handle


def _handle(kind: int, arrays: list[Any]) -> Handle:
    handle = no_handle()
    handle[0] = kind
    for i, array in enumerate(arrays):
        handle[1 + 2 * i : 3 + 2 * i] = array.ctypes.data, len(array)
    return handle


def _array_maker(dtype: Any, width: int = 0) -> Any:
    """An intrinsic that makes an array of an address and a length, of rows where `width` is given.

    The array is borrowed: it is not counted who refers to it.
    """

    def typed(typing: Any, address: Any, length: Any) -> Any:
        array_type = types.Array(dtype, 2 if width else 1, "C")

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def constant(value: int) -> Any:
                return context.get_constant(types.intp, value)

            size = dtype.bitwidth // 8
            array = context.make_array(array_type)(context, builder)
            pointer = context.get_data_type(dtype).as_pointer()
            shape, strides = [args[1]], [constant(size)]
            if width:
                shape, strides = [args[1], constant(width)], [constant(width * size), *strides]
            populate_array(
                array,
                data=builder.inttoptr(args[0], pointer),
                shape=shape,
                strides=strides,
                itemsize=constant(size),
                meminfo=None,
            )
            return array._getvalue()

        return array_type(types.int64, types.int64), generate

    return intrinsic(typed)


_bytes: Any = _array_maker(types.uint8)
_ints: Any = _array_maker(types.int32)
_pairs: Any = _array_maker(types.int32, 2)
_triples: Any = _array_maker(types.int32, 3)
_octets: Any = _array_maker(types.int32, 8)


# Single arrays of the index in row `s` of `handles`, for loops that need one or two of them: all
# arrays together are more than fits in registers.


@inlined
def nodes_of(handles, s):
    """Of a trie: its nodes."""
    return _octets(handles[s, 1], handles[s, 2])


@inlined
def text_of(handles, s):
    """Of a trie: its text."""
    return _ints(handles[s, 5], handles[s, 6])


@inlined
def shared_of(handles, s):
    """Of a closed index: tokens that neighbours share."""
    return _bytes(handles[s, 9], handles[s, 10])


@inlined
def follows_of(handles, s):
    """Of a closed index: what follows each rank."""
    return _pairs(handles[s, 11], handles[s, 12])


@inlined
def states_of(handles, s):
    """Of a closed index: its states."""
    return _octets(handles[s, 13], handles[s, 14])


@inlined
def children_of(handles, s):
    """Of a closed index: continuations of its states."""
    return _triples(handles[s, 15], handles[s, 16])


@inlined
def blocks_of(handles, s):
    """Of a closed index: a state near every rank."""
    return _ints(handles[s, 17], handles[s, 18])


@inlined
def common_of(handles, s):
    """Of a closed index: its most frequent tokens."""
    return _triples(handles[s, _COMMON], handles[s, _COMMON + 1])


@inlined
def totals_of(handles, s):
    """Of a closed index: how many tokens it holds, and how many different ones."""
    return handles[s, _TOTAL], handles[s, 2]


@inlined
def trie_of(handle):
    """The arrays of a trie."""
    return Trie(
        _octets(handle[1], handle[2]), _ints(handle[3], handle[4]), _ints(handle[5], handle[6])
    )


@inlined
def sorted_of(handle):
    """The arrays of a closed index."""
    return Sorted(
        _ints(handle[1], handle[2]),
        _ints(handle[3], handle[4]),
        _ints(handle[5], handle[6]),
        _ints(handle[7], handle[8]),
        _bytes(handle[9], handle[10]),
        _pairs(handle[11], handle[12]),
        _octets(handle[13], handle[14]),
        _triples(handle[15], handle[16]),
        _ints(handle[17], handle[18]),
    )
