"""Attention of packed rows over the KV slab, registered with transformers as `draftrec_packed`.

All new rows of all sequences run through the model as one row of length S, so linear layers see no
padding. Here, in each layer, new keys and values go to the slab and every query attends to the
columns of its own slot that it sees. Sequences are attended to one by one, or as one padded block,
whichever touches less memory; the plan is made once per forward pass and serves every layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from draftrec.engine.kv_cache import KVBlock, KVSlab
from draftrec.engine.masks import Reach
from draftrec.engine.packing import Block, Packed
from draftrec.engine.passes.tree_attention import tree_attention
from draftrec.errors import UnsupportedModelError

NAME = "draftrec_packed"

_LAUNCH_COST = {"cpu": 6_000, "cuda": 2_000_000}
_STEADY = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# What attention functions may be passed and mean nothing here.
_HARMLESS = {
    "position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states",
    "output_router_logits", "return_dict", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q",
    "max_length_k", "is_causal", "head_mask", "position_embeddings",
}  # fmt: skip


class PlanLostError(UnsupportedModelError):
    """The model's attention modules do not pass on what they are given."""


@dataclass(slots=True)
class Plan:
    """Where new rows go in the slab and what they see; made once, read by every layer."""

    packed: Packed
    slab: KVSlab
    reaches: Mapping[int, Reach]

    @property
    def blocks(self) -> list[Block]:
        return self.packed.blocks

    def reach(self, layer: int, window: int | None, mask: Any) -> Reach:
        """What layer `layer` sees. What it asked for at load counts, not what it says now: to the
        model's own attention, a window beside a mask means nothing."""
        if mask is not None:
            raise UnsupportedModelError("it brings a mask of its own")
        return self.reaches[layer]

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store keys and values `[kv_heads, S, dim]` of one layer."""
        key_rows, value_rows = self.slab.keys[layer], self.slab.values[layer]
        if len(self.packed.spans) <= 4:
            for slot, first, last, column in self.packed.spans:
                end = column + last - first
                key_rows[slot, :, column:end] = keys[:, first:last]
                value_rows[slot, :, column:end] = values[:, first:last]
            return
        rows, dtype = self.packed.rows, key_rows.dtype
        at = self.packed.slots[:rows], slice(None), self.packed.columns[:rows]
        key_rows[at] = keys[:, :rows].transpose(0, 1).to(dtype)
        value_rows[at] = values[:, :rows].transpose(0, 1).to(dtype)


class RowPlan(NamedTuple):
    """The same where every row attends by itself, whatever else is in the pass.

    `blocks`, `places`: the slab's; `slots`, `columns` int64 `[S]`: where new rows go, column -1 for
    nowhere; `sight` int64 `[S, 2 + words]` by layer: what they see (`Packed.seen`).
    """

    blocks: Seq[KVBlock]
    places: Seq[tuple[int, int]]
    slots: torch.Tensor
    columns: torch.Tensor
    sight: Seq[torch.Tensor]


def launch_cost(device: torch.device) -> int:
    """What a further block costs, in scores (one query against one key of one sequence)."""
    return _LAUNCH_COST.get(device.type, _LAUNCH_COST["cuda"])


def steady_kernels(device: torch.device) -> AbstractContextManager[Any]:
    """Without cuDNN among the kernels of scaled dot-product attention, where torch (from 2.11 on)
    asks it first on recent GPUs: it builds a plan of tens of milliseconds for every new shape."""
    return sdpa_kernel(_STEADY) if device.type == "cuda" else nullcontext()


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls in every layer.

    `query` `[1, heads, S, dim]`, `key` and `value` `[1, kv_heads, S, dim]`; returns
    `[1, S, heads, dim]`. Raises UnsupportedModelError for options whose meaning is unknown here.
    """
    plan: Plan | RowPlan | None = options.pop("draftrec_plan", None)
    window, softcap, sinks = (options.pop(k, None) for k in ("sliding_window", "softcap", "s_aux"))
    scaling = options.pop("scaling", None)
    options.pop("dropout", None)
    unknown = {k for k, v in options.items() if v is not None} - _HARMLESS
    if unknown:
        what = ", ".join(sorted(unknown))
        raise UnsupportedModelError(f"{type(module).__name__} asks for {what} in its attention")
    if plan is None:
        raise PlanLostError(f"{type(module).__name__} keeps options from its attention function")
    layer = int(getattr(module, "layer_idx"))  # noqa: B009
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(plan, RowPlan):
        if attention_mask is not None:
            raise UnsupportedModelError("it brings a mask of its own")
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        block, among = plan.places[layer]
        place = *plan.blocks[block], among, plan.slots, plan.columns
        return tree_attention(q, k, v, *place, plan.sight[layer], scale, softcap, sinks)[None], None
    plan.reach(layer, window, attention_mask)
    plan.write(layer, key[0], value[0])
    asked = query[0].to(plan.slab.keys[layer].dtype).transpose(0, 1)
    found = attend(plan, layer, asked, scale=scale, softcap=softcap, sinks=sinks)
    return found.to(query.dtype)[None], None


def attend(
    plan: Plan,
    layer: int,
    query: torch.Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`[P, heads, dim]` of queries `[P, heads, dim]`, P >= S, in the slab's dtype, to the keys and
    values of a layer, those of the pass among them."""
    reach, keys, values = plan.reaches[layer], plan.slab.keys[layer], plan.slab.values[layer]
    rows, heads, dim = query.shape
    kv_heads = keys.shape[1]
    repeat = heads // kv_heads
    out = query.new_zeros((rows, heads, values.shape[-1]))
    wide = query.transpose(0, 1)
    for block in plan.blocks:
        mask = block.mask(reach, repeat, keys.dtype)
        n = block.last - block.first
        q = wide[:, block.rows].view(kv_heads, repeat, n, block.width, dim).permute(2, 0, 1, 3, 4)
        q = q.reshape(n, kv_heads, repeat * block.width, dim)
        k = keys[block.first : block.last, :, : block.length]
        v = values[block.first : block.last, :, : block.length]
        if softcap is None and sinks is None:
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        else:
            found = _explicit(q, k, v, mask, scale, softcap, sinks)
        found = found.view(n, kv_heads, repeat, block.width, -1).permute(0, 3, 1, 2, 4)
        flat = found.reshape(n * block.width, heads, -1).to(out.dtype)
        out[block.place] = flat if block.back is None else flat[block.back]
    return out


def _explicit(  # noqa: PLR0913
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention written out, for soft-capped scores (Gemma 2) and attention sinks (GPT-OSS)."""
    scores = (q @ k.transpose(-1, -2)).float() * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        kv_heads, rows = q.shape[1], q.shape[2]
        column = (
            sinks.float()
            .view(1, kv_heads, -1, 1)
            .repeat_interleave(rows // (sinks.numel() // kv_heads), dim=2)
        )
        scores = torch.cat([scores, column.expand(len(scores), -1, -1, -1)], dim=-1)
        return (scores.softmax(-1)[..., :-1].to(v.dtype)) @ v
    return scores.softmax(-1).to(v.dtype) @ v
