"""Attention of every row by itself, as one operator that a graph compiler takes as it is.

`draftrec::tree_attention` stores what a pass computes anew and lets each row attend to the columns
that its record names, in the order of their positions: the same numbers in the same order whether
tokens came as drafts, in a prompt or one at a time, alone or in a batch. No shape follows the
lengths of texts, so that one graph serves every step. On CPU it is compiled code
(`row_attention`), on GPUs Triton kernels (`tree_kernels`), elsewhere written out in torch.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from subprocess import SubprocessError
from typing import Any

import torch

from draftrec.engine.packing import visible
from draftrec.engine.passes.row_attention import attend, store


def written_out(  # noqa: PLR0913
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layer: int,
    slots: torch.Tensor,
    columns: torch.Tensor,
    sight: torch.Tensor,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """`[S, heads, value_dim]` of `query` `[S, heads, key_dim]`, in its dtype.

    Writes `key` `[S, kv_heads, key_dim]` and `value` `[S, kv_heads, value_dim]` to the places
    `slots`, `columns` int64 `[S]` of layer `layer` of the slab, `keys` and `values` `[layers,
    slots, kv_heads, capacity, dim]`; a row without a place has column -1. Then row `i` attends to
    what `sight[i]`, int64 `[S, 2 + words]` as in `packing.Block.sight`, shows of its slot; a row
    that sees nothing gets zeros. Heads share keys in groups. `softcap`: scores are its tanh (Gemma
    2). `sinks` `[heads]`: a further score that takes its share and gives nothing (GPT-OSS).

    The slab comes whole: of a view of it at a place that follows from sizes known at run time only,
    torch 2.13's compiler makes one of its beginning.
    """
    keys, values = keys[layer], values[layer]
    placed = columns >= 0
    at = slots[placed], slice(None), columns[placed]
    keys[at], values[at] = key[placed].to(keys.dtype), value[placed].to(values.dtype)
    shared = query.shape[1] // keys.shape[1]
    q = query.to(keys.dtype).float().unflatten(1, (-1, shared))
    k, v = keys[slots].float(), values[slots].float()
    scores = torch.einsum("sgrd,sgcd->sgrc", q, k) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    seen = visible(sight, keys.shape[2], 64 * (sight.shape[1] - 2))
    scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    if sinks is not None:
        rest = sinks.float().view(1, -1, shared, 1).expand(len(scores), -1, -1, -1)
        scores = torch.cat([scores, rest], -1)
    shares = scores.softmax(-1)[..., : keys.shape[2]].nan_to_num()
    v = v.masked_fill(~seen[:, None, :, None], 0.0)
    return torch.einsum("sgrc,sgcd->sgrd", shares, v).flatten(1, 2).to(query.dtype)


# Not by `torch.library.custom_op`, which adds to every call as much as the work on a row takes.
_NAME = "draftrec::tree_attention"
_SCHEMA = torch.library.infer_schema(written_out, mutates_args=("keys", "values"))
torch.library.define(_NAME, _SCHEMA)
torch.library.impl(_NAME, "default")(written_out)


@torch.library.register_fake(_NAME)
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *_: object,
) -> torch.Tensor:
    return query.new_empty((query.shape[0], query.shape[1], values.shape[-1]))


@torch.library.impl(_NAME, "cpu")
def _on_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *rest: Any,
) -> torch.Tensor:
    if keys.dtype != torch.float32:
        return written_out(query, key, value, keys, values, *rest)
    layer, slots, columns, sight, scale, softcap, sinks = rest
    keys, values = keys[layer], values[layer]
    store(key, keys, slots, columns)
    store(value, values, slots, columns)
    seen = slots, sight
    found = attend(query.float(), keys, values, seen, scale=scale, softcap=softcap, sinks=sinks)
    return found.to(query.dtype)


@torch.library.impl(_NAME, "cuda")
def _on_cuda(query: torch.Tensor, *args: object) -> torch.Tensor:
    if not has_kernels():
        return written_out(query, *args)  # type: ignore[arg-type]
    from triton.errors import TritonError

    from draftrec.engine.passes.tree_kernels import write_and_attend

    try:
        with torch.cuda.device(query.device):
            return write_and_attend(query, *args)  # type: ignore[arg-type]
    except (TritonError, OSError, SubprocessError) as error:  # it runs a compiler of the system's
        raise RuntimeError(f"no kernel of tree attention: {error}") from error


tree_attention: Any = torch.ops.draftrec.tree_attention.default


@cache
def has_kernels() -> bool:
    """Is there Triton, without which a GPU has no kernel for it?"""
    return find_spec("triton") is not None
