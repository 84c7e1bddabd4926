"""How one shard of a recommendation is done: its users' answers, what they cost, and their rows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from draftrec.data.files.places import Place
from draftrec.data.files.writers import (
    LineJournal,
)
from draftrec.data.sequences import History
from draftrec.data.tables.columns import arrow_type
from draftrec.items.ids import as_text, is_text
from draftrec.items.semantic_ids import SemanticIds
from draftrec.jobs.executor import ShouldStop
from draftrec.jobs.recommend.catalogue import Query, Recommendation
from draftrec.jobs.recommend.recommender import ItemRecommender

#: Of lists that are not known to be plain search's bit for bit.
ROUNDED = "up to rounding"


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
    exact: str = field(default=ROUNDED, compare=False)  # workers' machines may differ
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
    exact: str = ROUNDED

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
