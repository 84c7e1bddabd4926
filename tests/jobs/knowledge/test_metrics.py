"""What a running job writes of its steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from draftrec.engine.text.stats import StepStats
from draftrec.jobs.knowledge.manifest import Totals
from draftrec.jobs.knowledge.metrics import Metrics


@pytest.mark.parametrize(("batches", "mean"), [([16] * 9 + [1], 14), ([1], 1), ([2, 1, 1], 1)])
def test_texts_at_once_are_a_mean_over_the_steps(batches: list[int], mean: int):
    written: list[dict[str, Any]] = []
    folder: Any = SimpleNamespace(append_metrics=written.append)
    manifest: Any = SimpleNamespace(totals=Totals(), shards=[])
    metrics = Metrics(folder, manifest)
    for active in batches:
        metrics.step(StepStats(active, 0, 0, active, active, active, 0, 0))
    metrics.flush()
    assert [(it["kind"], it["active"], it["rows"]) for it in written] == [
        ("steps", mean, sum(batches))
    ]
