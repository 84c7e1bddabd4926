"""`draftrec genrec recommend --engine ray`: the recommenders of a job on a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from pathlib import Path

from draftrec.data.files.places import is_address
from draftrec.data.sequences import History, read_semantic_ids
from draftrec.jobs.ray.cluster import ClusterSpec, Share
from draftrec.jobs.ray.workers import RayWorkers
from draftrec.jobs.recommend.job import (
    Crew,
    LocalRecommender,
    ModelFacts,
    OnDone,
    ShardAnswers,
    ShouldStop,
)
from draftrec.jobs.recommend.setup import Hire, Inputs, TaskSettings, load


@dataclass(frozen=True, slots=True)
class RecommendWork:
    """Makes a recommender where it runs, from the job's own files."""

    settings: TaskSettings

    def __call__(self) -> _RecommendWork:
        sids = read_semantic_ids(self.settings.sids, self.settings.columns)
        return _RecommendWork(load(self.settings, sids))


class _RecommendWork:
    def __init__(self, recommender: LocalRecommender) -> None:
        self._recommender = recommender

    @property
    def facts(self) -> ModelFacts:
        return self._recommender.facts

    def __call__(self, shard: Seq[History]) -> ShardAnswers:
        return self._recommender.answer(shard)


class RayRecommenders(RayWorkers):
    """Recommenders on a cluster, two shards for each under way at a time."""

    def results(
        self,
        shards: Iterator[Seq[History]],
        on_done: OnDone | None,
        should_stop: ShouldStop | None,
    ) -> Iterator[ShardAnswers]:
        """A shard's `walltime` is the time since the one before it was there: they overlap."""
        before = time.perf_counter()
        for found in self.fleet.results(shards, self.window, should_stop):
            now = time.perf_counter()
            if on_done:
                on_done(len(found.answers))
            yield replace(found, walltime=now - before)
            before = now


def on_ray(cluster: ClusterSpec, note: Callable[[str], None]) -> Hire:
    """The crew whose recommenders are Ray actors."""

    def hire(settings: TaskSettings, inputs: Inputs) -> Crew:
        shards = -(-len(inputs.histories) // settings.shard_size)
        if 0 < shards < cluster.workers:
            note(
                f"{len(inputs.histories):,} users are {shards} shards: no more than {shards} of "
                f"the workers have work; lower --shard-size"
            )
        return RayRecommenders(
            cluster, lambda share: RecommendWork(_at_worker(settings, share)), note
        )

    return hire


def _anywhere(location: str) -> str:
    """A name that means the same to processes with other working directories."""
    return location if is_address(location) else str(Path(location).absolute())


def _at_worker(settings: TaskSettings, share: Share) -> TaskSettings:
    """The same files, from wherever a worker runs, and its own device."""
    draft = settings.draft
    return replace(
        settings,
        sequences=_anywhere(settings.sequences),
        sids=settings.sids.absolute(),
        target=settings.target.absolute(),
        draft=draft if draft in ("items", "none") else str(Path(draft).absolute()),
        output=settings.output.absolute(),
        device=share.device(settings.device),
    )
