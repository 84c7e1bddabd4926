"""Ids of items and users: whole numbers, or texts such as ASINs, SKUs and UUIDs.

An array of ids is int64 where every id is a whole number and NumPy's `StringDType` otherwise. A
text that spells a whole number the usual way ("12", not "012") stands for that number, so that
files which hold the same ids as numbers and as texts (CSV, the ids of `draftrec encode`) meet.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import Any, TypeGuard, cast

import numpy as np
import numpy.typing as npt

from draftrec.core import LongArray

#: int64 or `StringDType`, one-dimensional.
Ids = npt.NDArray[Any]
#: One of them.
Id = int | str

TEXT = np.dtypes.StringDType()
_WHOLE = re.compile(r"-?[1-9][0-9]{0,18}|0")
_LOW, _HIGH = -(2**63), 2**63 - 1


def is_text(ids: Ids) -> bool:
    """Whether these are texts."""
    return isinstance(ids.dtype, np.dtypes.StringDType)


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and _LOW <= value <= _HIGH


def plain(value: Id) -> Id:
    """The whole number that a text spells the usual way, anything else as it is."""
    if isinstance(value, str) and _WHOLE.fullmatch(value) and is_whole(int(value)):
        return int(value)
    return value


def ids_array(values: Iterable[Id]) -> Ids:
    """Ids as an array: int64 if all are whole numbers by type, else texts.

    Raises OverflowError for a number beyond 64 bits.
    """
    if isinstance(values, np.ndarray):
        array = cast("Ids", values)
        if is_text(array):
            return array
        if array.dtype.kind in "iu":
            return array.astype(np.int64, copy=False)
    found: Seq[Id] = values.tolist() if isinstance(values, np.ndarray) else list(values)
    if all(isinstance(value, int) for value in found):
        return np.array(found, np.int64)
    return np.array([str(value) for value in found], TEXT)


def as_text(ids: Ids) -> Ids:
    """The same ids, spelt out."""
    return ids if is_text(ids) else ids.astype(TEXT)


def as_whole(ids: Ids) -> Ids | None:
    """The same ids int64, None unless all of them spell whole numbers the usual way."""
    if not is_text(ids):
        return ids
    found = [plain(value) for value in ids.tolist()]
    return ids_array(found) if all(isinstance(value, int) for value in found) else None


def joined_ids(arrays: Iterable[Ids]) -> Ids:
    """All arrays in a row: int64 if all of them are (or there are none), else texts."""
    pieces = list(arrays)
    if any(is_text(piece) for piece in pieces):
        return np.concatenate([as_text(piece) for piece in pieces])
    return np.concatenate([np.empty(0, np.int64), *pieces])


def find_ids(known: Ids, wanted: Ids) -> LongArray:
    """Where each of `wanted` `[k]` lies in `known` `[n]`, ascending and not empty: int64 `[k]`, -1
    for those that it does not have. Numbers and the texts that spell them are the same."""
    missing = None
    if is_text(known):
        wanted = as_text(wanted)
    elif is_text(wanted):
        numbers = [plain(value) for value in wanted.tolist()]
        missing = np.array([isinstance(number, str) for number in numbers], np.bool_)
        wanted = np.array([0 if isinstance(n, str) else n for n in numbers], np.int64)
    places = np.minimum(_before(known, wanted), len(known) - 1)
    found = np.where(known[places] == wanted, places, -1).astype(np.int64)
    if missing is not None:
        found[missing] = -1
    return found


def _before(known: Ids, wanted: Ids) -> LongArray:
    """How many of `known` `[n]`, ascending, come before each of `wanted` `[k]`, of its type: int64
    `[k]`."""
    if is_text(known):
        # Not np.searchsorted: until NumPy 2.5 it takes the bytes of texts that have more than 15 of
        # them from the other array, and finds anything or fails (numpy/numpy#31533).
        return np.array([bisect_left(known, text) for text in wanted.tolist()], np.int64)
    return np.searchsorted(known, wanted)


def number_of(value: Id) -> int:
    """The whole number that an id is or spells; of another text, 63 bits of its SHA-256."""
    number = plain(value)
    if isinstance(number, int):
        return number
    digest = hashlib.sha256(number.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little") >> 1
