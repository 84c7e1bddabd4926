"""What passes cost: measured when a run begins, against their rows, on this model, device, dtype
and batch, and what drafting costs beside it; learned while it goes, and kept for the next. And how
many sequences passes take together."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from draftrec.config import GenerateConfig
from draftrec.core import DraftTree, Verdict
from draftrec.engine import sampling
from draftrec.engine.costs import CostCurve, LearningCurve, smoothed
from draftrec.engine.packing import Segment
from draftrec.engine.target import Target
from draftrec.engine.text.budget import AutoBudget
from draftrec.engine.tree import chain
from draftrec.pool.index import NgramIndex, TreeBuilder, tail_of_text
from draftrec.pool.suffixes import ClosedIndex

_LOG = logging.getLogger(__name__)
_MOST_SLOTS = {"cpu": 16, "cuda": 128}
# As many texts as make it worthwhile to measure for as long as ever.
_MANY = 1 << 30


class Passes:
    """Passes of `target` under one configuration. `state`: what is known of them, as JSON, for a
    later run to begin with."""

    def __init__(
        self,
        target: Target,
        config: GenerateConfig,
        context_length: int,
        state: dict[str, Any] | None,
    ) -> None:
        self.state = state
        self._target, self._batch, self._context_length = target, config.batch, context_length
        self._budget: int | str = config.draft.budget
        self._curve: tuple[int, int, LearningCurve] | None = None

    def slots(self, longest: int) -> int:
        """Sequences that run together, their prompts being of at most `longest` tokens: as asked,
        or as many as a share of free memory holds."""
        wanted = self._batch.batch_size
        if wanted != "auto":
            return wanted
        if self.state is not None:
            return self.state["slots"]
        room = longest + self._batch.max_new_tokens + 65
        room = min(room, self._context_length + 65)
        fit = int(_free_memory(self._target.device) * 0.5) // (self._target.bytes_per_token * room)
        slots = max(1, min(_MOST_SLOTS[self._target.device.type], fit))
        self.state = {"slots": slots}
        return slots

    def curve(self, longest: int, texts: int | None = None) -> LearningCurve:
        """Seconds of a pass by its rows, prompts being of at most `longest` tokens, which goes on
        learning from every run. Measured for no longer than is worth it for so many `texts` (None:
        any number), and again where there are many more."""
        slots, many = self.slots(longest), _MANY if texts is None else texts
        if self._curve is None or self._curve[0] != slots or many >= 8 * self._curve[1]:
            known = self._known(slots) if self._curve is None else None
            first = known or self._measure(slots, longest, many)
            self._curve = slots, _MANY if known else many, LearningCurve(first)
            self.keep()
        return self._curve[2]

    def keep(self) -> None:
        """Let what passes cost be part of what later runs begin with."""
        if self._curve is not None and self._budget == "auto":
            slots, _, curve = self._curve
            self.state = {"slots": slots, **curve.to_json()}

    def _known(self, slots: int) -> CostCurve | None:
        """What passes cost as an earlier run left it."""
        state = self.state
        if self._budget != "auto" or state is None or state["slots"] != slots:
            return None
        return CostCurve.from_json(state) if "rows" in state else None

    def _measure(self, slots: int, longest: int, texts: int) -> CostCurve:
        _LOG.info("measuring what a pass of the model costs")
        usual = min(self._batch.max_new_tokens, 256) // 2
        context = max(1, min(longest + usual, self._context_length - 66))
        most = min(64, self._budget) if isinstance(self._budget, int) else 64
        nodes = max(0, min(most, self._context_length - context - 1))
        # A pass writes some two tokens of each text.
        passes, together = -(-texts // slots) * usual // 2, min(slots, texts)
        return measure_cost(self._target, together, context, nodes=nodes, passes=passes)


def _free_memory(device: torch.device) -> int:
    """Bytes free on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30


# Times that each number of rows is measured, and once more what is implausible then.
_TURNS, _MORE = 5, 2
# Of the time that the passes of a run will take, what measuring them beforehand may take.
_SHARE = 0.03
_clock = time.perf_counter
_GRID = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def measure_cost(
    target: Target,
    slots: int,
    context: int,
    *,
    nodes: int = 64,
    seconds: float = 4.0,
    passes: int | None = None,
) -> CostCurve:
    """Seconds of a pass at growing numbers of rows, with `context` cached tokens per sequence.

    The shortest of five times, taken in turns over all numbers of rows: what else the machine does
    adds time and never takes any away, and it seldom lasts from one turn to the next. What still
    falls with rows is measured again, then evened out (`smoothed`): a curve that a disturbed moment
    bent would keep drafts out, or let them in, until the run's own passes mend it.

    Up to `slots` rows each row is a sequence of its own; beyond, the sequences carry draft nodes,
    some many and most few, as in decoding. Stops at `nodes` per sequence, where a pass costs five
    plain ones, or after `seconds`, less where a run of `passes` is over soon; a plain pass and one
    with drafts are measured at least.
    """
    target.reserve(slots, context + nodes + 2)
    order = _order(slots, nodes)
    _timed(target, slots, slots, context, nodes)  # whatever has to be made first
    times = _Shortest(lambda rows: _timed(target, slots, rows, context, nodes), slots)
    times.take([*order[:2]] * 2, float("inf"))
    if passes is not None:
        seconds = min(seconds, _SHARE * passes * times.found[slots])
    for _ in range(_TURNS):
        times.take(order, seconds)
    for _ in range(_MORE):
        times.take(_implausible(times.found), seconds)
    rows = sorted(r for r in times.found if r <= times.dear)
    heights = smoothed([times.found[r] for r in rows]).tolist()
    rows, heights = _stairs(rows, heights, target.padded_rows)
    return CostCurve(tuple(rows), tuple(heights), _draft_seconds())


class _Shortest:
    """The shortest time seen of each number of rows, `found`, as far as a pass over `dear` rows,
    five times a plain one's."""

    def __init__(self, timed: Callable[[int], float], slots: int) -> None:
        self.timed, self.slots = timed, slots
        self.found: dict[int, float] = {}
        self.dear = 1 << 30
        self.started = _clock()

    def take(self, order: list[int], seconds: float) -> None:
        """Once each, until so many seconds after the start."""
        for rows in order:
            if rows > self.dear or _clock() - self.started > seconds:
                continue
            self._see(rows)
            if rows >= 2 * self.slots and self._is_dear(rows):
                self._see(rows)  # something may have had to be made for it
                self.dear = rows if self._is_dear(rows) else self.dear

    def _see(self, rows: int) -> None:
        took = self.timed(rows)
        self.found[rows] = min(took, self.found.get(rows, took))

    def _is_dear(self, rows: int) -> bool:
        return self.found[rows] > 5 * self.found[self.slots]


def _order(slots: int, nodes: int) -> list[int]:
    """Numbers of rows in the order in which they are to be known: a plain pass; one with a few
    drafts for everyone; a text alone, as jobs end; what lies around and between."""
    most = (nodes + 1) * slots
    upper = sorted({slots, *(r for r in _GRID if slots < r <= most)})
    few = min(upper, key=lambda r: abs(r - 4 * slots))
    coarse = dict.fromkeys([slots, few, 1, *upper[::4], *upper[::2], *upper])
    return [*coarse, *(r for r in (1, 2, 4, 8, 16, 32, 64, 128) if r < slots)]


def _implausible(found: dict[int, float]) -> list[int]:
    """Numbers of rows that took clearly longer than more rows did: something else was running."""
    rows = sorted(found)
    seconds = np.array([found[r] for r in rows])
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
    start = _clock()
    logits = target.score(segments).logits
    sampling.greedy(logits).cpu()
    if target.device.type == "cuda":
        torch.cuda.synchronize(target.device)
    return _clock() - start
