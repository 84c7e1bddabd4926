"""Linear layers that keep bfloat16 weights and compute in float32, on CPU.

A step's products take as long as their weights take to be read. A model that was published in
bfloat16 and runs in float32 has weights whose lower halves are zeros: here they stay half as large
and are widened on their way, so that the same sums take half of the memory's time. Libraries have
no such product; `benchmarks/packed_weights.py` measures it beside theirs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import nn

from draftrec.engine.passes.row_attention import SUMS, over_rows

# Rows whose inputs stay in a core's cache while weights pass by, and how many of these inputs.
_ROWS = 96
_INPUTS = 1024


class HalfLinear(nn.Module):
    """Linear layers that read the same rows, as one: float32 `[..., in]` to `[..., out]` with
    weights bfloat16 `[out, in]`. For inference only.

    A row gives the same bits whatever rows are beside it: `_one` adds up what `_tiles` does, in its
    order. `engine.selfcheck` looks whether that holds on this processor.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = bias
        self._half: Any = weight.view(torch.int16).numpy()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        out = torch.empty((len(rows), self.out_features))
        given, made = rows.numpy(), out.numpy()
        kernel = _one if len(rows) == 1 else _tiles
        work = self._half.size // 4  # numbers come by faster here than in loops over rows
        for i in range(0, len(rows), _ROWS):
            here = slice(i, i + _ROWS)
            over_rows(kernel, self.out_features, work, given[here], self._half, made[here])
        out = out.view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out.add_(self.bias)


def half(weight: torch.Tensor) -> torch.Tensor | None:
    """The float32 weight as bfloat16, or None where that would lose something."""
    found = weight.detach().bfloat16()
    return found if torch.equal(found.float(), weight) else None


@njit(cache=True, nogil=True, inline="always")
def widened(half: Any) -> Any:
    """float32 of a bfloat16 number that is stored as int16."""
    return np.int32(half << 16).view(np.float32)


@njit(cache=True, nogil=True, fastmath=SUMS)
def _one(first: int, last: int, x: Any, weight: Any, out: Any) -> None:
    """Outputs `first .. last - 1` of a single row, eight at a time: as many sums as a tile has, so
    that they are vectorised, and rounded, as a tile's are."""
    for begin in range(0, x.shape[1], _INPUTS):
        size = min(_INPUTS, x.shape[1] - begin)
        row = x[0, begin : begin + size]
        for o in range(first, last, 8):
            o1, o2, o3 = min(o + 1, last - 1), min(o + 2, last - 1), min(o + 3, last - 1)
            o4, o5, o6 = min(o + 4, last - 1), min(o + 5, last - 1), min(o + 6, last - 1)
            o7 = min(o + 7, last - 1)
            w0, w1 = weight[o, begin : begin + size], weight[o1, begin : begin + size]
            w2, w3 = weight[o2, begin : begin + size], weight[o3, begin : begin + size]
            w4, w5 = weight[o4, begin : begin + size], weight[o5, begin : begin + size]
            w6, w7 = weight[o6, begin : begin + size], weight[o7, begin : begin + size]
            a = b = c = d = e = f = g = h = np.float32(0)
            for k in range(size):
                v = row[k]
                a += v * widened(w0[k])
                b += v * widened(w1[k])
                c += v * widened(w2[k])
                d += v * widened(w3[k])
                e += v * widened(w4[k])
                f += v * widened(w5[k])
                g += v * widened(w6[k])
                h += v * widened(w7[k])
            if begin:
                a, b, c, d = a + out[0, o], b + out[0, o1], c + out[0, o2], d + out[0, o3]
                e, f, g, h = e + out[0, o4], f + out[0, o5], g + out[0, o6], h + out[0, o7]
            out[0, o], out[0, o1], out[0, o2], out[0, o3] = a, b, c, d
            out[0, o4], out[0, o5], out[0, o6], out[0, o7] = e, f, g, h


@njit(cache=True, nogil=True, fastmath=SUMS)
def _tiles(first: int, last: int, x: Any, weight: Any, out: Any) -> None:
    """Outputs `first .. last - 1` of all rows, four rows and two outputs at a time; where fewer are
    left, some are computed twice."""
    rows, inputs = x.shape
    wide = np.empty((2, min(inputs, _INPUTS)), np.float32)
    for begin in range(0, inputs, _INPUTS):
        size = min(_INPUTS, inputs - begin)
        for o in range(first, last, 2):
            p = min(o + 1, last - 1)
            w, v = weight[o, begin : begin + size], weight[p, begin : begin + size]
            for k in range(size):
                wide[0, k] = widened(w[k])
            for k in range(size):  # a loop of its own runs many at a time
                wide[1, k] = widened(v[k])
            w0, w1 = wide[0, :size], wide[1, :size]
            for r in range(0, rows, 4):
                r1, r2, r3 = min(r + 1, rows - 1), min(r + 2, rows - 1), min(r + 3, rows - 1)
                x0, x1 = x[r, begin : begin + size], x[r1, begin : begin + size]
                x2, x3 = x[r2, begin : begin + size], x[r3, begin : begin + size]
                a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0)
                for k in range(size):
                    s, t = w0[k], w1[k]
                    a0 += s * x0[k]
                    a1 += s * x1[k]
                    a2 += s * x2[k]
                    a3 += s * x3[k]
                    b0 += t * x0[k]
                    b1 += t * x1[k]
                    b2 += t * x2[k]
                    b3 += t * x3[k]
                if begin:
                    a0, a1, a2, a3 = (
                        a0 + out[r, o],
                        a1 + out[r1, o],
                        a2 + out[r2, o],
                        a3 + out[r3, o],
                    )
                    b0, b1, b2, b3 = (
                        b0 + out[r, p],
                        b1 + out[r1, p],
                        b2 + out[r2, p],
                        b3 + out[r3, p],
                    )
                out[r, o], out[r1, o], out[r2, o], out[r3, o] = a0, a1, a2, a3
                out[r, p], out[r1, p], out[r2, p], out[r3, p] = b0, b1, b2, b3
