"""Linear weights laid out once as a few rows' products want them, on CPU.

`F.linear` hands oneDNN a plain bfloat16 weight, which it lays out anew at every call; with the few
rows of a decoding step that costs as much as the product. Of float32 weights it reads twice what it
needs: most models are published in bfloat16. `benchmarks/packed_weights.py` measures it.

Weights go into the layout of `row_products`, as bfloat16 where that loses nothing, whatever the
model runs in.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch
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
        self.laid = nn.Parameter(held, requires_grad=False)
        self.bias = bias
        more = np.zeros(len(laid) * row_products.WIDTH, np.float32)
        if bias is not None:
            more[: self.out_features] = bias.detach().float().numpy()
        self._laid, self._more = laid, more

    @property
    def weight(self) -> torch.Tensor:
        """A copy `[out, in]`, for whoever asks the layer for it."""
        return row_products.taken_out(self._laid, self.out_features, self.in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.times(stored(x.reshape(-1, self.in_features).contiguous()))
        found = tensor_of(out)[:, : self.out_features]
        return found.reshape(*x.shape[:-1], self.out_features)

    def times(self, rows: Any, room: Any = None) -> Any:
        """`[R, >= out]` of `[R, in]`, both as `stored`, in `room` if that is given."""
        return row_products.products(rows, self._laid, self._more, room)

    @property
    def laid_outputs(self) -> int:
        """Numbers that `times` gives of a row."""
        return len(self._more)


def stored(tensor: torch.Tensor) -> Any:
    """The tensor as an array that shares its memory; bfloat16 as int16."""
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def tensor_of(array: Any) -> torch.Tensor:
    """What `stored` was given."""
    found = torch.from_numpy(array)
    return found.view(torch.bfloat16) if array.dtype == np.int16 else found


def narrowed(weight: torch.Tensor) -> torch.Tensor | None:
    """The weight as bfloat16, or None where that would lose something."""
    found = weight.detach().bfloat16()
    return found if torch.equal(found.to(weight.dtype), weight) else None


# Layers that read the same rows wherever one module has them all.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Shared:
    """A product of layers that read the same rows, until each of them has taken its part."""

    def __init__(self, parts: set[int]) -> None:
        self.parts, self.waiting = parts, set[int]()
        self.rows: torch.Tensor | None = None
        self.found = torch.empty(0)


class Part(nn.Module):
    """Outputs `begin .. end - 1` of `whole`, which is computed when the first of its parts is asked
    about new rows."""

    def __init__(self, whole: RowLinear, shared: _Shared, begin: int, end: int) -> None:
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
    """Replace the linear layers of a CPU model in float32 or bfloat16 by packed ones; returns how
    many there were.

    Queries, keys and values become one product, gates and ups another. The plain weights are freed,
    unless embeddings share them. Layers of subclasses of `nn.Linear` are left as they are.
    """
    if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.bfloat16):
        return 0
    found = [
        (parent, names)
        for parent in model.modules()
        for names in _groups({n: c for n, c in parent.named_children() if _packable(c, model)})
    ]
    shelf = row_products.Shelf()
    for parent, names in found:  # in turn, so that few plain weights outlive their packing
        _replace(parent, names, _by_rows([getattr(parent, n) for n in names], shelf))
    return sum(len(names) for _, names in found)


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


def _replace(parent: nn.Module, names: tuple[str, ...], whole: RowLinear) -> None:
    if len(names) == 1:
        setattr(parent, names[0], whole)
        return
    ends = np.cumsum([getattr(parent, n).out_features for n in names]).tolist()
    begins = [0, *ends[:-1]]
    shared = _Shared(set(begins))
    for name, begin, end in zip(names, begins, ends, strict=True):
        setattr(parent, name, Part(whole, shared, begin, end))


def _by_rows(linears: list[nn.Linear], shelf: row_products.Shelf) -> RowLinear:
    """The layers as one in our own layout, in bfloat16 where all lose nothing by it."""
    weights = [x.weight.detach() for x in linears]
    narrow = [found for w in weights if (found := narrowed(w)) is not None]
    return RowLinear(narrow if len(narrow) == len(weights) else weights, _biases(linears), shelf)


def _biases(linears: Seq[nn.Linear]) -> nn.Parameter | None:
    """One after another; all layers have one, or none."""
    if len(linears) == 1 or linears[0].bias is None:
        return linears[0].bias
    return nn.Parameter(torch.cat([x.bias for x in linears]), requires_grad=False)
