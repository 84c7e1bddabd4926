"""The KV slab: one fixed block of memory, one slot per running sequence.

Keys and values are `[layers, slots, kv_heads, capacity, dim]`. A sequence's rows are columns
`0 .. length-1` of its slot; rows beyond are scratch for the tree under verification. Committing
copies the few accepted rows into place, what a finished sequence leaves is written over, and
nothing is ever concatenated. Where they are asked for, the last hidden states of the rows lie
beside them and go the same ways. The slab knows no lengths: whoever holds the slot does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit

from draftrec.core import IntArray, LongArray


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one cached row of one layer looks like; equal for all layers."""

    layers: int
    kv_heads: int
    key_dim: int
    value_dim: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        width = self.key_dim + self.value_dim
        return self.layers * self.kv_heads * width * dtype.itemsize


class KVSlab:
    """Key and value memory for `slots` sequences of at most `capacity` rows.

    `features` `[slots, capacity + 1, hidden]`: the last hidden state of each row as the model's
    output layer reads it, in its dtype; None where nobody asked (`keep_features`). The last column
    takes those of rows that are no one's, whose column is -1.

    `held`: whose rows each slot begins with, as far as somebody has noted it (`Target.hold`).

    `passes`: those that were frozen over this memory (`passes.frozen`), which go when it goes: of
    each size a buffer for the inputs, and what gives the logits.
    """

    def __init__(
        self, shape: KVShape, slots: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.slots, self.capacity = slots, capacity
        self.passes: dict[tuple[int, int], tuple[torch.Tensor, Callable[[], torch.Tensor]]] = {}
        rows = (shape.layers, slots, shape.kv_heads, capacity)
        self.keys = _zeros((*rows, shape.key_dim), device, dtype)
        self.values = _zeros((*rows, shape.value_dim), device, dtype)
        self.features: torch.Tensor | None = None
        self.held = Beginnings(slots)

    def keep_features(self, hidden: int, dtype: torch.dtype) -> None:
        """Make room for the last hidden states of width `hidden`."""
        size = self.slots, self.capacity + 1, hidden
        self.features = torch.zeros(size, device=self.keys.device, dtype=dtype)

    def move_rows(self, moves: Seq[tuple[int, int, int]]) -> None:
        """Copy rows within their slots, in every layer at once: slot, from column, to column.

        Sources are read before any target is written.
        """
        if not moves:
            return
        slot, src, dst = torch.tensor(moves).T.contiguous().to(self.keys.device)
        for rows in (self.keys, self.values):
            rows[:, slot, :, dst] = rows[:, slot, :, src]
        if self.features is not None:
            self.features[slot, dst] = self.features[slot, src]

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Give slot `target` the first `length` rows of slot `source`."""
        for rows in (self.keys, self.values):
            rows[:, target, :, :length] = rows[:, source, :, :length]
        if self.features is not None:
            self.features[target, :length] = self.features[source, :length]


class Beginnings:
    """The token ids that each of some slots begins with, and how much of that others share."""

    def __init__(self, slots: int) -> None:
        self._tokens = np.empty((slots, 0), np.int32)
        self._lengths = np.zeros(slots, np.int64)

    def hold(self, slot: int, tokens: IntArray) -> None:
        """Slot `slot` begins with `tokens` int32 `[n]`, and nothing is known of what is behind."""
        self._lengths[slot] = 0
        self.go_on(slot, tokens)

    def go_on(self, slot: int, tokens: IntArray) -> None:
        """The same, of `tokens` that begin with what is held: the rest is written, if there is
        any."""
        n, known, (slots, room) = len(tokens), self._lengths[slot], self._tokens.shape
        if n > room:
            more = np.empty((slots, max(n, 2 * room) - room), np.int32)
            self._tokens = np.concatenate([self._tokens, more], axis=1)
        self._tokens[slot, known:n] = tokens[known:]
        self._lengths[slot] = n

    def tokens(self, slot: int) -> IntArray:
        """What the slot is known to begin with, int32 `[n]`."""
        return self._tokens[slot, : self._lengths[slot]]

    def cut(self, slot: int, length: int) -> None:
        """At most the first `length` tokens of the slot are still true."""
        if self._lengths[slot] > length:
            self._lengths[slot] = length

    def shared(self, tokens: IntArray, first: int = 0, last: int | None = None) -> LongArray:
        """int64 `[last - first]`: how many first tokens each of these slots, all if none are said,
        has in common with `tokens` int32 `[n]`."""
        held, lengths = self._tokens[first:last], self._lengths[first:last]
        found = np.empty(len(lengths), np.int64)
        _common(held, lengths, np.ascontiguousarray(tokens, np.int32), found)
        return found


# Tokens that are compared at once: whether they differ is asked of all of them together.
_TOGETHER = 16


@njit(cache=True, nogil=True)
def _common(held: Any, lengths: Any, tokens: Any, found: Any) -> None:
    """For every row of `held`, of which `lengths` count, its common prefix with `tokens`."""
    for slot in range(len(lengths)):
        most, same = min(lengths[slot], len(tokens)), 0
        while same + _TOGETHER <= most:
            differ = np.int32(0)
            for i in range(same, same + _TOGETHER):
                differ |= held[slot, i] ^ tokens[i]
            if differ:
                break
            same += _TOGETHER
        while same < most and held[slot, same] == tokens[same]:
            same += 1
        found[slot] = same


# Bytes of a cache line: rows that begin with one are read in half the time.
_LINE = 64


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """On a CPU in memory that numpy asks huge pages for, which is read faster."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    size = math.prod(shape) * dtype.itemsize
    room = np.zeros(size + _LINE, np.uint8)
    begin = -room.ctypes.data % _LINE
    return torch.from_numpy(room[begin : begin + size]).view(dtype).view(shape)
