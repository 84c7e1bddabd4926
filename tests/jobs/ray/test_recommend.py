"""Recommendations from a cluster are those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftrec.config import RecommendConfig
from draftrec.errors import Interrupted
from draftrec.jobs.executor import LocalExecutor, Start
from draftrec.jobs.ray import ClusterSpec, on_ray
from draftrec.jobs.recommend.job import run_job
from draftrec.jobs.recommend.setup import TaskSettings, prepare
from tests.jobs.recommend.worlds import World, make_world

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.usefixtures("share")
def test_the_file_is_that_of_a_local_job(world: World, tmp_path: Path) -> None:
    def do(name: str, start: Start, stop_after: int | None = None) -> dict[str, float]:
        config = RecommendConfig(k=5, draft_beams=8, batch_size=3, draft_steps=2)
        task = prepare(
            TaskSettings(
                sequences=str(world.sequences), sids=world.sids, target=world.target,
                draft=str(world.draft), output=tmp_path / name,
                config=config, shadow=0.5, shard_size=2,
            ),
            start,
        )  # fmt: skip
        told: list[int] = []
        try:
            stop = None if stop_after is None else lambda: sum(told) >= stop_after
            summary = run_job(task.job, task.executor, task.histories, told.append, stop)
        finally:
            task.executor.close()
        assert sum(told) == 12
        return {k: v for k, v in summary.items() if "walltime" not in k and "ms_" not in k}

    notes: list[str] = []
    cluster = on_ray(ClusterSpec(workers=2), notes.append)
    expected = do("here.parquet", LocalExecutor)
    with pytest.raises(Interrupted):
        do("there.parquet", cluster, 5)
    assert len(list((tmp_path / ".there.parquet.parts").glob("facts-*"))) >= 2
    assert do("there.parquet", cluster) == expected
    assert (tmp_path / "there.parquet").read_bytes() == (tmp_path / "here.parquet").read_bytes()
    assert notes == []
