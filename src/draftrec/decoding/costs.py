"""Measuring what a forward pass costs against its rows, on this model, device, dtype and batch."""

from __future__ import annotations

import time

import numpy as np
import torch

from draftrec.decoding.budget import CostCurve
from draftrec.models import sampling
from draftrec.models.packing import Segment
from draftrec.models.target import Target
from draftrec.tokens.tree import chain

_REPEATS = 3
_GRID = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def measure_cost(
    target: Target,
    slots: int,
    context: int,
    *,
    nodes: int = 64,
    seconds: float = 4.0,
) -> CostCurve:
    """Seconds of a pass at growing numbers of rows (the median of three), with
    `context` cached tokens per sequence.

    Up to `slots` rows each row is a sequence of its own; beyond, the sequences carry draft nodes.
    Stops at `nodes` per sequence, where a pass costs five plain ones, or after `seconds`.
    """
    target.reserve(slots, context + nodes + 2)
    fewer = {r for r in (1, 2, 4, 8, 16, 32, 64, 128) if r < slots}  # the end of a job
    wanted = sorted({*fewer, slots, *(r for r in _GRID if slots < r <= (nodes + 1) * slots)})
    rows: list[int] = []
    seconds_at: list[float] = []
    started = time.perf_counter()
    _timed(target, slots, slots, context)
    for count in wanted:
        times = [_timed(target, slots, count, context) for _ in range(_REPEATS)]
        rows.append(count)
        seconds_at.append(sorted(times)[_REPEATS // 2])
        plain = seconds_at[rows.index(slots)] if slots in rows else seconds_at[-1]
        late = time.perf_counter() - started > seconds
        if count >= 2 * slots and (seconds_at[-1] > 5 * plain or late):
            break
    return CostCurve(tuple(rows), tuple(seconds_at))


def _timed(target: Target, slots: int, rows: int, context: int) -> float:
    sequences = min(slots, rows)
    sizes = [rows // sequences + (i < rows % sequences) - 1 for i in range(sequences)]
    pending = np.zeros(1, np.int32)
    trees = {n: chain([1] * n) for n in set(sizes)}
    segments = [Segment(i, context, pending, trees[n]) for i, n in enumerate(sizes)]
    start = time.perf_counter()
    logits = target.score(segments).logits
    sampling.greedy(logits).cpu()
    if target.device.type == "cuda":
        torch.cuda.synchronize(target.device)
    return time.perf_counter() - start
