"""Sequences in, a file of recommendations out: in shards, so that an interruption costs one.

Finished shards lie in a folder beside the output until the last one is done; then they become the
one file. The same command continues where it stopped; other settings are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from draftrec.data.arrow_path import arrow_path
from draftrec.data.ledger import changes, refuse_changes
from draftrec.data.locks import sole_writer
from draftrec.data.places import Place
from draftrec.data.remote_lock import check_still_held
from draftrec.data.sequences import History
from draftrec.data.tables import check_table_name, write_tables
from draftrec.data.writers import remove_folder, replace_file, replace_parquet
from draftrec.errors import DraftrecError
from draftrec.recommend.crew import Crew, OnDone, ShouldStop
from draftrec.recommend.output import NUMBERS, IdTypes, to_table

SHARD = 2048
_SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True)
class RecommendJob:
    """`output` is the file to write, Parquet, JSON lines or CSV by its ending; `settings` decide
    what stands in it, so that a run with others does not continue this one. `shadow`: the share of
    users who are recommended for once more by plain search, to see whether the answers are the
    same. `overwrite`: replace what is there, once the new file is complete. `ids`: the types of the
    file's ids.
    """

    output: Place
    settings: dict[str, Any]
    shadow: float = 0.0
    overwrite: bool = False
    shard_size: int = SHARD
    ids: IdTypes = NUMBERS

    @property
    def parts(self) -> Place:
        """The folder of finished shards."""
        return self.output.with_name(f".{self.output.name}.parts")

    def facts_file(self, number: int) -> Place:
        """What the summary needs of a shard; written last, so its being there means done."""
        return self.parts / f"facts-{number:05d}.json"


def run_job(
    job: RecommendJob,
    crew: Crew,
    histories: Seq[History],
    on_done: OnDone | None = None,
    should_stop: ShouldStop | None = None,
) -> dict[str, Any]:
    """Recommend for all users, write the file and return the summary.

    Raises Interrupted when asked to stop, with finished shards kept, and
    DraftrecError for an output that other settings have begun, or another process writes to.
    """
    with sole_writer(job.output):
        return _run(job, crew, histories, on_done, should_stop)


def _run(
    job: RecommendJob,
    crew: Crew,
    histories: Seq[History],
    on_done: OnDone | None,
    should_stop: ShouldStop | None,
) -> dict[str, Any]:
    _prepare(job)
    parts = list(_shards(histories, job.shard_size))
    left = [i for i in range(len(parts)) if not job.facts_file(i).is_file()]
    finished = len(histories) - sum(len(parts[i]) for i in left)
    if on_done and finished:
        on_done(finished)
    answers = crew.results((parts[i] for i in left), on_done, should_stop)
    for number, found in zip(left, answers, strict=True):
        replace_parquet(job.parts / f"part-{number:05d}.parquet", to_table(found.answers, job.ids))
        check_still_held(job.output)
        replace_file(job.facts_file(number), json.dumps(found.facts()).encode())
    facts = [json.loads(job.facts_file(i).read_bytes()) for i in range(len(parts))]
    _finish(job)
    return summary_of(facts, shadow=job.shadow > 0)


def summary_of(facts: Seq[dict[str, Any]], *, shadow: bool) -> dict[str, Any]:
    """The contract's summary of all shards."""

    def total(key: str) -> float:
        return sum(f[key] for f in facts)

    searched = max(1, total("users") - total("popular"))
    latencies = np.concatenate([np.array(f["ms"], np.float64) for f in facts] or [np.zeros(0)])
    p50, p99 = np.percentile(latencies, [50, 99]).tolist() if len(latencies) else (0.0, 0.0)
    summary = {
        "users": int(total("users")),
        "popular_users": int(total("popular")),
        "walltime_seconds": round(total("walltime_seconds"), 4),
        "ms_per_user_p50": round(p50, 3),
        "ms_per_user_p99": round(p99, 3),
        "mean_target_calls": round(total("target_calls") / searched, 4),
        "mean_accepted_steps": round(total("accepted_steps") / searched, 4),
        "mean_draft_calls": round(total("draft_calls") / searched, 4),
        "mean_drafted_rows": round(total("drafted") / searched, 2),
        "invalid_rate": round(total("invalid") / max(1, total("beams")), 6),
    }
    if shadow:
        users = max(1, total("shadow_users"))
        summary |= {
            "shadow_users": int(total("shadow_users")),
            "shadow_exact_rate": round(total("shadow_same") / users, 6),
            "shadow_score_gap": max(f["shadow_gap"] for f in facts),
        }
    return summary


def _shards(histories: Seq[History], size: int) -> Iterator[Seq[History]]:
    for first in range(0, len(histories), size):
        yield histories[first : first + size]


def check_output(job: RecommendJob) -> None:
    """Raise DraftrecError where the job would replace a file, or continue another one's work."""
    check_table_name(job.output)
    if job.overwrite:
        return
    if job.output.exists():
        raise DraftrecError(
            f"{job.output} exists; name another output, or replace it with --overwrite"
        )
    path = job.parts / _SETTINGS
    before = json.loads(path.read_bytes()) if path.is_file() else job.settings
    refuse_changes(job.parts, "an interrupted run", changes(before, job.settings))


def _prepare(job: RecommendJob) -> None:
    """Begin, or go on with what the same settings have begun."""
    check_output(job)
    path = job.parts / _SETTINGS
    if path.is_file() and json.loads(path.read_bytes()) != job.settings:
        remove_folder(job.parts)
    job.parts.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(job.settings, indent=1).encode())


def _finish(job: RecommendJob) -> None:
    """Make one file of all shards."""
    parts = sorted(job.parts.glob("part-*.parquet"))
    write_tables(job.output, job.ids.schema, (pq.read_table(arrow_path(path)) for path in parts))
    remove_folder(job.parts)
