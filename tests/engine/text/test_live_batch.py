"""Texts that are asked for and given up while others are being written."""

from __future__ import annotations

import numpy as np
import pytest

from draftrec.config import AcceptConfig
from draftrec.core import Request
from draftrec.engine.text.batch import Batch, Limits
from draftrec.engine.text.loop import Engine, drop
from draftrec.pool.drafter import PoolDrafter
from tests.engine.text.toy import toy_engine


def requests(count: int) -> list[Request]:
    return [Request(str(i), np.full(4, i + 1, np.int32)) for i in range(count)]


def make(slots: int = 2) -> Batch:
    return Batch(requests(3), Limits(slots, 8, 64), lambda source, target, rows: None)


def engine() -> Engine:
    return toy_engine(np.full((4, 4), 0.25), AcceptConfig(), PoolDrafter())


def test_requests_are_numbered_in_the_order_in_which_they_come() -> None:
    batch = make()
    batch.refill()
    assert batch.add(Request("late", np.array([9], np.int32))) == 3
    assert [order for order, _ in batch.waiting] == [2, 3]
    with pytest.raises(RuntimeError, match="not finished"):
        batch.finished()


def test_a_dropped_text_frees_its_slot_and_its_drafts() -> None:
    batch, loop = make(), engine()
    for sequence in batch.refill():
        loop.drafter.start(sequence)
    first = batch.running[0]
    assert drop(loop, batch, 0) is first
    assert loop.drafter._running.keys() == {id(batch.running[0])}
    assert [s.order for s in batch.running] == [1]
    assert [s.slot for s in batch.refill()] == [first.slot]


def test_a_waiting_request_can_be_dropped() -> None:
    batch = make()
    batch.refill()
    assert drop(engine(), batch, 2) is None
    assert not batch.waiting
    assert drop(engine(), batch, 77) is None
