"""Linear weights laid out once as a few rows' products want them, on CPU.

`F.linear` hands oneDNN a plain weight, which it lays out anew at every call; with the few rows of
a decoding step that costs as much as the product (bfloat16), or another library answers, slower
(float32). `benchmarks/packed_weights.py` measures it.

Weights that bfloat16 holds go into the layout of `row_products`, whatever the model runs in: one
that was published in bfloat16 and runs in float32 has weights whose lower halves are zeros, and
takes half of the memory's time for the same sums. Other float32 weights go into oneDNN's, and so do
bfloat16 ones where the processor has matrix tiles (AMX), which only oneDNN uses. There, what a row
gives does not depend on how many rows come with it from two rows on (see `packed.bucket`).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from draftrec.engine.passes import row_products


class RowLinear(nn.Module):
    """Linear layers that read the same rows, as one: their weights `[out, in]`, float32 or
    bfloat16, one below the other, in the layout of `row_products`. float32 or bfloat16 `[..., in]`
    to `[..., out]`. For inference only.

    A row gives the same bits whatever rows are beside it.
    """

    def __init__(
        self,
        weights: Seq[torch.Tensor],
        bias: torch.Tensor | None = None,
        shelf: row_products.Shelf | None = None,
    ) -> None:
        super().__init__()
        self.out_features = sum(len(w) for w in weights)
        self.in_features = weights[0].shape[1]
        laid = row_products.lay_out(weights, shelf or row_products.Shelf())
        held = torch.from_numpy(laid).view(weights[0].dtype)
        self.weight = nn.Parameter(held, requires_grad=False)
        self.bias = bias
        more = np.zeros(len(laid) * row_products.WIDTH, np.float32)
        if bias is not None:
            more[: self.out_features] = bias.detach().float().numpy()
        self._laid, self._more = laid, more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        out = row_products.multiply(rows, self._laid, self._more, self.out_features)
        return out.view(*x.shape[:-1], self.out_features)


def narrowed(weight: torch.Tensor) -> torch.Tensor | None:
    """The weight as bfloat16, or None where that would lose something."""
    found = weight.detach().bfloat16()
    return found if torch.equal(found.to(weight.dtype), weight) else None


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


Whole = PrepackedLinear | RowLinear


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
    weights that bfloat16 can hold are kept in that (`RowLinear`), as models are published. The
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
    shelf = row_products.Shelf()
    for parent, names in found:  # in turn, so that few plain weights outlive their packing
        _replace(parent, names, shelf)
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


def _replace(parent: nn.Module, names: tuple[str, ...], shelf: row_products.Shelf) -> None:
    linears = [getattr(parent, n) for n in names]
    whole = _by_rows(linears, shelf) or PrepackedLinear(*linears)
    if len(names) == 1:
        setattr(parent, names[0], whole)
        return
    ends = np.cumsum([x.out_features for x in linears]).tolist()
    begins = [0, *ends[:-1]]
    shared = _Shared(set(begins))
    for name, begin, end in zip(names, begins, ends, strict=True):
        setattr(parent, name, Part(whole, shared, begin, end))


def _by_rows(linears: list[nn.Linear], shelf: row_products.Shelf) -> RowLinear | None:
    """The layers as one in our own layout, where that loses nothing and is the faster one."""
    if linears[0].weight.dtype == torch.bfloat16 and has_tiles():
        return None
    parts = [narrowed(x.weight) for x in linears]
    if any(part is None for part in parts):
        return None
    return RowLinear([p for p in parts if p is not None], _biases(linears), shelf)


@cache
def has_tiles() -> bool:
    """Has the processor matrix tiles for bfloat16 (AMX)?"""
    return torch.cpu._is_amx_tile_supported()


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
