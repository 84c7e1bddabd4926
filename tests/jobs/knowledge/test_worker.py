"""A worker learns finished shards in order, each once, and none that its pool has no room for."""

from __future__ import annotations

import numpy as np

from draftrec.data.records import Entity
from draftrec.jobs.knowledge.worker import ShardTask, ShardWorker, Texts
from draftrec.models.prompting import PromptForm
from draftrec.pool.store import Pool
from tests.fakes import FakeGenerator, FakePool


def texts_of(index: int) -> Texts:
    return [(np.array([index, 7], np.int32), None)]


def test_every_shard_is_learned_once() -> None:
    generator = FakeGenerator()
    worker = ShardWorker(generator)
    for shards in (2, 1, 2, 4):
        worker.learn(shards, texts_of)
    assert generator.pool is not None
    assert [ids[0] for ids, _ in generator.pool.texts] == [0, 1, 2, 3]
    worker.unlearn(FakePool())
    worker.learn(1, texts_of)
    assert [ids[0] for ids, _ in generator.pool.texts] == [0]


def test_a_full_pool_costs_no_reading() -> None:
    read: list[int] = []

    def reading(index: int) -> Texts:
        read.append(index)
        return [(np.full(400, index, np.int32), None)]

    pool = Pool("bytes", max_bytes=50_000)
    generator = FakeGenerator()
    generator.commit = pool.add  # type: ignore[assignment, method-assign]
    worker = ShardWorker(generator)
    worker.unlearn(pool)
    worker.learn(10, reading)
    assert pool.full
    assert read == list(range(len(pool) + 1))
    assert worker.learned == 10
    worker.learn(20, reading)
    assert len(read) == len(pool) + 1


def test_without_a_pool_nothing_is_read() -> None:
    ShardWorker(FakeGenerator(pool=None)).learn(3, lambda index: 1 / 0)  # type: ignore[arg-type, return-value]


def test_learning_from_a_shard_is_drafting_of_the_next_one() -> None:
    generator = FakeGenerator()
    generator.timing.draft_seconds = 100.0  # before the job: loading, measuring, a check
    worker = ShardWorker(generator)

    def learning(texts: object) -> None:
        generator.timing.draft_seconds += 2.0

    generator.commit = learning  # type: ignore[method-assign]
    task = ShardTask(
        0, [Entity("a", "one prompt", None, "in.jsonl", 1)], 0, PromptForm(), keep=False
    )
    spent = [worker.work(task).cost.spent.draft]
    worker.learn(1, texts_of)
    spent += [worker.work(task).cost.spent.draft for _ in range(2)]
    assert spent == [0.0, 2.0, 0.0]
