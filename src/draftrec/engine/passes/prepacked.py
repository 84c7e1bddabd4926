"""Linear weights laid out once as oneDNN's matrix kernels want them, on CPU.

`F.linear` hands oneDNN a plain weight, which it lays out anew at every call; with the few rows of
a decoding step that costs as much as the product (bfloat16), or another library answers, slower
(float32). `benchmarks/packed_weights.py` measures both. What a row gives does not depend on how
many rows come with it, from two rows on (see `packed.bucket`).

A model that was published in bfloat16 and runs in float32 has weights whose lower halves are zeros:
`HalfLinear` keeps them half as large and widens them on their way, so that the same sums take half
of the memory's time. Libraries have no such product.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import nn
from transformers import PreTrainedModel

from draftrec.engine.passes.row_attention import SUMS, over_rows

# Rows whose inputs stay in a core's cache while weights pass by, and how many of these inputs.
_CACHED_ROWS = 96
_CACHED_INPUTS = 1024


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
        for i in range(0, len(rows), _CACHED_ROWS):
            here = slice(i, i + _CACHED_ROWS)
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
    for begin in range(0, x.shape[1], _CACHED_INPUTS):
        size = min(_CACHED_INPUTS, x.shape[1] - begin)
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
    wide = np.empty((2, min(inputs, _CACHED_INPUTS)), np.float32)
    for begin in range(0, inputs, _CACHED_INPUTS):
        size = min(_CACHED_INPUTS, inputs - begin)
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


# The operators are those of torch's own graph compiler, which packs constant weights with them.
_OPS: Any = torch.ops.mkldnn
# Rows that the layout is chosen for: a small draft tree's.
_ROWS = 8
# A model whose usual float32 weight is smaller runs faster unpacked: a call takes some 10 us more.
_LEAST_USUAL_SIZE = {torch.float32: 512 * 512, torch.bfloat16: 0}
# Layers that read the same rows wherever one module has them all.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class PrepackedLinear(nn.Module):
    """Linear layers that read the same rows, as one: their weights `[out, in]`, one below the other
    and in oneDNN's layout. For inference only."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        self.in_features = linears[0].in_features
        self.out_features = sum(x.out_features for x in linears)
        weight = torch.cat([x.weight.detach() for x in linears])
        self.weight = nn.Parameter(_pack(weight), requires_grad=False)
        self.bias = _biases(linears)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`, in the weight's dtype."""
        return _OPS._linear_pointwise(x, self.weight, self.bias, "none", [], "")


Whole = PrepackedLinear | HalfLinear


class _Shared:
    """A product of layers that read the same rows, until each of them has taken its part."""

    def __init__(self, parts: set[int]) -> None:
        self.parts, self.waiting = parts, set[int]()
        self.rows: torch.Tensor | None = None
        self.found = torch.empty(0)


class Part(nn.Module):
    """Outputs `begin .. end - 1` of `whole`, which is computed when the first of its parts is asked
    about new rows."""

    def __init__(self, whole: Whole, shared: _Shared, begin: int, end: int) -> None:
        super().__init__()
        self.whole, self._shared, self.begin, self.end = whole, shared, begin, end
        self.in_features, self.out_features = whole.in_features, end - begin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`, a view of what the whole gives."""
        shared = self._shared
        if shared.rows is not x or self.begin not in shared.waiting:
            shared.rows, shared.found = x, self.whole(x)
            shared.waiting = shared.parts.copy()
        found = shared.found[..., self.begin : self.end]
        shared.waiting.discard(self.begin)
        if not shared.waiting:  # keep no rows alive
            shared.rows, shared.found = None, torch.empty(0)
        return found


def prepack(model: PreTrainedModel) -> int:
    """Replace the linear layers of a CPU model by packed ones; returns how many there were.

    Queries, keys and values become one product, gates and ups another, with the same bits. Float32
    weights that bfloat16 can hold are kept in that (`HalfLinear`), as models are published. The
    plain weights are freed, unless embeddings share them. Layers of subclasses of `nn.Linear`,
    models without an attention backend (their rows are padded to many different numbers, and
    oneDNN keeps a kernel for each) and machines without the operators are left as they are.
    """
    backend = bool(getattr(model, "_supports_attention_backend", False))
    if model.device.type != "cpu" or not backend or not usable(model.dtype):
        return 0
    found = [
        (parent, names)
        for parent in model.modules()
        for names in _groups({n: c for n, c in parent.named_children() if _packable(c, model)})
    ]
    sizes = sorted(getattr(parent, n).weight.numel() for parent, names in found for n in names)
    if not sizes or sizes[len(sizes) // 2] < _LEAST_USUAL_SIZE[model.dtype]:
        return 0
    for (
        parent,
        names,
    ) in found:  # in turn, so that few plain weights outlive their packing
        _replace(parent, names)
    return len(sizes)


def _packable(module: nn.Module, model: PreTrainedModel) -> bool:
    return type(module) is nn.Linear and module.weight.dtype == model.dtype


def _groups(linears: dict[str, Any]) -> list[tuple[str, ...]]:
    """Names of a module's linear layers, those together that read the same rows."""
    groups = [
        names
        for names in _TOGETHER
        if all(n in linears for n in names)
        and len({(linears[n].in_features, linears[n].bias is None) for n in names}) == 1
    ]
    grouped = {n for names in groups for n in names}
    return [*groups, *((n,) for n in linears if n not in grouped)]


def _replace(parent: nn.Module, names: tuple[str, ...]) -> None:
    linears = [getattr(parent, n) for n in names]
    whole = _halved(linears) or PrepackedLinear(*linears)
    if len(names) == 1:
        setattr(parent, names[0], whole)
        return
    ends = np.cumsum([x.out_features for x in linears]).tolist()
    begins = [0, *ends[:-1]]
    shared = _Shared(set(begins))
    for name, begin, end in zip(names, begins, ends, strict=True):
        setattr(parent, name, Part(whole, shared, begin, end))


def _halved(linears: list[nn.Linear]) -> HalfLinear | None:
    """The layers as one with narrower weights, where they are float32 and lose nothing."""
    if linears[0].weight.dtype != torch.float32:
        return None
    parts = [half(x.weight) for x in linears]
    if any(part is None for part in parts):
        return None
    return HalfLinear(torch.cat([p for p in parts if p is not None]), _biases(linears))


def _biases(linears: Seq[nn.Linear]) -> nn.Parameter | None:
    """One after another; all layers have one, or none."""
    if len(linears) == 1 or linears[0].bias is None:
        return linears[0].bias
    return nn.Parameter(torch.cat([x.bias for x in linears]), requires_grad=False)


def is_prepacked(model: PreTrainedModel) -> bool:
    """Has it layers in oneDNN's layout?"""
    return any(isinstance(m, PrepackedLinear) for m in model.modules())


@cache
def usable(dtype: torch.dtype) -> bool:
    """Has this build of torch the operators, and do they give the right product in `dtype`?"""
    if dtype not in _LEAST_USUAL_SIZE or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16 and not _OPS._is_mkldnn_bf16_supported():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 64, generator=generator).to(dtype) for n in (3, 48))
    try:
        found = _OPS._linear_pointwise(x, _pack(weight), None, "none", [], "")
    except (RuntimeError, AttributeError):  # not built in, or of another signature
        return False
    return torch.allclose(found, F.linear(x, weight), rtol=2e-2, atol=2e-2)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    return _OPS._reorder_linear_weight(weight, _ROWS)
