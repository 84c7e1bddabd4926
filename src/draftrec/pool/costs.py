"""Measuring what a forward pass costs against its rows, on this model, device, dtype and batch,
and what drafting costs beside it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from draftrec.core import DraftTree, Verdict
from draftrec.engine import sampling
from draftrec.engine.costs import CostCurve, smoothed
from draftrec.engine.packing import Segment
from draftrec.engine.target import Target
from draftrec.engine.text.budget import AutoBudget
from draftrec.engine.tree import chain
from draftrec.pool.index import NgramIndex, TreeBuilder, tail_of_text
from draftrec.pool.suffixes import ClosedIndex

_FIRST_TURN, _SECOND_TURN = 3, 2
_GRID = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def measure_cost(
    target: Target,
    slots: int,
    context: int,
    *,
    nodes: int = 64,
    seconds: float = 4.0,
) -> CostCurve:
    """Seconds of a pass at growing numbers of rows, with `context` cached tokens per sequence.

    The shortest of five counts, taken in two turns over all numbers of rows: what else the machine
    does adds time and never takes any away, and it seldom lasts from one turn to the next. What
    still falls with rows is measured again, then evened out (`smoothed`): a curve that a
    disturbed moment bent would keep drafts out, or let them in, for the whole run.

    Up to `slots` rows each row is a sequence of its own; beyond, the sequences carry draft nodes,
    some many and most few, as in decoding. Stops at `nodes` per sequence, where a pass costs five
    plain ones, or after `seconds`.
    """
    target.reserve(slots, context + nodes + 2)
    fewer = {r for r in (1, 2, 4, 8, 16, 32, 64, 128) if r < slots}  # the end of a job
    wanted = sorted({*fewer, slots, *(r for r in _GRID if slots < r <= (nodes + 1) * slots)})
    started = time.perf_counter()

    def shortest(count: int, repeats: int) -> float:
        return min(_timed(target, slots, count, context, nodes) for _ in range(repeats))

    def late() -> bool:
        return time.perf_counter() - started > seconds

    shortest(slots, 1)
    found: dict[int, float] = {}
    for count in wanted:
        found[count] = shortest(count, _FIRST_TURN)
        if count >= 2 * slots and (found[count] > 5 * found[slots] or late()):
            break
    for count in [*found, *_implausible(found)]:
        if late():
            break
        found[count] = min(found[count], shortest(count, _SECOND_TURN))
    heights = smoothed(list(found.values())).tolist()
    rows, heights = _stairs(list(found), heights, target.padded_rows)
    return CostCurve(tuple(rows), tuple(heights), _draft_seconds())


def _implausible(found: dict[int, float]) -> list[int]:
    """Numbers of rows that took clearly longer than more rows did: something else was running."""
    rows, seconds = list(found), np.array(list(found.values()))
    least_above = np.minimum.accumulate(seconds[::-1])[::-1]
    return [
        r for r, own, least in zip(rows, seconds, least_above, strict=True) if own > 1.1 * least
    ]


def _stairs(
    rows: list[int], seconds: list[float], padded: Callable[[int], int]
) -> tuple[list[int], list[float]]:
    """The curve with its steps, where a pass is padded to one of few numbers of rows.

    A row more than such a number costs as much as the next of them: to a straight line between the
    two, the first rows of a step would look cheap.
    """
    if all(padded(r) == r for r in range(rows[0], rows[-1] + 1)):
        return rows, seconds
    tops = sorted({padded(r) for r in range(rows[0], rows[-1] + 1)})
    heights = np.interp(tops, rows, seconds).tolist()
    steps: list[tuple[int, float]] = []
    below = rows[0] - 1
    for top, height in zip(tops, heights, strict=True):
        # The last step is left open, as the slope at the end is what lies beyond.
        steps += [(r, height) for r in sorted({below + 1, top}) if r == top or top != tops[-1]]
        below = top
    return [r for r, _ in steps], [h for _, h in steps]


def _draft_seconds(nodes: int = 12) -> float:
    """Seconds that drafting takes of a text and step beside the pass: a usual lookup, one tree from
    a prompt, a group and all groups; and the budget's choice among its nodes and learning of them.
    """
    rng = np.random.default_rng(0)
    texts = np.minimum(rng.zipf(1.5, (96, 128)), 4000).astype(np.int32)
    index, own = ClosedIndex.build(list(texts)), NgramIndex(texts.shape[1])
    own.extend(texts[0])
    builder = TreeBuilder()
    times: list[float] = []
    trees: list[DraftTree] = []
    for text in texts[:32]:
        tail = tail_of_text(text[:40])
        start = time.perf_counter()
        trees.append(
            builder.build(
                [(own, tail, 6.0, 0), (index, tail, 1.0, 2), (index, tail, 1.0, 3)], nodes, 24
            )
        )
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2] + _budget_seconds(trees)


def _budget_seconds(trees: list[DraftTree], turns: int = 5) -> float:
    """Seconds per tree that the budget takes of a step with these trees: in a tiny model no less
    than the lookups, so that drafting would seem to pay where it does not."""
    budget = AutoBudget(CostCurve((1, 2), (1.0, 1.0)))
    verdicts = [
        Verdict(np.zeros(min(1, len(t)), np.int32), np.zeros(min(1, len(t)) + 1, np.int32))
        for t in trees
    ]
    times: list[float] = []
    for _ in range(turns):
        start = time.perf_counter()
        budget.choose(trees, len(trees))
        budget.observe(trees, verdicts, len(trees))
        times.append(time.perf_counter() - start)
    return sorted(times)[turns // 2] / len(trees)


def _uneven(nodes: int, sequences: int, most: int) -> list[int]:
    """Shares of `nodes`, none above `most`, that fall with a sequence's rank as 1, 1/2, 1/3 ..."""
    weights = np.cumsum(1.0 / np.arange(1, sequences + 1))
    ends = np.rint(nodes * weights / weights[-1]).astype(np.int64)
    shares: list[int] = np.minimum(np.diff(ends, prepend=0), most).tolist()
    left = nodes - sum(shares)
    for rank, share in enumerate(shares):
        more = min(left, most - share)
        shares[rank] += more
        left -= more
    return shares


def _timed(target: Target, slots: int, rows: int, context: int, most: int) -> float:
    sequences = min(slots, rows)
    sizes = _uneven(rows - sequences, sequences, most)
    pending = np.zeros(1, np.int32)
    trees = {n: chain([1] * n) for n in set(sizes)}
    segments = [Segment(i, context, pending, trees[n]) for i, n in enumerate(sizes)]
    start = time.perf_counter()
    logits = target.score(segments).logits
    sampling.greedy(logits).cpu()
    if target.device.type == "cuda":
        torch.cuda.synchronize(target.device)
    return time.perf_counter() - start
