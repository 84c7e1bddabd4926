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

import numpy as np
import torch

from draftrec.engine.beginnings import Beginnings


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
