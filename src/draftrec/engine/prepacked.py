"""Linear weights laid out once as oneDNN's matrix kernels want them, on CPU.

`F.linear` hands oneDNN a plain weight, which it lays out anew at every call; with the few rows of
a decoding step that costs as much as the product (bfloat16), or another library answers, slower
(float32). `benchmarks/packed_weights.py` measures both. What a row gives does not depend on how
many rows come with it, from two rows on (see `target.bucket`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

# The operators are those of torch's own graph compiler, which packs constant weights with them.
_OPS: Any = torch.ops.mkldnn
# Rows that the layout is chosen for: a small draft tree's.
_ROWS = 8
# A model whose usual float32 weight is smaller runs faster unpacked: a call takes some 10 us more.
_LEAST_USUAL_SIZE = {torch.float32: 512 * 512, torch.bfloat16: 0}


class PrepackedLinear(nn.Module):
    """A linear layer whose weight `[out, in]` is in oneDNN's layout: for inference only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(_pack(linear.weight.detach()), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`, in the weight's dtype."""
        return _OPS._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def prepack(model: PreTrainedModel) -> int:
    """Replace the linear layers of a CPU model by packed ones; returns how many.

    The plain weights are freed, unless embeddings share them. Layers of subclasses of `nn.Linear`,
    models without an attention backend (their rows are padded to many different numbers, and
    oneDNN keeps a kernel for each) and machines without the operators are left as they are.
    """
    backend = bool(getattr(model, "_supports_attention_backend", False))
    if model.device.type != "cpu" or not backend or not usable(model.dtype):
        return 0
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.dtype == model.dtype
    ]
    sizes = sorted(child.weight.numel() for _, _, child in found)
    if not sizes or sizes[len(sizes) // 2] < _LEAST_USUAL_SIZE[model.dtype]:
        return 0
    while found:  # from the list as well, so that one plain weight at a time outlives its packing
        parent, name, child = found.pop()
        setattr(parent, name, PrepackedLinear(child))
    return len(sizes)


def is_prepacked(model: PreTrainedModel) -> bool:
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
