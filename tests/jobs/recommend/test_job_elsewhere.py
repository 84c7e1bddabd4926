"""Recommendations at an address: shards lie beside the file there until it is whole."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftrec.data.files.remote import RemotePath
from draftrec.data.sequences import History
from draftrec.errors import DraftrecError
from draftrec.jobs.recommend.catalogue import Recommendation
from draftrec.jobs.recommend.job import ModelFacts, RecommendJob, ShardAnswers, run_job
from tests.fakes import Killed
from tests.locks import held_elsewhere


class FakeExecutor:
    """Recommends a user's own number, and is killed after so many shards."""

    facts, worker = ModelFacts("target", "none"), "here"

    def __init__(self, most: int = 100) -> None:
        self.most, self.done = most, 0

    def results(self, shards: Any, on_done: Any, should_stop: Any) -> Iterator[ShardAnswers]:
        for shard in shards:
            if self.done == self.most:
                raise Killed
            self.done += 1
            answers = [
                Recommendation(h.user, np.array([h.user]), np.array([-1.0]), [["<a_1>"]], 1)
                for h in shard.users
            ]
            yield ShardAnswers(answers, 0.0, [], 0.0)

    def close(self) -> None:
        pass


def histories(count: int = 7) -> list[History]:
    return [History(user, np.array([1, 2]), np.array([3])) for user in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_a_killed_job_goes_on_there_and_ends_with_the_file_of_one_here(
    tmp_path: Path, ending: str
) -> None:
    here = RecommendJob(tmp_path / f"r.{ending}", {"k": 1}, shard_size=2)
    run_job(here, FakeExecutor(), histories())
    folder = RemotePath(f"memory://{uuid.uuid4().hex}")
    there = RecommendJob(folder / f"r.{ending}", {"k": 1}, shard_size=2)
    with pytest.raises(Killed):
        run_job(there, FakeExecutor(most=2), histories())
    assert not there.output.exists()
    with pytest.raises(DraftrecError, match=r"memory://.* begun otherwise \(k was"):
        run_job(RecommendJob(there.output, {"k": 2}, shard_size=2), FakeExecutor(), histories())
    rest = FakeExecutor()
    summary = run_job(there, rest, histories())
    assert (rest.done, summary["users"]) == (2, 7)
    assert there.output.read_bytes() == here.output.read_bytes()
    assert [p.name for p in folder.iterdir()] == [f"r.{ending}"]
    with pytest.raises(DraftrecError, match="exists"):
        run_job(there, rest, histories())


@pytest.mark.parametrize("damage", [b"", b'{"k": ', b"[]", b"\xff\xfe"])
def test_a_damaged_record_is_named_and_can_be_overwritten(tmp_path: Path, damage: bytes) -> None:
    job = RecommendJob(tmp_path / "r.parquet", {"k": 1}, shard_size=2)
    with pytest.raises(Killed):
        run_job(job, FakeExecutor(most=2), histories())
    job.ledger.path.write_bytes(damage)
    with pytest.raises(DraftrecError, match=r"damaged; .* --overwrite"):
        run_job(job, FakeExecutor(), histories())
    anew = FakeExecutor()
    summary = run_job(replace(job, overwrite=True), anew, histories())
    assert (anew.done, summary["users"]) == (4, 7)


def test_the_job_itself_refuses_a_second_writer(tmp_path: Path) -> None:
    job = RecommendJob(tmp_path / "r.parquet", {"k": 1}, shard_size=2)
    with held_elsewhere(job.output), pytest.raises(DraftrecError, match="another process"):
        run_job(job, FakeExecutor(), histories())
