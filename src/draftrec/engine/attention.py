"""Attention of packed rows over the KV slab, registered with transformers as `draftrec_packed`.

All new rows of all sequences run through the model as one row of length S, so linear layers see no
padding. Here, in each layer, new keys and values go to the slab and every query attends to the
committed rows of its own slot plus the new rows its visibility allows. Sequences are attended to
one by one, or as one padded block, whichever touches less memory; the plan is made once per forward
pass and serves every layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from draftrec.engine.kv_cache import KVSlab
from draftrec.engine.masks import FULL, Reach
from draftrec.engine.packing import Packed, key_positions, visibility
from draftrec.errors import UnsupportedModelError

NAME = "draftrec_packed"

# What decides about blocks, in scores (one query against one key of one sequence): a further call,
# and bringing in one key with its value, which all queries of its sequence then share.
_LAUNCH_COST = {"cpu": 6_000, "cuda": 2_000_000}
_KEY_COST = 16
# What attention functions may be passed and mean nothing here.
_HARMLESS = {
    "position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states",
    "output_router_logits", "return_dict", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q",
    "max_length_k", "is_causal", "head_mask", "position_embeddings",
}  # fmt: skip


class PlanLostError(UnsupportedModelError):
    """The model's attention modules do not pass on what they are given."""


@dataclass(slots=True)
class Block:
    """Queries attended to in one call: slots `first .. last-1`, `width` rows each, `length` keys.

    Columns before `start` int64 `[slots]` are seen by all, of those from there on `seen` bool
    `[slots, width, span]` tells; `own_positions` and `key_positions` int64 are of rows and of those
    columns. `rows` int64 `[slots * width]` gathers queries into the block (None: they already lie
    so); `back` picks the real rows out of the result, `place` says where they go.
    """

    first: int
    last: int
    width: int
    length: int
    start: torch.Tensor
    seen: torch.Tensor
    own_positions: torch.Tensor
    key_positions: torch.Tensor
    rows: torch.Tensor | None
    back: torch.Tensor | None
    place: slice | torch.Tensor
    masks: dict[tuple[Reach, int, torch.dtype], torch.Tensor | None] = field(default_factory=dict)

    def mask(self, reach: Reach, repeat: int, dtype: torch.dtype) -> torch.Tensor | None:
        """Additive `[slots, 1, repeat * width, length]`, or None where everything is visible."""
        key = (reach, repeat, dtype)
        if key not in self.masks:
            self.masks[key] = self._build(reach, repeat, dtype)
        return self.masks[key]

    def _build(self, reach: Reach, repeat: int, dtype: torch.dtype) -> torch.Tensor | None:
        columns = torch.arange(self.length, device=self.start.device)
        own = columns[None, :] - self.start[:, None]  # column as a new row of its segment
        slots, span = len(self.start), self.seen.shape[2]
        if span == 1 and slots == 1 and reach.within(self.length):
            return None
        place = own.clamp(0, span - 1)[:, None, :].expand(slots, self.width, self.length)
        fresh = torch.gather(self.seen, 2, place) & (own < span)[:, None, :]
        visible = (own < 0)[:, None, :] | fresh
        if reach != FULL:
            theirs = torch.where(
                own < 0, columns[None, :], torch.gather(self.key_positions, 1, place[:, 0])
            )[:, None, :]
            queries = self.own_positions[:, :, None]
            if reach.window is not None:
                visible &= theirs > queries - reach.window
            if reach.chunk is not None:
                visible &= theirs // reach.chunk == queries // reach.chunk
        mask = torch.zeros(visible.shape, device=visible.device, dtype=dtype)
        mask.masked_fill_(~visible, float("-inf"))
        return mask.repeat(1, repeat, 1)[:, None]


@dataclass(slots=True)
class Plan:
    """Where new rows go in the slab and which blocks attend; made once, read by every layer."""

    slab: KVSlab
    slots: torch.Tensor  # int64 [S]
    columns: torch.Tensor  # int64 [S]
    spans: list[tuple[int, int, int, int]]  # slot, first row, last row, first column
    blocks: list[Block]
    reaches: Mapping[int, Reach]

    def reach(self, layer: int, window: int | None, mask: Any) -> Reach:
        """What layer `layer` sees. What it asked for at load counts, not what it says now: to the
        model's own attention, a window beside a mask means nothing."""
        if mask is not None:
            raise UnsupportedModelError("it brings a mask of its own")
        return self.reaches[layer]

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store keys and values `[kv_heads, S, dim]` of one layer."""
        key_rows, value_rows = self.slab.keys[layer], self.slab.values[layer]
        if len(self.spans) <= 4:
            for slot, first, last, column in self.spans:
                end = column + last - first
                key_rows[slot, :, column:end] = keys[:, first:last]
                value_rows[slot, :, column:end] = values[:, first:last]
            return
        rows = len(self.slots)
        dtype = key_rows.dtype
        key_rows[self.slots, :, self.columns] = keys[:, :rows].transpose(0, 1).to(dtype)
        value_rows[self.slots, :, self.columns] = values[:, :rows].transpose(0, 1).to(dtype)


def make_plan(packed: Packed, slab: KVSlab, reaches: Mapping[int, Reach]) -> Plan:
    """Choose blocks and move the index arrays to the slab's device. `reaches` by layer."""
    device = slab.keys.device
    spans = [
        (s.slot, int(a), int(b), s.column)
        for s, a, b in zip(packed.segments, packed.row_start, packed.row_start[1:], strict=False)
    ]
    slots = np.concatenate([np.full(b - a, slot) for slot, a, b, _ in spans])
    columns = np.concatenate([np.arange(c, c + b - a) for _, a, b, c in spans])
    groups = _group(spans, _LAUNCH_COST.get(device.type, _LAUNCH_COST["cuda"]))
    return Plan(
        slab,
        torch.as_tensor(slots, device=device),
        torch.as_tensor(columns, device=device),
        spans,
        [_block(packed, [spans[i] for i in g], g, device) for g in groups],
        reaches,
    )


def _group(spans: list[tuple[int, int, int, int]], launch: int) -> list[list[int]]:
    """Segments that share a block: all of at most some width together, each wider one alone.

    The width is the one that costs least, padding included.
    """
    widths = [b - a for _, a, b, _ in spans]

    def cost(members: Seq[int]) -> int:
        slots = [spans[i][0] for i in members]
        length = max(spans[i][3] + widths[i] for i in members)
        width = max(widths[i] for i in members)
        return (max(slots) - min(slots) + 1) * length * (_KEY_COST + width) + launch

    every = range(len(spans))
    alone = [cost([i]) for i in every]
    best, groups = sum(alone), [[i] for i in every]
    for limit in sorted(set(widths), reverse=True):
        narrow = [i for i in every if widths[i] <= limit]
        wide = [i for i in every if widths[i] > limit]
        total = cost(narrow) + sum(alone[i] for i in wide)
        if total < best:
            best, groups = total, [narrow, *([i] for i in wide)]
    return groups


def _block(
    packed: Packed,
    spans: list[tuple[int, int, int, int]],
    members: Seq[int],
    device: torch.device,
) -> Block:
    """Arrays of one block. Slots in between that run no segment see their own first row only."""
    slots, begins, ends, columns = np.array(spans).T
    first, last = int(slots.min()), int(slots.max()) + 1
    width = int((ends - begins).max())
    length = int((columns + ends - begins).max())
    found = visibility(packed, members, width)
    start = np.zeros(last - first, np.int64)
    seen = np.zeros((last - first, width, found.shape[2]), np.bool_)
    rows = np.zeros((last - first, width), np.int64)
    positions = np.zeros((last - first, width), np.int64)
    keys = np.zeros((last - first, found.shape[2]), np.int64)
    real = np.zeros((last - first, width), np.bool_)
    places = slots - first
    start[places] = [packed.segments[b].start for b in members]
    seen[places] = found
    if found.shape[2] == 1:
        rows[places, 0], positions[places, 0] = begins, packed.positions[begins]
        keys[places, 0], real[places, 0] = packed.positions[begins], True
    for b, (slot, begin, end, _) in zip(members, spans, strict=True) if found.shape[2] > 1 else ():
        rows[slot - first, : end - begin] = np.arange(begin, end)
        positions[slot - first, : end - begin] = packed.positions[begin:end]
        real[slot - first, : end - begin] = True
        theirs = key_positions(packed, b)
        keys[slot - first, : len(theirs)] = theirs
    seen[..., 0] |= ~seen.any(-1)

    def put(x: Any) -> torch.Tensor:
        return torch.as_tensor(x, device=device)

    alone = len(members) == 1
    return Block(
        first, last, width, length, put(start), put(seen), put(positions), put(keys),
        None if alone else put(rows.reshape(-1)),
        None if alone or real.all() else put(np.flatnonzero(real.reshape(-1))),
        slice(int(begins[0]), int(ends[0])) if alone else put(rows[real]),
    )  # fmt: skip


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
    plan: Plan | None = options.pop("draftrec_plan", None)
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
    reach = plan.reach(layer, window, attention_mask)
    plan.write(layer, key[0], value[0])
    heads, _, dim = query.shape[1:]
    kv_heads = key.shape[1]
    keys, values = plan.slab.keys[layer], plan.slab.values[layer]
    wide = query[0].to(keys.dtype)
    out = query.new_zeros((query.shape[2], heads, value.shape[-1]))
    scale = dim**-0.5 if scaling is None else scaling
    for block in plan.blocks:
        mask = block.mask(reach, heads // kv_heads, keys.dtype)
        rows = wide[:, block.place] if block.rows is None else wide[:, block.rows]
        n, repeat = block.last - block.first, heads // kv_heads
        q = rows.view(kv_heads, repeat, n, block.width, dim).permute(2, 0, 1, 3, 4)
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
    return out[None], None


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
