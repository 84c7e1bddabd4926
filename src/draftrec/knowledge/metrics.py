"""Times and rates of a running job, for `metrics.jsonl` and the manifest's totals."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from draftrec.knowledge.manifest import Manifest, Totals
from draftrec.knowledge.shards import RunFolder

if TYPE_CHECKING:
    from draftrec.decoding.stats import StepStats
    from draftrec.knowledge.job import TextGenerator

_STEP_SECONDS = 5.0
_TIMES = ("draft_seconds", "verify_seconds", "prefill_seconds")
_STEP_COUNTS = ("new_tokens", "target_calls", "drafted_tokens", "accepted_tokens", "finished")


class Metrics:
    """Writes one object per shard, and one every few seconds within a shard."""

    def __init__(self, folder: RunFolder, generator: TextGenerator, manifest: Manifest) -> None:
        self._folder, self._generator, self._manifest = folder, generator, manifest
        self._shard_start = self._steps_start = time.perf_counter()
        self._times = self._timing()
        self._before = manifest.totals.model_copy(deep=True)
        self._steps = dict.fromkeys(_STEP_COUNTS, 0)

    def step(self, step: StepStats) -> None:
        """Count a step; write what has gathered if enough time has passed."""
        for name in _STEP_COUNTS:
            self._steps[name] += getattr(step, name)
        now = time.perf_counter()
        seconds = now - self._steps_start
        if seconds >= _STEP_SECONDS:
            self._write("steps", {"seconds": seconds, **self._steps, "active": step.active})
            self._steps_start, self._steps = now, dict.fromkeys(_STEP_COUNTS, 0)

    def shard(self) -> None:
        """Add the time since the last shard to the totals, and write what the shard cost."""
        totals, before = self._manifest.totals, self._before
        now, times = time.perf_counter(), self._timing()
        totals.wall_seconds += now - self._shard_start
        for name in _TIMES:
            setattr(totals, name, getattr(totals, name) + times[name] - self._times[name])
        totals.peak_memory_bytes = max(
            totals.peak_memory_bytes, peak_memory(self._generator.device)
        )
        self._shard_start, self._times = now, times
        self._before = totals.model_copy(deep=True)
        cost = _difference(totals, before)
        self._write("shard", {"shard": len(self._manifest.shards) - 1, **cost})

    def _timing(self) -> dict[str, float]:
        return {name: getattr(self._generator.timing, name) for name in _TIMES}

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
