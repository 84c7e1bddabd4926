"""The KV slab: one fixed block of memory, one slot per running sequence.

Keys and values are `[layers, slots, kv_heads, capacity, dim]`, a block for all layers whose rows
are alike: one in most models, two where some layers have other heads than the rest (Gemma 4). A
sequence's rows are columns `0 .. length-1` of its slot; rows beyond are scratch for the tree under
verification. Committing copies the few accepted rows into place, what a finished sequence leaves is
written over, and nothing is ever concatenated. Where they are asked for, the last hidden states of
the rows lie beside them and go the same ways. The slab knows no lengths: whoever holds the slot
does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from draftrec.engine.prefixes import SlotPrefixes


class RowShape(NamedTuple):
    """What one cached row of one layer looks like."""

    kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class KVShape:
    """What is cached of a token: a row of each layer."""

    layers: tuple[RowShape, ...]

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        width = sum(row.kv_heads * (row.key_dim + row.value_dim) for row in self.layers)
        return width * dtype.itemsize


class KVBlock(NamedTuple):
    """Keys and values of all layers whose rows are alike."""

    keys: torch.Tensor
    values: torch.Tensor


class KVSlab:
    """Key and value memory for `slots` sequences of at most `capacity` rows.

    `blocks`: keys and values by shape of row, in `memory` one after another; `places`: the block
    of each layer, and which in it; `keys`, `values`: views `[slots, kv_heads, capacity, dim]` of
    it, by layer.

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
        self.device = device
        self.blocks: list[KVBlock] = []
        self.places = [(0, 0)] * len(shape.layers)
        for block, row in enumerate(dict.fromkeys(shape.layers)):
            layers = [i for i, other in enumerate(shape.layers) if other == row]
            size = len(layers), slots, row.kv_heads, capacity
            keys, values = (
                _zeros((*size, dim), device, dtype) for dim in (row.key_dim, row.value_dim)
            )
            self.blocks.append(KVBlock(keys, values))
            for among, layer in enumerate(layers):
                self.places[layer] = block, among
        self.memory = [rows for block in self.blocks for rows in block]
        self.keys = [self.blocks[block].keys[i] for block, i in self.places]
        self.values = [self.blocks[block].values[i] for block, i in self.places]
        self.features: torch.Tensor | None = None
        self.held = SlotPrefixes(slots)

    def keep_features(self, hidden: int, dtype: torch.dtype) -> None:
        """Make room for the last hidden states of width `hidden`."""
        size = self.slots, self.capacity + 1, hidden
        self.features = torch.zeros(size, device=self.device, dtype=dtype)

    def move_rows(self, moves: Seq[tuple[int, int, int]]) -> None:
        """Copy rows within their slots, in every layer at once: slot, from column, to column.

        Sources are read before any target is written.
        """
        if not moves:
            return
        slot, src, dst = torch.tensor(moves).T.contiguous().to(self.device)
        for rows in self.memory:
            rows[:, slot, :, dst] = rows[:, slot, :, src]
        if self.features is not None:
            self.features[slot, dst] = self.features[slot, src]

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Give slot `target` the first `length` rows of slot `source`."""
        for rows in self.memory:
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
