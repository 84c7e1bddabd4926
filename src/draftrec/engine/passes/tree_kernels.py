"""Tree attention as Triton kernels: `tree_attention` where the tensors lie on a GPU.

A program takes one row, the query heads that share one KV head, and `SPLIT` positions of the row's
text; a second kernel joins the parts in order. What a program reads is a matter of positions alone:
a position below `high` is its own column, one behind is that of the row's next ancestor. So a
row's result follows from the texts before it, bit for bit: the other rows of the pass do not
matter, nor how many slots there are, nor whether the tokens came as drafts or as text.

Imported where it is used: Triton comes with torch where there is a GPU, and is needed nowhere else.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

# Positions of a program, and of its steps. Products of matrices want sixteen rows at least.
SPLIT, _STEP, _LEAST = 128, 64, 16
#: Steps whose keys and values are on their way at once: of float32, more do not fit into the shared
#: memory of every GPU.
STAGES = 1


@triton.jit
def _write(
    key, value, keys, values, slots, columns,
    key_row, key_head, value_row, value_head, keys_slot, keys_head, values_slot, values_head,
    KEY: tl.constexpr, VALUE: tl.constexpr, WIDE_KEY: tl.constexpr, WIDE_VALUE: tl.constexpr,
):  # fmt: skip
    """Keys and values of a row and KV head into the slab; nothing for a row without a column."""
    row, head = tl.program_id(0), tl.program_id(1)
    slot, column = tl.load(slots + row), tl.load(columns + row)
    if column >= 0:
        d, e = tl.arange(0, WIDE_KEY), tl.arange(0, WIDE_VALUE)
        found = tl.load(key + row * key_row + head * key_head + d, mask=d < KEY)
        to = keys + slot * keys_slot + head * keys_head + column * KEY
        tl.store(to + d, found.to(keys.dtype.element_ty), mask=d < KEY)
        found = tl.load(value + row * value_row + head * value_head + e, mask=e < VALUE)
        to = values + slot * values_slot + head * values_head + column * VALUE
        tl.store(to + e, found.to(values.dtype.element_ty), mask=e < VALUE)


@triton.jit
def _bits(record, word):
    """int32 `[64]`: the bits of a word of the record."""
    return ((tl.load(record + 2 + word) >> tl.arange(0, 64)) & 1).to(tl.int32)


@triton.jit
def _extent(record, WORDS: tl.constexpr):
    """A row sees positions `low .. high - 1` and `start .. end - 1`; those are columns, these the
    nodes whose bits are set, in order."""
    low, high = tl.load(record).to(tl.int32), tl.load(record + 1).to(tl.int32)
    start = tl.maximum(low, high)
    end = start
    for word in range(WORDS):
        end += tl.sum(_bits(record, word), 0)
    return low, high, start, end


@triton.jit
def _columns(record, positions, high, start, WORDS: tl.constexpr):
    """The columns of `positions`: their own below `high`, then those of the row's ancestors."""
    nodes = tl.zeros_like(positions)
    before = high * 0
    for word in range(WORDS):
        bits = _bits(record, word)
        rank = before + tl.cumsum(bits, 0) - bits
        hit = (bits != 0)[None, :] & (rank[None, :] == (positions - start)[:, None])
        nodes += tl.sum(tl.where(hit, (64 * word + tl.arange(0, 64))[None, :], 0), 1)
        before = before + tl.sum(bits, 0)
    return tl.where(positions < high, positions, high + nodes)


@triton.jit
def _product(a, b, WIDEN: tl.constexpr):
    """float32: products of half-precision numbers are exact in it, and so `WIDEN` changes nothing
    but the instructions. Triton's interpreter multiplies bfloat16's bits as if they were numbers.
    """
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _attend(
    query, keys, values, slots, sight, part_out, part_max, part_sum, scale, softcap,
    query_row, query_head, keys_slot, keys_head, values_slot, values_head, sight_row,
    HEADS: tl.constexpr, SHARED: tl.constexpr, TALL: tl.constexpr, KEY: tl.constexpr,
    VALUE: tl.constexpr, WIDE_KEY: tl.constexpr, WIDE_VALUE: tl.constexpr, WORDS: tl.constexpr,
    CAPPED: tl.constexpr, WIDEN: tl.constexpr, SPLIT: tl.constexpr, STEP: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    row, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    record = sight + row * sight_row
    low, high, start, end = _extent(record, WORDS)
    first = part * SPLIT
    if (first < end) & (first + SPLIT > low):
        slot = tl.load(slots + row)
        r, d, e = tl.arange(0, TALL), tl.arange(0, WIDE_KEY), tl.arange(0, WIDE_VALUE)
        from_query = query + row * query_row + (head * SHARED + r)[:, None] * query_head
        mine = (r < SHARED)[:, None]
        q = tl.load(from_query + d[None, :], mask=mine & (d < KEY)[None, :], other=0.0)
        q = q.to(keys.dtype.element_ty)
        from_keys = keys + slot * keys_slot + head * keys_head
        from_values = values + slot * values_slot + head * values_head
        highest = tl.full([TALL], -1e30, tl.float32)
        total = tl.zeros([TALL], tl.float32)
        out = tl.zeros([TALL, WIDE_VALUE], tl.float32)
        for step in range(0, SPLIT, STEP):
            positions = first + step + tl.arange(0, STEP)
            seen = ((positions >= low) & (positions < high)) | (
                (positions >= start) & (positions < end)
            )
            columns = positions
            if first + step + STEP > high:
                columns = _columns(record, positions, high, start, WORDS)
            at = columns[:, None].to(tl.int64)
            k = tl.load(
                from_keys + at * KEY + d[None, :],
                mask=seen[:, None] & (d < KEY)[None, :],
                other=0.0,
            )
            scores = _product(q, tl.trans(k), WIDEN) * scale
            if CAPPED:
                scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
            scores = tl.where(seen[None, :], scores, -1e30)
            above = tl.maximum(highest, tl.max(scores, 1))
            shares = tl.where(seen[None, :], tl.exp(scores - above[:, None]), 0.0)
            fade = tl.exp(highest - above)
            v = tl.load(
                from_values + at * VALUE + e[None, :],
                mask=seen[:, None] & (e < VALUE)[None, :],
                other=0.0,
            )
            mixed = _product(shares.to(v.dtype), v, WIDEN)
            out = out * fade[:, None] + mixed
            total = total * fade + tl.sum(shares, 1)
            highest = above
        place = (row * HEADS + head * SHARED + r) * SPLITS + part
        tl.store(part_max + place, highest, mask=r < SHARED)
        tl.store(part_sum + place, total, mask=r < SHARED)
        tl.store(
            part_out + place[:, None] * VALUE + e[None, :], out, mask=mine & (e < VALUE)[None, :]
        )


@triton.jit
def _join(
    part_out, part_max, part_sum, sight, sinks, out, sight_row,
    HEADS: tl.constexpr, VALUE: tl.constexpr, WIDE_VALUE: tl.constexpr, WORDS: tl.constexpr,
    SUNK: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """The parts of one row and head, in the order of their positions; nothing seen gives zeros."""
    row, head = tl.program_id(0), tl.program_id(1)
    low, _, _, end = _extent(sight + row * sight_row, WORDS)
    e = tl.arange(0, WIDE_VALUE)
    highest, total = -1e30, 0.0
    if SUNK:
        highest, total = tl.load(sinks + head).to(tl.float32), 1.0
    found = tl.zeros([WIDE_VALUE], tl.float32)
    for part in range(low // SPLIT, tl.cdiv(end, SPLIT)):
        place = (row * HEADS + head) * SPLITS + part
        here = tl.load(part_max + place)
        above = tl.maximum(highest, here)
        fade, weight = tl.exp(highest - above), tl.exp(here - above)
        more = tl.load(part_out + place * VALUE + e, mask=e < VALUE, other=0.0)
        found = found * fade + more * weight
        total = total * fade + tl.load(part_sum + place) * weight
        highest = above
    found = found / tl.where(total > 0.0, total, 1.0)
    tl.store(out + (row * HEADS + head) * VALUE + e, found.to(out.dtype.element_ty), mask=e < VALUE)


def write_and_attend(
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
    """As `tree_attention.tree_attention`."""
    keys, values = keys[layer], values[layer]
    rows, heads, dim = query.shape
    kv_heads, capacity, width = keys.shape[1], keys.shape[2], values.shape[3]
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    shared, splits = heads // kv_heads, triton.cdiv(capacity, SPLIT)
    wide_key, wide_value = (max(_LEAST, triton.next_power_of_2(n)) for n in (dim, width))
    words = sight.shape[1] - 2
    of_slabs = keys.stride(0), keys.stride(1), values.stride(0), values.stride(1)
    interpreted = bool(getattr(triton, "knobs").runtime.interpret)  # noqa: B009
    kernel: Any = _write
    kernel[(rows, kv_heads)](
        key, value, keys, values, slots, columns,
        key.stride(0), key.stride(1), value.stride(0), value.stride(1), *of_slabs,
        dim, width, wide_key, wide_value,
    )  # fmt: skip
    part_out = query.new_empty((rows, heads, splits, width), dtype=torch.float32)
    part_max, part_sum = (part_out.new_empty((rows, heads, splits)) for _ in range(2))
    out = query.new_empty((rows, heads, width))
    tall = max(_LEAST, triton.next_power_of_2(shared))
    kernel = _attend
    kernel[(rows, kv_heads, splits)](
        query, keys, values, slots, sight, part_out, part_max, part_sum, scale, softcap or 1.0,
        query.stride(0), query.stride(1), *of_slabs, sight.stride(0),
        heads, shared, tall, dim, width, wide_key, wide_value, words,
        softcap is not None, interpreted, SPLIT, _STEP, splits, num_stages=STAGES,
    )  # fmt: skip
    kernel = _join
    kernel[(rows, heads)](
        part_out, part_max, part_sum, sight, sinks if sinks is not None else part_max, out,
        sight.stride(0), heads, width, wide_value, words, sinks is not None, SPLIT, splits,
    )  # fmt: skip
    return out
