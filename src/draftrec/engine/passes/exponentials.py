"""Exponentials of float32 and sums of them on CPU, the same for a row whatever shares the pass:
softmax over what a row sees, log(sum(exp)) over the vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit

from draftrec.engine.passes.team import over_rows

# Sums may be reordered, by the compiler and so in the same way for every row.
SUMS = {"reassoc", "contract", "nsz"}
# Logits that are summed at a time.
_STRETCH = 2048


@njit(cache=True, nogil=True, fastmath=SUMS)
def softmax(found: Any, scale: Any, softcap: Any, sink: Any) -> Any:
    """Softmax, its division left to whoever sums: exp of the scaled scores less the highest, in
    place, and 1 over the sum of them all and of what `sink` takes."""
    if not len(found):  # a row that sees nothing gets zeros
        return np.float32(0)
    if softcap:
        for i in range(len(found)):
            found[i] = np.float32(math.tanh(found[i] * scale / softcap)) * softcap
        scale = np.float32(1)
    highest = max(_highest(found) * scale, sink)
    total = np.float32(math.exp(sink - highest)) if sink > -np.inf else np.float32(0)
    _exp(found, scale, highest)
    for i in range(len(found)):
        total += found[i]
    return np.float32(1) / total


@njit(cache=True, nogil=True)
def _highest(found: Any) -> Any:
    """The largest of all, float32. The bits of floats have the order of whole numbers, but that of
    negative ones is turned; and of whole numbers many are compared at a time."""
    highest, bits = np.int32(-(2**31)), found.view(np.int32)
    for i in range(len(bits)):
        highest = max(highest, _in_order(bits[i]))
    return _in_order(highest).view(np.float32)


@njit(cache=True, nogil=True, inline="always")
def _in_order(bits: Any) -> Any:
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(2**31 - 1)))


@njit(cache=True, nogil=True, fastmath={"contract"})
def _exp(x: Any, scale: Any, highest: Any) -> None:
    """exp(scale x - highest) in place."""
    for i in range(len(x)):
        x[i] = exponential(x[i] * scale - highest)


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


def log_sum_exp(logits: torch.Tensor) -> torch.Tensor:
    """float32 `[R]`: log(sum(exp)) of each row of `logits` `[R, V]`."""
    rows = logits.float().contiguous().numpy()
    out = np.empty(len(rows), np.float32)
    over_rows(_log_sums, len(rows), rows.size, rows, out)
    return torch.from_numpy(out)


@njit(cache=True, nogil=True, fastmath=SUMS)
def _log_sums(begin: int, end: int, rows: Any, out: Any) -> None:
    """As `log_sum_exp`, in stretches that stay in the cache."""
    stretch = np.empty(_STRETCH, np.float32)
    for row in range(begin, end):
        highest = _highest(rows[row])
        if highest == -np.inf:
            out[row] = highest
            continue
        total = 0.0
        for first in range(0, len(rows[row]), _STRETCH):
            here = stretch[: min(_STRETCH, len(rows[row]) - first)]
            here[:] = rows[row, first : first + len(here)]
            _exp(here, np.float32(1), highest)
            for i in range(len(here)):
                total += here[i]
        out[row] = highest + np.float32(math.log(total))
