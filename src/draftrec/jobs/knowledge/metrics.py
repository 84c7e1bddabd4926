"""Times and rates of a running job, for `metrics.jsonl` and the manifest's totals."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from draftrec.core import COUNTED, SOURCES
from draftrec.engine.text.stats import Spent
from draftrec.jobs.knowledge.manifest import Manifest, Totals
from draftrec.jobs.knowledge.shards import RunFolder

if TYPE_CHECKING:
    from draftrec.engine.text.stats import StepStats

_STEP_SECONDS = 5.0
_STEP_COUNTS = ("rows", "new_tokens", *COUNTED, "finished")


@dataclass(frozen=True, slots=True)
class ShardCost:
    """What a shard took of its worker, in earlier lives as well: seconds, and the most bytes in use
    so far. `earlier_seconds` went by in lives that ended before the job was run again."""

    spent: Spent
    peak_memory_bytes: int
    earlier_seconds: float = 0.0


@dataclass(slots=True)
class _Steps:
    """Sums over the steps since `start`, a reading of the clock. `active`: of texts at once."""

    start: float
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_STEP_COUNTS, 0))
    by_source: list[int] = field(default_factory=lambda: [0] * len(SOURCES))
    active: int = 0
    steps: int = 0

    def add(self, step: StepStats) -> None:
        for name in _STEP_COUNTS:
            self.counts[name] += getattr(step, name)
        for i, n in enumerate(step.accepted_by_source):
            self.by_source[i] += n
        self.active += step.active
        self.steps += 1


class Metrics:
    """Writes one object per shard, and one every few seconds within a shard; those of a shard add
    up to all its steps."""

    def __init__(self, folder: RunFolder, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._shard_start = time.perf_counter()
        self._before = manifest.totals.model_copy(deep=True)
        self._steps = _Steps(self._shard_start)

    def step(self, step: StepStats) -> None:
        """Count a step; write what has gathered if enough time has passed."""
        self._steps.add(step)
        now = time.perf_counter()
        if now - self._steps.start >= _STEP_SECONDS:
            self._write_steps(now)

    def shard(self, cost: ShardCost) -> None:
        """Add what a shard took, and the time since the last one, to the totals; write both."""
        totals, before = self._manifest.totals, self._before
        now = time.perf_counter()
        self._write_steps(now)
        totals.wall_seconds += now - self._shard_start + cost.earlier_seconds
        totals.draft_seconds += cost.spent.draft
        totals.verify_seconds += cost.spent.verify
        totals.prefill_seconds += cost.spent.prefill
        totals.curve_seconds += cost.spent.passes
        totals.plain_seconds += cost.spent.plain
        totals.peak_memory_bytes = max(totals.peak_memory_bytes, cost.peak_memory_bytes)
        self._shard_start = now
        self._before = totals.model_copy(deep=True)
        spent = _difference(totals, before)
        self._write("shard", {"shard": len(self._manifest.shards) - 1, **spent})

    def flush(self) -> None:
        """Write what has gathered: the job stops here."""
        self._write_steps(time.perf_counter())

    def _write_steps(self, now: float) -> None:
        steps, self._steps = self._steps, _Steps(now)
        if steps.steps:
            counts = {**steps.counts, "accepted_by_source": steps.by_source}
            # A mean: the last step of a shard has but the one or two texts that took longest.
            active = round(steps.active / steps.steps)
            about = {"seconds": now - steps.start, "active": active}
            self._write("steps", {**counts, **about})

    def _write(self, kind: str, values: dict[str, Any]) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._folder.append_metrics({"kind": kind, "at": at, **values})


def _difference(now: Totals, before: Totals) -> dict[str, Any]:
    """Counts, times and rates of what happened between two states of the totals."""
    then, values = before.model_dump(), now.model_dump()
    peak = values.pop("peak_memory_bytes")
    by_source = [
        n - m for n, m in zip(now.accepted_by_source, before.accepted_by_source, strict=True)
    ]
    for name in values:
        if name != "accepted_by_source":
            values[name] -= then[name]
    cost = Totals.model_validate({**values, "accepted_by_source": by_source})
    return {**cost.model_dump(), **cost.rates(), "peak_memory_bytes": peak}


def peak_memory(device: str) -> int:
    """Most bytes in use so far: the accelerator's where there is one, else the process's."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
