"""When a head is asked: where it brings more than it takes, what it reads once per text too."""

from __future__ import annotations

import numpy as np
import pytest

from draftrec.engine.learned.drafter import Worth

# A pass takes a second and writes 1.4 tokens of each text, of 75 passes each; a look takes 0.05 s.
PACE, STEPS, LOOK = 1.4, 75, 0.05


def written(
    brings: list[float], prompt: float, batch: int, passes: int = 4000
) -> tuple[float, float]:
    """Share of passes that the head drafts in, and tokens that it brings net of its time, as a
    share of those written without it. `brings`: how often its node is accepted, by level; `prompt`:
    seconds that it takes to read one."""
    rng = np.random.default_rng(0)
    worth = Worth(len(brings), lambda n: PACE * n)
    age, unread = rng.integers(STEPS, size=batch), np.ones(batch, bool)
    drafted, tokens, seconds = 0, 0, 0.0
    for _ in range(passes):
        age += 1
        unread |= age >= STEPS
        age %= STEPS
        if worth.rests(batch):
            continue
        drafted += 1
        accepted, mass = np.full((batch, len(brings)), -1, np.int32), float(batch)
        for level, often in enumerate(brings):
            if not worth.pays(level, mass, batch):
                break
            took = LOOK * (1 + 0.1 * abs(rng.normal())) + prompt * (level == 0) * unread.sum()
            worth.looked(level, mass, took, batch, behind=bool(level == 0 and unread.any()))
            seconds += took
            unread[:] = unread & (level > 0)
            accepted[rng.random(batch) < often, level] = level
            mass *= 0.5
        tokens += int((accepted >= 0).sum())
        worth.settle(list(accepted), batch)
    return drafted / passes, (tokens - PACE * batch * seconds) / (PACE * batch * passes)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_head_that_pays_is_asked_although_prompts_take_it_long(batch: int) -> None:
    share, gain = written([0.3, 0.1], 1.0 / batch, batch)
    assert share > 0.9
    assert gain > 0.1


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("brings", [[0.02, 0.0], [0.05, 0.02], [0.0, 0.0]], ids=str)
def test_a_head_that_does_not_pay_is_seldom_tried(brings: list[float], batch: int) -> None:
    share, gain = written(brings, 1.0, batch)
    assert share < 0.1
    assert gain > -0.02


def test_a_trial_ends_when_it_has_lost_a_few_tokens() -> None:
    """A look that seems worth it by what it has seen, and takes ten times as long as it brings."""
    worth = Worth(1, lambda n: 1.0 * n)
    looks = 0
    while not worth.resting and looks < 192:
        worth.looked(0, 1.0, 1.0, 1, behind=True)
        worth.settle([np.array([-1])], 1)
        worth.looked(0, 1.0, 1.0, 1)
        worth.settle([np.array([-1])], 1)
        looks += 2
    assert looks < 24


def test_what_is_read_once_per_text_decides_too() -> None:
    assert written([0.15, 0.0], 1.0, 1)[0] > 0.9
    assert written([0.15, 0.0], 12.0, 1)[0] < 0.25


def test_a_look_at_a_prompt_tells_nothing_of_other_looks() -> None:
    worth = Worth(1, lambda n: 1.0 * n)
    for _ in range(3):
        worth.looked(0, 1.0, 0.05, 1)
    worth.looked(0, 1.0, 5.0, 1, behind=True)
    assert worth.seconds(0, 1) == 0.05
    assert worth.seconds(0, 8) == 0.05  # the nearest that is known
    for _ in range(3):
        worth.looked(0, 8.0, 0.2, 8)
    assert worth.seconds(0, 8) == 0.2


def test_what_a_first_look_compiles_does_not_stop_the_next() -> None:
    worth = Worth(1, lambda n: 10.0 * n)
    for took in (40.0, 0.06, 0.01, 0.01, 0.01):
        assert worth.pays(0, 1.0, 1)
        worth.looked(0, 1.0, took, 1)
        worth.settle([np.array([0])], 1)
    assert worth.seconds(0, 1) == 0.01
    assert not worth.resting


def test_a_head_is_tried_again_after_its_rest() -> None:
    """Texts may change: it brings nothing for a while, then a token of every text."""
    worth = Worth(1, lambda n: 1.0 * n)
    asked = []
    for step in range(8000):
        if worth.rests(1):
            continue
        looks = worth.pays(0, 1.0, 1)
        if looks:
            worth.looked(0, 1.0, 0.1, 1)
            asked.append(step)
        worth.settle([np.array([0 if looks and step >= 1000 else -1])], 1)
    assert len([s for s in asked if s < 1000]) < 450
    assert len([s for s in asked if s >= 4000]) > 3900
