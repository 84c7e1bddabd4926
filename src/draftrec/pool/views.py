"""Indexes as kernels see them: a row of numbers per index, arrays by their addresses.

One call draws trees for many sequences, each from indexes of two kinds, and passing every array of
every index as an argument would cost more than the drawing. So an index is handed over as int64
`[FIELDS]`: its kind, then address and length of each array. Whoever passes a handle keeps the index
alive and unchanged during the call.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import carray, njit, types  # pyright: ignore[reportPrivateImportUsage]
from numba.core import cgutils
from numba.extending import intrinsic

Handle = npt.NDArray[np.int64]

FIELDS = 20
NOTHING, TRIE, CLOSED = range(3)


class Trie(NamedTuple):
    """See `ngrams.Arrays`."""

    nodes: Any
    table: Any


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


def trie_handle(nodes: Any, table: Any) -> Handle:
    """The handle of a trie; void as soon as the trie is moved to larger arrays."""
    return _handle(TRIE, [nodes, table])


def closed_handle(index: Any) -> Handle:
    """The handle of a closed index, of nothing if it is empty."""
    if not len(index.tokens):
        return no_handle()
    return _handle(CLOSED, [getattr(index, name) for name in Sorted._fields])


def _handle(kind: int, arrays: list[Any]) -> Handle:
    handle = no_handle()
    handle[0] = kind
    for i, array in enumerate(arrays):
        handle[1 + 2 * i : 3 + 2 * i] = array.ctypes.data, len(array)
    return handle


def _as_pointer(typing: Any, address: Any) -> Any:
    """An address as a pointer: numba's typing and code generation for it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


_pointer: Any = intrinsic(_as_pointer)


@njit(cache=True, nogil=True, inline="always")
def _ints(handle, field):
    return carray(_pointer(handle[1 + 2 * field]), (handle[2 + 2 * field],), np.int32)


@njit(cache=True, nogil=True, inline="always")
def _rows(handle, field, width):
    return carray(_pointer(handle[1 + 2 * field]), (handle[2 + 2 * field], width), np.int32)


@njit(cache=True, nogil=True, inline="always")
def trie_of(handle):
    """The arrays of a trie."""
    return Trie(_rows(handle, 0, 8), _ints(handle, 1))


@njit(cache=True, nogil=True, inline="always")
def sorted_of(handle):
    """The arrays of a closed index."""
    shared = carray(_pointer(handle[9]), (handle[10],), np.uint8)
    return Sorted(
        _ints(handle, 0),
        _ints(handle, 1),
        _ints(handle, 2),
        _ints(handle, 3),
        shared,
        _rows(handle, 5, 2),
        _rows(handle, 6, 8),
        _rows(handle, 7, 3),
        _ints(handle, 8),
    )
