"""The race: fair turns, and numbers that mean what they say."""

from __future__ import annotations

from typing import Any

import numpy as np

from draftrec.core import Counts, Generation, Request
from draftrec.demo.texts import Contender, race
from draftrec.engine.text.stats import StepStats, Timing
from draftrec.evaluate.beam_speed import Spread

REQUESTS = [Request(f"e{i}", np.array([1, i], np.int32)) for i in range(3)]


class Writer:
    """Stands in for a generator: writes `tokens`, and notes when it was asked."""

    def __init__(self, name: str, log: list[str], tokens: list[int], accepted: int) -> None:
        self.name, self.log, self.tokens, self.accepted = name, log, tokens, accepted
        self.timing = Timing()

    def run(self, requests: list[Request], *, on_step: Any = None) -> list[Generation]:
        self.log.append(f"{self.name}{len(requests)}")
        self.timing.draft_seconds += 1.0
        for request in requests:
            if on_step:
                drafted = 2 * self.accepted
                on_step(StepStats(1, 0, 1, 5, 3, 1, drafted, self.accepted))
            del request
        counts = Counts(target_calls=2, draft_calls=1, drafted_tokens=4, accepted_tokens=1)
        ids = np.array(self.tokens, np.int32)
        return [Generation(r.entity_id, ids, "eos", 2, counts) for r in requests]


def contenders(log: list[str]) -> list[Contender]:
    return [
        Contender("plain", Writer("p", log, [7, 8, 2], 0)),  # type: ignore[arg-type]
        Contender("same", Writer("s", log, [7, 8, 2], 2)),  # type: ignore[arg-type]
        Contender("other", Writer("o", log, [7, 9, 2], 3)),  # type: ignore[arg-type]
    ]


def test_each_goes_first_in_turn_after_an_uncounted_warm_up() -> None:
    log: list[str] = []
    seen: list[int] = []
    runners = contenders(log)
    race(runners, REQUESTS, 3, progress=seen.append)
    assert log == ["p1", "s1", "o1", "p3", "s3", "o3", "s3", "o3", "p3", "o3", "p3", "s3"]
    assert sum(seen) == 27
    assert all(len(one.seconds) == len(one.repeats) == 3 for one in runners)
    assert all(one.generator.timing.draft_seconds == 3.0 for one in runners)


def test_a_slow_machine_repeats_less() -> None:
    runners = contenders([])
    race(runners, REQUESTS, 9, seconds=0.0)
    assert [len(one.seconds) for one in runners] == [3, 3, 3]


def test_counts() -> None:
    runners = contenders([])
    race(runners, REQUESTS, 2)
    plain, same, other = runners
    assert (same.identical_to(plain), other.identical_to(plain)) == (3, 0)
    assert same.counts.target_calls == 12
    assert same.new_tokens == 18
    assert not plain.accepted_per_call  # nothing drafted, nothing to keep
    assert same.accepted_per_call == {2: 6}


def test_a_single_odd_repeat_is_not_identical() -> None:
    runners = contenders([])
    race(runners, REQUESTS, 2)
    runners[1].repeats[1] = runners[2].repeats[0]
    assert runners[1].identical_to(runners[0]) == 0


def test_speedup_is_paired() -> None:
    slow, fast = contenders([])[:2]
    slow.seconds, fast.seconds = [2.0, 8.0, 3.0], [1.0, 2.0, 1.0]
    assert fast.speedup_over(slow) == Spread(3.0, 2.0, 4.0, rounds=3)
