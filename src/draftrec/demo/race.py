"""Several ways of doing the same work, timed in turns: a busy machine disturbs all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from typing import TypeVar

#: Stage, things done, things in all.
Watch = Callable[[str, int, int], None]
Way = TypeVar("Way")

_LEAST_ROUNDS = 3


def turns(ways: Seq[Way], rounds: int, seconds: float = float("inf")) -> Iterator[list[Way]]:
    """The order of every round: each way goes first in turn.

    On a slow machine there are fewer rounds, but at least three, so as to take about `seconds`.
    """
    start = time.perf_counter()
    for turn in range(rounds):
        expected = (time.perf_counter() - start) * (turn + 1) / max(turn, 1)
        if turn >= _LEAST_ROUNDS and expected > seconds:
            return
        first = turn % len(ways)
        yield [*ways[first:], *ways[:first]]


@contextmanager
def one_thread() -> Iterator[None]:
    """A model this small gains nothing from a second thread, and waiting for one that shares its
    core with other work can cost everything.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
