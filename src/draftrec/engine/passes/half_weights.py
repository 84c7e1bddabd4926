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
import torch.nn.functional as F
from numba import njit
from torch import nn

from draftrec.engine.passes.row_attention import SUMS, over_rows

# Rows from which products of widened weights, by the library, take less time.
_MANY = 96
# Inputs whose rows stay in a core's cache while weights pass by.
_INPUTS = 1024


class HalfLinear(nn.Module):
    """Linear layers that read the same rows, as one: float32 `[..., in]` to `[..., out]` with
    weights bfloat16 `[out, in]`. For inference only.

    `by_row`: a row gives the same bits whatever rows are beside it.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = bias
        self.by_row = False
        self._half: Any = weight.view(torch.int16).numpy()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        if len(rows) >= _MANY and not self.by_row:
            return F.linear(x, self.weight.float(), self.bias)
        out = torch.empty((len(rows), self.out_features))
        kernel = _one if len(rows) == 1 and not self.by_row else _tiles
        work = self._half.size // 4  # numbers come by faster here than in loops over rows
        over_rows(kernel, self.out_features, work, rows.numpy(), self._half, out.numpy())
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
    """Outputs `first .. last - 1` of a single row, four at a time."""
    row = x[0]
    for o in range(first, last, 4):
        o1, o2, o3 = min(o + 1, last - 1), min(o + 2, last - 1), min(o + 3, last - 1)
        w0, w1, w2, w3 = weight[o], weight[o1], weight[o2], weight[o3]
        a = b = c = d = np.float32(0)
        for k in range(len(row)):
            v = row[k]
            a += v * widened(w0[k])
            b += v * widened(w1[k])
            c += v * widened(w2[k])
            d += v * widened(w3[k])
        out[0, o], out[0, o1], out[0, o2], out[0, o3] = a, b, c, d


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
