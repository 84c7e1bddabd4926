"""What steps tell of themselves adds up to what the texts say they cost."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import numpy as np

from draftrec.config import AcceptConfig
from draftrec.core import SOURCES
from draftrec.engine.text.budget import FixedBudget
from draftrec.engine.text.loop import generate
from draftrec.engine.text.stats import StepStats, summed
from tests.engine.text.helpers import PROMPTS, GuessingDrafter, make_engine, plain_text, requests
from tests.engine.text.toy import EOS, BushyDrafter, toy_engine, toy_requests

NAME = "llama"


def test_steps_agree_with_the_texts_counts_by_source_depth_and_group() -> None:
    truth: dict[str, Seq[int]] = {str(i): plain_text(NAME, p) for i, p in enumerate(PROMPTS)}
    engine = make_engine(
        NAME, GuessingDrafter(truth, 0.8), budget=FixedBudget(6), slots=3, prefill_chunk=8
    )
    asked = [replace(r, group="even" if i % 2 == 0 else None) for i, r in enumerate(requests())]
    steps: list[StepStats] = []
    done = generate(engine, asked, steps.append)
    counts = [text.counts for text in done]
    for name in ("target_calls", "draft_calls", "drafted_tokens", "accepted_tokens"):
        assert sum(getattr(s, name) for s in steps) == sum(getattr(c, name) for c in counts) > 0
    for i in range(len(SOURCES)):
        assert sum(s.accepted_by_source[i] for s in steps) == sum(
            c.accepted_by_source[i] for c in counts
        )
    for group, first in (("even", 0), ("", 1)):
        found = [s.by_group.get(group, (0, 0)) for s in steps]
        assert sum(d for d, _ in found) == sum(c.drafted_tokens for c in counts[first::2])
        assert sum(a for _, a in found) == sum(c.accepted_tokens for c in counts[first::2])
    for step in steps:
        assert sum(step.accepted_by_depth) == step.accepted_tokens
        assert list(step.accepted_by_depth) == sorted(step.accepted_by_depth, reverse=True)
    assert max(len(s.accepted_by_depth) for s in steps) > 1
    assert all(0 < s.kv_tokens <= sum(len(p) for p in PROMPTS) + 20 * 3 for s in steps)


def test_texts_that_are_computed_anew_are_counted_while_nothing_of_them_is_scored() -> None:
    """As those of `longrope` are that outgrow its limit: in several passes, if they are long."""
    table = np.random.default_rng(0).normal(size=(7, 7))
    table[:, EOS] = -9.0
    written: list[list[list[int]]] = []
    for limit in (1 << 30, 5):
        engine = toy_engine(table, AcceptConfig(), BushyDrafter(7), most=12)
        target: Any = engine.target
        target.shared_length = target.anew_length = limit
        engine.prefill_chunk = 4
        steps: list[StepStats] = []
        done = generate(engine, toy_requests(3), steps.append)
        written.append([text.token_ids.tolist() for text in done])
        drafted = sum(text.counts.drafted_tokens for text in done)
        assert sum(s.by_group.get("", (0, 0))[0] for s in steps) == drafted > 0
        # The pass that outgrew it has no draft behind it; those that follow have no verdict.
        assert any(s.scored < s.active for s in steps) == (limit == 5)
    assert written[0] == written[1]


def test_the_sum_of_steps_counts_each_once_and_shows_the_last_batch() -> None:
    zeros = (0,) * (len(SOURCES) - 1)
    first = StepStats(
        active=4, waiting=7, finished=1, rows=20, new_tokens=6, target_calls=4, drafted_tokens=9,
        accepted_tokens=2, draft_calls=3, relaxed_tokens=1, kv_tokens=100,
        accepted_by_source=(2, *zeros), accepted_by_depth=(1, 1), by_group={"a": (5, 2)},
    )  # fmt: skip
    second = replace(
        first, active=3, waiting=6, kv_tokens=90, accepted_by_depth=(2,),
        by_group={"a": (1, 1), "b": (3, 0)},
    )  # fmt: skip
    assert summed([first]) == first
    assert summed([first, second]) == StepStats(
        active=3, waiting=6, finished=2, rows=40, new_tokens=12, target_calls=8, drafted_tokens=18,
        accepted_tokens=4, draft_calls=6, relaxed_tokens=2, kv_tokens=90,
        accepted_by_source=(4, *zeros), accepted_by_depth=(3, 1),
        by_group={"a": (6, 3), "b": (3, 0)},
    )  # fmt: skip
