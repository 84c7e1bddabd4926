"""The benchmark of jobs on Ray: commands, kills, comparisons; and who learns from whom."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pool_workers
import pytest
import ray_jobs
from jobs import command
from pool_traces import Trace
from ray_tables import pool_workers as workers_table
from ray_tables import ray as ray_table
from rivals.published_trie import SpecialTokens

from draftrec.cli import main
from draftrec.evaluate.replay.recordings import Recording

pytest.importorskip("ray", reason="Ray is not installed")


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_driver_change_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = ray_jobs.Bench.run

    def run(bench: ray_jobs.Bench, name: str, **options: Any) -> float:
        """What is compared with needs no cluster, nor a process of its own."""
        if name != "alone":
            return usual(bench, name, **options)
        here = bench.options | {k: v for k, v in options.items() if k not in ray_jobs.ON_RAY}
        began = time.perf_counter()
        line = command(bench.records, bench.model, bench.scratch / name, here)
        assert main.run(line[3:]) in (0, 3)
        return time.perf_counter() - began

    monkeypatch.setattr(ray_jobs.Bench, "run", run)
    line = ["--part", "kills", "--records", "48", "--shard-size", "4", "--max-new-tokens", "12"]
    line += ["--worker-kills", "1", "--driver-kills", "1", "--pause", "0.3"]
    line += ["--results", str(tmp_path)]
    assert ray_jobs.main(line) == 0
    result = json.loads((tmp_path / "ray.json").read_text())
    kills = result["kills"]
    assert (kills["worker_kills"], kills["driver_kills"]) == (1, 1)
    assert kills["byte_identical"]
    assert kills["left_workers"] == 0
    assert kills["complete"]["texts"] == 48
    assert "all files are those of an undisturbed run" in ray_table(result)


def recording(name: str, ids: list[int], group: str) -> Recording:
    return Recording(name, np.array(ids, np.int32), np.array([9], np.int32), group)


def trace() -> Trace:
    """Two groups, each with a text of its own that is written again and again."""
    texts = [[1, 2, 3, 4, 5, 6, 7, 8], [11, 12, 13, 14, 15, 16, 17, 18]]
    made = [recording(f"u{i}", texts[i % 2], f"g{i % 2}") for i in range(8)]
    return Trace("made up", made, [], SpecialTokens())


def test_what_is_learned_later_saves_less() -> None:
    it = trace()
    shards = pool_workers.shards_of(it.texts, 2)
    steps = [pool_workers.exchanged(shards, lag, 16).steps for lag in (0, 1, 4)]
    assert steps[0] < steps[1] < steps[2] == 8 * 8
    by_group = pool_workers.dealt_by_group(it.texts, 2, 1)
    assert [len(shards) for shards in by_group] == [4, 4]
    assert [{t.group for s in shards for t in s} for shards in by_group] == [{"g0"}, {"g1"}]
    apart = pool_workers.kept_apart(by_group, 16)
    assert apart.texts == 8
    assert apart.steps == steps[0]  # each group's first text has nothing to draft from, as there


def test_the_table_names_every_way(tmp_path: Path) -> None:
    result = {
        "settings": {"shard_size": 2, "budget": 16},
        "traces": {"made up": {"tokens_per_step": {"exchanged, lag 0": 2.5}}},
    }
    assert "| exchanged, lag 0 | 2.50 |" in workers_table(result)
