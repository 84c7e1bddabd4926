"""Sequences in, a file of recommendations out: in shards, so that an interruption costs nothing.

Finished shards lie in a folder beside the output until the last one is done; then they become the
one file. Of a shard that is not finished, a journal there keeps the users who are. The same command
continues where it stopped; other settings are refused.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from draftrec.config import RecommendRun
from draftrec.data.files.locks import check_still_held
from draftrec.data.files.places import Place, arrow_path, natural
from draftrec.data.files.writers import (
    check_table_name,
    remove_folder,
    replace_file,
    replace_parquet,
    write_tables,
)
from draftrec.data.sequences import History
from draftrec.errors import DraftrecError
from draftrec.jobs.executor import Executor, ShouldStop
from draftrec.jobs.ledger import Ledger, changes
from draftrec.jobs.recommend.worker import NUMBERS, ROUNDED, IdTypes, OnDone, Shard, to_table

_OWNED = re.compile(
    r"part-\d{5,}\.parquet|facts-\d{5,}\.json|journal-\d{5,}\.jsonl|again\.(?:parquet|jsonl|csv)"
)
#: In the record, beside the settings: of a file that is whole, its `bytes` and its `summary`.
_WHOLE = "whole"


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
    shadow: float = RecommendRun.shadow
    overwrite: bool = False
    shard_size: int = RecommendRun.shard_size
    ids: IdTypes = NUMBERS

    @property
    def parts(self) -> Place:
        """The folder of finished shards."""
        return self.output.with_name(f".{self.output.name}.parts")

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.output, self.parts, "an interrupted run", "settings.json", _OWNED)

    def facts_file(self, number: int) -> Place:
        """What the summary needs of a shard; written last, so its being there means done."""
        return self.parts / f"facts-{number:05d}.json"

    def journal(self, number: int) -> Place:
        """The finished users of a shard that is not."""
        return self.parts / f"journal-{number:05d}.jsonl"


def run_job(
    job: RecommendJob,
    executor: Executor,
    histories: Seq[History],
    on_done: OnDone | None = None,
    should_stop: ShouldStop | None = None,
) -> dict[str, Any]:
    """Recommend for all users, write the file and return the summary.

    Raises Interrupted when asked to stop, with finished users kept, and
    DraftrecError for an output that other settings have begun, or another process writes to.
    """
    with job.ledger.held():
        return _run(job, executor, histories, on_done, should_stop)


def _run(
    job: RecommendJob,
    executor: Executor,
    histories: Seq[History],
    on_done: OnDone | None,
    should_stop: ShouldStop | None,
) -> dict[str, Any]:
    parts = list(_shards(histories, job.shard_size))
    if (summary := _made(job, len(parts))) is not None:
        _remove_parts(job)
        return summary
    _prepare(job)
    left = [i for i in range(len(parts)) if not job.facts_file(i).is_file()]
    finished = len(histories) - sum(len(parts[i]) for i in left)
    if on_done and finished:
        on_done(finished)
    before = time.perf_counter()
    shards = (Shard(parts[i], job.journal(i).absolute(), i * job.shard_size) for i in left)
    answers = executor.results(shards, on_done, should_stop)
    for number, found in zip(left, answers, strict=True):
        now = time.perf_counter()
        if executor.worker is None:  # shards overlap
            found = replace(found, walltime=now - before)
        before = now
        replace_parquet(job.parts / f"part-{number:05d}.parquet", to_table(found.answers, job.ids))
        check_still_held(job.output)
        replace_file(job.facts_file(number), json.dumps(found.facts()).encode())
        job.journal(number).unlink(missing_ok=True)
    return _finish(job, len(parts))


def summary_of(facts: Seq[dict[str, Any]], *, shadow: bool) -> dict[str, Any]:
    """The contract's summary of all shards."""

    def total(key: str) -> float:
        return sum(f[key] for f in facts)

    searched = max(1, total("users") - total("popular"))
    latencies = np.concatenate([np.array(f["ms"], np.float64) for f in facts] or [np.zeros(0)])
    p50, p99 = np.percentile(latencies, [50, 99]).tolist() if len(latencies) else (0.0, 0.0)
    # Shards of an earlier version say nothing.
    exact = {f.get("exact", ROUNDED) for f in facts}
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
        "exact": exact.pop() if len(exact) == 1 else ROUNDED,
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
    """Raise DraftrecError where the job would replace a file, or continue another one's work. A
    file beside parts of the same job may be what they were to become: `run_job` sees to it."""
    check_table_name(job.output)
    if job.overwrite:
        return
    if job.output.exists() and _settings(_begun(job)) != job.settings:
        _drop_leavings(job)
        raise _exists(job)
    if (before := job.ledger.begun()) is not None:
        job.ledger.refuse(changes(_settings(before) or {}, job.settings))


def _exists(job: RecommendJob) -> DraftrecError:
    return DraftrecError(
        f"{job.output} exists; name another output, or replace it with --overwrite"
    )


def _begun(job: RecommendJob) -> dict[str, Any] | None:
    """The record, None for a damaged one, which is refused elsewhere, or to be overwritten."""
    with suppress(DraftrecError):
        return job.ledger.begun()
    return None


def _settings(record: dict[str, Any] | None) -> dict[str, Any] | None:
    return record and {name: it for name, it in record.items() if name != _WHOLE}


def _made(job: RecommendJob, shards: int) -> dict[str, Any] | None:
    """The summary of the file, if it is there and nothing was left to do but to remove its `shards`
    when the job was killed; else None."""
    record = _begun(job)
    if record is None or _settings(record) != job.settings or not job.output.exists():
        return None
    if whole := record.get(_WHOLE):
        return whole["summary"] if job.output.stat().st_size == whole["bytes"] else None
    if job.overwrite or not all(job.facts_file(i).is_file() for i in range(shards)):
        return None
    # Killed before the record said so, perhaps; or it is the file of somebody else.
    again = job.parts / f"again{job.output.suffix}"
    _join(job, again)
    same = again.read_bytes() == job.output.read_bytes()
    return _summary(job, shards) if same else None


def _prepare(job: RecommendJob) -> None:
    """Begin, or go on with what the same settings have begun."""
    check_output(job)
    if job.output.exists() and not job.overwrite:
        raise _exists(job)
    if _begun(job) != job.settings:
        job.ledger.clear()
    job.parts.mkdir(parents=True, exist_ok=True)
    job.ledger.write(json.dumps(job.settings, indent=1))


def _finish(job: RecommendJob, shards: int) -> dict[str, Any]:
    """Make one file of all shards, and remove them; the summary."""
    summary = _summary(job, shards)
    _join(job, job.output)
    whole = {"bytes": job.output.stat().st_size, "summary": summary}
    job.ledger.write(json.dumps({**job.settings, _WHOLE: whole}, indent=1))
    _remove_parts(job)
    return summary


def _summary(job: RecommendJob, shards: int) -> dict[str, Any]:
    facts = [json.loads(job.facts_file(i).read_bytes()) for i in range(shards)]
    return summary_of(facts, shadow=job.shadow > 0)


def _join(job: RecommendJob, path: Place) -> None:
    """Write the shards as one file."""
    parts = sorted(job.parts.glob("part-*.parquet"), key=natural)
    write_tables(path, job.ids.schema, (pq.read_table(arrow_path(part)) for part in parts))


def _remove_parts(job: RecommendJob) -> None:
    """Remove what is in the file; the record last, by which the same command does the rest."""
    job.ledger.clear(record_last=True)
    if job.parts.is_dir():
        remove_folder(job.parts)


def _drop_leavings(job: RecommendJob) -> None:
    """Remove parts that no record speaks of."""
    if job.parts.is_dir():
        with suppress(DraftrecError, OSError), job.ledger.held():  # who holds it sees to it
            if not job.ledger.path.is_file():
                _remove_parts(job)
