"""Measuring what a pass over the trees of many users costs, for the pace of drafting."""

from __future__ import annotations

import time

import numpy as np
import torch

from draftrec.beams.model import BeamModel
from draftrec.models.costs import CostCurve
from draftrec.models.packing import BeamSegment

_ROWS = (1, 4, 8, 16, 32, 64, 128, 256, 512)
_REPEATS = 3


def measure_passes(
    model: BeamModel, users: int, prompt: int, most: int, seconds: float = 3.0
) -> CostCurve:
    """Seconds of a pass at growing numbers of rows: `users` trees of up to `most` nodes each behind
    `prompt` cached tokens. The shortest of three counts. Stops after `seconds`.
    """
    model.target.reserve(users, prompt + most)
    started = time.perf_counter()
    rows: list[int] = []
    found: list[float] = []
    _timed(model, users, prompt, 1)
    for count in sorted({min(r, most) for r in _ROWS}):
        times = [_timed(model, users, prompt, count) for _ in range(_REPEATS)]
        rows.append(users * count)
        found.append(min(times))
        if time.perf_counter() - started > seconds and len(rows) > 1:
            break
    return CostCurve(tuple(rows), tuple(found))


def _timed(model: BeamModel, users: int, prompt: int, rows: int) -> float:
    positions = np.full(rows, prompt, np.int64)
    seen, wanted = np.eye(rows, dtype=np.bool_), np.arange(rows)
    ids = np.ones(rows, np.int32)
    segments = [BeamSegment(i, prompt, ids, positions, seen, wanted) for i in range(users)]
    start = time.perf_counter()
    logits = model.target.score(segments).logits
    logits.float().logsumexp(-1).cpu()
    if model.target.device.type == "cuda":
        torch.cuda.synchronize(model.target.device)
    return time.perf_counter() - start
