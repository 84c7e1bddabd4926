"""Attention, and sums over the vocabulary, of every row by itself, on CPU: its result does not
depend on what shares the pass.

Matrix kernels choose how they sum by the shapes that they are given, so that a draft node and the
token that it becomes round differently, and near-ties fall otherwise. Here a row takes the columns
that it sees, its text's first and then its ancestors root down, in the order of their positions:
the same numbers in the same order whether they came as drafts, in a prompt or one at a time, alone
or in a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import njit

# Sums may be reordered, by the compiler and so in the same way for every row.
SUMS = {"reassoc", "contract", "nsz"}
# Numbers that a loop touches from which threads are worth their start.
_LEAST_SHARED = 1 << 16
# Logits that are summed at a time.
_STRETCH = 2048


def attend(  # noqa: PLR0913
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seen: tuple[torch.Tensor, torch.Tensor],
    *,
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """float32 `[S, heads, value_dim]`: softmax(q k) v of `query` float32 `[S, heads, key_dim]`.

    `keys`, `values` float32 `[slots, kv_heads, capacity, dim]`, heads sharing them in groups;
    `seen`: slots int64 `[S]` and what each row sees, int64 `[>= S, 2 + words]` as in
    `packing.Block.sight`. `sinks` `[heads]`: a further score that takes its share and gives
    nothing (GPT-OSS); `softcap`: scores are its tanh (Gemma 2).
    """
    slots, sight = (x.numpy() for x in seen)
    rows, heads = len(slots), query.shape[1]
    out = torch.empty((rows, heads, values.shape[-1]))
    rest = np.full(heads, -np.inf, np.float32) if sinks is None else sinks.float().numpy()
    q, k, v = (x.numpy() for x in (query.contiguous(), keys, values))
    numbers = np.float32(scale), np.float32(softcap or 0.0)
    work = rows * heads * 256
    over_rows(_attend, rows, work, q, k, v, slots, sight, rest, numbers, out.numpy())
    return out


def log_sum_exp(logits: torch.Tensor) -> torch.Tensor:
    """float32 `[R]`: log(sum(exp)) of each row of `logits` `[R, V]`."""
    rows = logits.float().contiguous().numpy()
    out = np.empty(len(rows), np.float32)
    over_rows(_log_sums, len(rows), rows.size, rows, out)
    return torch.from_numpy(out)


def over_rows(kernel: Callable[..., None], rows: int, work: int, *arguments: Any) -> None:
    """`kernel(first, last, *arguments)` for rows `0 .. rows - 1`, by several threads where `work`,
    the numbers that it touches, is worth them."""
    threads = torch.get_num_threads() if work >= _LEAST_SHARED else 1
    if threads == 1:
        kernel(0, rows, *arguments)
        return
    bounds = np.linspace(0, rows, threads + 1).astype(int).tolist()
    pending = [_pool(threads).submit(kernel, *pair, *arguments) for pair in pairwise(bounds)]
    for done in pending:
        done.result()


def store(
    rows: torch.Tensor, slab: torch.Tensor, slots: torch.Tensor, columns: torch.Tensor
) -> None:
    """Write `rows` `[S, kv_heads, dim]` to their slots and columns, int64 `[S]`, of `slab`, float32
    as `keys` are; those with column -1 nowhere."""
    _store(rows.float().contiguous().numpy(), slab.numpy(), slots.numpy(), columns.numpy())


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "draftrec-attention")


@njit(cache=True, nogil=True)
def _store(rows: Any, slab: Any, slots: Any, columns: Any) -> None:
    for row in range(len(rows)):
        if columns[row] >= 0:
            slab[slots[row], :, columns[row]] = rows[row]


@njit(cache=True, nogil=True, fastmath=SUMS)
def _attend(  # noqa: PLR0913
    first: int, last: int, query: Any, keys: Any, values: Any, slots: Any, sight: Any, sinks: Any,
    numbers: Any, out: Any,
) -> None:  # fmt: skip
    """As `attend`; `numbers`: scale and soft cap, 0 for none."""
    heads, shared = query.shape[1], query.shape[1] // keys.shape[1]
    columns = np.empty(keys.shape[2], np.int64)
    scores = np.empty(keys.shape[2], np.float32)
    for row in range(first, last):
        count = _columns(sight[row], columns)
        here = columns[:count]
        for head in range(heads):
            found = scores[:count]
            _score(query[row, head], keys[slots[row], head // shared], here, found)
            _share(found, numbers[0], numbers[1], sinks[head])
            _mix(found, values[slots[row], head // shared], here, out[row, head])


@njit(cache=True, nogil=True)
def _columns(seen: Any, columns: Any) -> int:
    """Fill in the columns that a row sees, in order; their number."""
    count = 0
    for column in range(seen[0], seen[1]):
        columns[count] = column
        count += 1
    for word in range(2, len(seen)):
        left, bit = np.uint64(seen[word]), 0
        while left:
            if left & np.uint64(1):
                columns[count] = seen[1] + 64 * (word - 2) + bit
                count += 1
            left >>= np.uint64(1)
            bit += 1
    return count


@njit(cache=True, nogil=True, fastmath=SUMS)
def _score(query: Any, keys: Any, columns: Any, found: Any) -> None:
    """Products with four keys at a time, which share what is read of the query."""
    whole = len(columns) - len(columns) % 4
    for i in range(0, whole, 4):
        k0, k1 = keys[columns[i]], keys[columns[i + 1]]
        k2, k3 = keys[columns[i + 2]], keys[columns[i + 3]]
        a0 = a1 = a2 = a3 = np.float32(0)
        for d in range(len(query)):
            q = query[d]
            a0 += q * k0[d]
            a1 += q * k1[d]
            a2 += q * k2[d]
            a3 += q * k3[d]
        found[i], found[i + 1], found[i + 2], found[i + 3] = a0, a1, a2, a3
    for i in range(whole, len(columns)):
        key, total = keys[columns[i]], np.float32(0)
        for d in range(len(query)):
            total += query[d] * key[d]
        found[i] = total


@njit(cache=True, nogil=True, fastmath=SUMS)
def _share(found: Any, scale: Any, softcap: Any, sink: Any) -> None:
    """Softmax of the scaled scores, in place; `sink` takes its share of it."""
    highest = sink
    for i in range(len(found)):
        found[i] *= scale
        if softcap:
            found[i] = np.float32(math.tanh(found[i] / softcap)) * softcap
        highest = max(highest, found[i])
    total = np.float32(math.exp(sink - highest)) if sink > -np.inf else np.float32(0)
    _exp(found, highest)
    for i in range(len(found)):
        total += found[i]
    for i in range(len(found)):
        found[i] /= total


@njit(cache=True, nogil=True, fastmath={"contract"})
def _exp(x: Any, highest: Any) -> None:
    """exp(x - highest) in place."""
    for i in range(len(x)):
        x[i] = exponential(x[i] - highest)


@njit(cache=True, nogil=True, fastmath={"contract"}, inline="always")
def exponential(x: Any) -> Any:
    """exp of a float32 between -87 and 88, within two units in the last place: loops over it run
    many at a time, over `math.exp` one by one. Polynomial and the split of log(2) as in Cephes'
    `expf`."""
    v = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(v * np.float32(1.44269504) + np.float32(0.5))
    f = v - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * f + np.float32(1.3981999507e-3)
    p = p * f + np.float32(8.3334519073e-3)
    p = p * f + np.float32(4.1665795894e-2)
    p = p * f + np.float32(1.6666665459e-1)
    p = p * f + np.float32(5.0000001201e-1)
    power = (np.int32(n) + np.int32(127)) << np.int32(23)
    return (p * f * f + f + np.float32(1.0)) * np.int32(power).view(np.float32)


@njit(cache=True, nogil=True, fastmath=SUMS)
def _mix(shares: Any, values: Any, columns: Any, out: Any) -> None:
    """The values weighed by their shares."""
    out[:] = 0
    whole = len(columns) - len(columns) % 4
    for i in range(0, whole, 4):
        v0, v1 = values[columns[i]], values[columns[i + 1]]
        v2, v3 = values[columns[i + 2]], values[columns[i + 3]]
        p0, p1, p2, p3 = shares[i], shares[i + 1], shares[i + 2], shares[i + 3]
        for d in range(len(out)):
            out[d] += p0 * v0[d] + p1 * v1[d] + p2 * v2[d] + p3 * v3[d]
    for i in range(whole, len(columns)):
        value = values[columns[i]]
        for d in range(len(out)):
            out[d] += shares[i] * value[d]


@njit(cache=True, nogil=True, fastmath=SUMS)
def _log_sums(begin: int, end: int, rows: Any, out: Any) -> None:
    """As `log_sum_exp`, in stretches that stay in the cache."""
    stretch = np.empty(_STRETCH, np.float32)
    for row in range(begin, end):
        highest = np.float32(-np.inf)
        for value in rows[row]:
            highest = max(highest, value)
        if highest == -np.inf:
            out[row] = highest
            continue
        total = 0.0
        for first in range(0, len(rows[row]), _STRETCH):
            here = stretch[: min(_STRETCH, len(rows[row]) - first)]
            here[:] = rows[row, first : first + len(here)]
            _exp(here, highest)
            for value in here:
                total += value
        out[row] = highest + np.float32(math.log(total))
