"""Sequences in, a file of recommendations out: in shards, so that an interruption costs nothing.

Finished shards lie in a folder beside the output until the last one is done; then they become the
one file. Of a shard that is not finished, a journal there keeps the users who are. The same command
continues where it stopped; other settings are refused.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from draftrec.config import RecommendRun
from draftrec.data.files.locks import check_still_held
from draftrec.data.files.places import Place, arrow_path, natural
from draftrec.data.files.writers import (
    LineJournal,
    check_table_name,
    remove_folder,
    replace_file,
    replace_parquet,
    write_tables,
)
from draftrec.data.sequences import History
from draftrec.data.tables.columns import arrow_type
from draftrec.errors import DraftrecError
from draftrec.items.ids import as_text, is_text
from draftrec.items.semantic_ids import SemanticIds
from draftrec.jobs.executor import Executor, ShouldStop
from draftrec.jobs.ledger import Ledger, changes
from draftrec.jobs.recommend.catalogue import Query, Recommendation
from draftrec.jobs.recommend.recommender import ItemRecommender

_ROUNDED = "up to rounding"


@dataclass(frozen=True, slots=True)
class IdTypes:
    """Whether users and items are texts in the output, as they are in the input."""

    users: bool = False
    items: bool = False

    @classmethod
    def of(cls, histories: Seq[History], sids: SemanticIds) -> IdTypes:
        """Users as in the sequences; items too, unless these say nothing of it, or the catalogue's
        items are no numbers."""
        users = any(isinstance(h.user, str) for h in histories)
        some = [ids for h in histories for ids in (h.items, h.targets) if len(ids)][:1]
        items = is_text(some[0]) if some else sids.spelt
        return cls(users, items or is_text(sids.items))

    @property
    def schema(self) -> pa.Schema:
        """The contract's columns."""
        return pa.schema(
            [
                ("user", arrow_type(text=self.users)),
                ("items", pa.list_(arrow_type(text=self.items))),
                ("scores", pa.list_(pa.float64())),
                ("sids", pa.list_(pa.list_(pa.string()))),
                ("target_calls", pa.int32()),
                ("accepted_steps", pa.int32()),
            ]
        )


NUMBERS = IdTypes()


def to_table(answers: Seq[Recommendation], ids: IdTypes) -> pa.Table:
    """The contract's rows."""
    columns = {
        "user": [a.user for a in answers],
        "items": [as_text(a.items).tolist() if ids.items else a.items for a in answers],
        "scores": [a.scores for a in answers],
        "sids": [a.sids for a in answers],
        "target_calls": [a.target_calls for a in answers],
        "accepted_steps": [a.accepted_steps for a in answers],
    }
    return pa.table(columns, schema=ids.schema)


#: Told how many more users are done.
OnDone = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Fingerprints of the models: what a job records of them. `draft`: or `items`, or `none`;
    `exact`: how equal the answers are to plain search's; `item_model`: None without one."""

    target: str
    draft: str
    exact: str = field(default=_ROUNDED, compare=False)  # workers' machines may differ
    item_model: str | None = None


@dataclass(frozen=True, eq=False, slots=True)
class ShardAnswers:
    """Answers for the users of one shard. `walltime` in seconds; `same`: of users answered again by
    plain search, whether the items were the same; `gap`: the largest difference of a score;
    `exact` as in `ModelFacts`."""

    answers: list[Recommendation]
    walltime: float
    same: list[bool]
    gap: float
    exact: str = _ROUNDED

    def facts(self) -> dict[str, Any]:
        """What the summary needs of a shard."""
        searched = [a for a in self.answers if not a.popular]
        return {
            "users": len(self.answers),
            "popular": len(self.answers) - len(searched),
            "walltime_seconds": self.walltime,
            "ms": [round(1e3 * a.seconds, 3) for a in searched],
            "target_calls": sum(a.target_calls for a in searched),
            "accepted_steps": sum(a.accepted_steps for a in searched),
            "draft_calls": sum(a.draft_calls for a in searched),
            "drafted": sum(a.drafted for a in searched),
            "invalid": sum(a.invalid for a in self.answers),
            "beams": sum(a.beams for a in self.answers),
            "shadow_users": len(self.same),
            "shadow_same": sum(self.same),
            "shadow_gap": self.gap,
            "exact": self.exact,
        }


@dataclass(frozen=True, eq=False, slots=True)
class Shard:
    """Users to recommend for; `journal`: the file that keeps those who are finished; `first`: how
    many users of the job come before them."""

    users: Seq[History]
    journal: Place | None = None
    first: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class Finished:
    """The answer for a user, by the place in the shard, and the seconds that the shard had taken by
    then, in all its lives."""

    place: int
    wall: float
    answer: Recommendation

    def line(self) -> bytes:
        """As a journal has it."""
        it = self.answer
        told = {name: getattr(it, name) for name in _PLAIN}
        items, scores = it.items.tolist(), it.scores.tolist()
        values = {"place": self.place, "wall": self.wall, "items": items, "scores": scores, **told}
        return (json.dumps(values) + "\n").encode()

    @classmethod
    def of(cls, line: bytes, sids: SemanticIds) -> Finished:
        """Raises ValueError, KeyError or TypeError for anything but a line of a journal."""
        values: dict[str, Any] = json.loads(line)
        places = sids.find(values["items"])
        if (places < 0).any():
            raise ValueError("an item is of another catalogue")
        scores = np.array(values["scores"], np.float64)
        told = {name: values[name] for name in _PLAIN}
        answer = Recommendation(
            items=sids.items[places], scores=scores, sids=sids.sids_at(places), **told
        )
        return cls(values["place"], values["wall"], answer)


#: What a journal's line has of an answer as it is.
_PLAIN = [f.name for f in fields(Recommendation) if f.name not in ("items", "scores", "sids")]


class RecommendWorker:
    """Answers for the users of a shard. `shadow`: the share of users answered twice."""

    def __init__(self, recommender: ItemRecommender, facts: ModelFacts, shadow: float) -> None:
        self.recommender, self._facts, self._shadow = recommender, facts, shadow

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    def __call__(
        self,
        shard: Shard,
        on_done: OnDone | None = None,
        should_stop: ShouldStop | None = None,
        /,
    ) -> ShardAnswers:
        """Recommend for the users of one shard, and again for some of them. Those that its journal
        has are taken over."""
        queries = [Query(h.user, h.items) for h in shard.users]
        with self._journal(shard) as journal:
            answers, walltime = self._answers(queries, journal, on_done, should_stop)
        chosen = shadowed(shard.first, len(queries), self._shadow)
        again = [queries[i] for i in chosen]
        plain = self.recommender.plain().recommend(again, None, should_stop)
        pairs = [(answers[i], other) for i, other in zip(chosen, plain, strict=True)]
        same = [np.array_equal(a.items, b.items) for a, b in pairs]
        equal = [(a.scores, b.scores) for a, b in pairs if len(a.scores) == len(b.scores)]
        gaps = [float(np.abs(a - b).max(initial=0.0)) for a, b in equal]
        return ShardAnswers(answers, walltime, same, max(gaps, default=0.0), self._facts.exact)

    def _journal(self, shard: Shard) -> AbstractContextManager[LineJournal[Finished] | None]:
        """Open; None where there is none, or its folder is not to be seen from here."""
        if shard.journal is None or not shard.journal.parent.is_dir():
            return nullcontext()
        return LineJournal(
            shard.journal, partial(Finished.of, sids=self.recommender.catalogue.sids)
        )

    def _answers(
        self,
        queries: Seq[Query],
        journal: LineJournal[Finished] | None,
        on_done: OnDone | None,
        should_stop: ShouldStop | None,
    ) -> tuple[list[Recommendation], float]:
        """All answers, and the seconds that they took."""
        entries = journal.entries if journal else []
        found = {entry.place: entry.answer for entry in entries}
        earlier = entries[-1].wall if entries else 0.0
        left = [i for i in range(len(queries)) if i not in found]
        if on_done and found:
            on_done(len(found))
        start = time.perf_counter()

        def keep(i: int, answer: Recommendation) -> None:
            found[left[i]] = answer
            if journal:
                wall = earlier + time.perf_counter() - start
                journal.write(Finished(left[i], wall, answer).line())
                journal.tick()

        self.recommender.recommend([queries[i] for i in left], on_done, should_stop, keep)
        took = earlier + time.perf_counter() - start
        return [found[i] for i in range(len(queries))], took

    def merged(self, progress: list[int], /) -> list[int]:
        """How many users, at once."""
        return [sum(progress)]


def shadowed(first: int, users: int, share: float) -> list[int]:
    """The places of those `users` after the `first` ones of a job who are answered again: `share`
    of all, evenly spread wherever shards end, the first user among them."""
    before = np.ceil(np.round(share * np.arange(first, first + users + 1), 6))
    return np.flatnonzero(np.diff(before)).tolist()


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
    exact = {f.get("exact", _ROUNDED) for f in facts}
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
        "exact": exact.pop() if len(exact) == 1 else _ROUNDED,
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
