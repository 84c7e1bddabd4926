"""Recommendations at an address: shards lie beside the file there until it is whole."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftrec.data.files.remote import RemotePath
from draftrec.data.sequences import History
from draftrec.errors import DraftrecError
from draftrec.jobs.ledger import Ledger
from draftrec.jobs.recommend.catalogue import Recommendation
from draftrec.jobs.recommend.job import RecommendJob, run_job
from draftrec.jobs.recommend.worker import ModelFacts, ShardAnswers
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


class Kills:
    """Kills a job that has written its file, at the `at`-th of what it does then: nothing of its
    own gets done any more."""

    def __init__(self, job: RecommendJob, at: int) -> None:
        self.job, self.left, self.dead = job, at, False

    def __call__(self) -> None:
        if self.job.output.exists():
            self.dead = self.dead or self.left == 0
            self.left -= 1
        if self.dead:
            raise Killed


def ends(job: RecommendJob, at: int, monkeypatch: pytest.MonkeyPatch) -> Kills:
    """The job, killed at its end."""
    kills = Kills(job, at)
    with monkeypatch.context() as patch:
        for kind, name in ((Ledger, "write"), (Path, "unlink"), (Path, "rmdir")):
            usual = getattr(kind, name)

            def counted(self: Any, *args: Any, usual: Any = usual, **more: Any) -> Any:
                if isinstance(self, Ledger) or job.parts in (self, self.parent):
                    kills()
                return usual(self, *args, **more)

            patch.setattr(kind, name, counted)
        patch.setattr("draftrec.data.files.writers.shutil.rmtree", lambda path: path.rmdir())
        with suppress(Killed):
            run_job(job, FakeExecutor(), histories())
    return kills


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_kill_at_its_end_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """The file was whole, and the same command said that it exists."""
    whole = RecommendJob(tmp_path / f"whole.{ending}", {"k": 1}, shard_size=2)
    summary = run_job(whole, FakeExecutor(), histories())
    for at in range(100):
        job = replace(whole, output=tmp_path / f"r{at}.{ending}")
        if not ends(job, at, monkeypatch).dead:
            break
        again = FakeExecutor()
        if job.parts.is_dir() and any(job.parts.iterdir()):
            assert run_job(job, again, histories()) == summary
        else:  # all but an empty folder is as if it had ended
            with pytest.raises(DraftrecError, match="exists"):
                run_job(job, again, histories())
        assert (again.done, job.parts.exists()) == (0, False)
        assert job.output.read_bytes() == whole.output.read_bytes()
    assert at > 10


def test_a_file_that_is_not_the_killed_jobs_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = RecommendJob(tmp_path / "r.parquet", {"k": 1}, shard_size=2)
    for at in (0, 3):  # before its record says that the file is whole, and after
        assert ends(job, at, monkeypatch).dead
        with pytest.raises(DraftrecError, match="exists"):  # another job's
            run_job(replace(job, settings={"k": 2}), FakeExecutor(), histories())
        job.output.write_bytes(b"mine")
        with pytest.raises(DraftrecError, match="exists"):
            run_job(job, FakeExecutor(), histories())
        assert job.output.read_bytes() == b"mine"
        job.output.unlink()
        assert run_job(job, FakeExecutor(), histories())["users"] == 7
        assert not job.parts.exists()
        job.output.unlink()
