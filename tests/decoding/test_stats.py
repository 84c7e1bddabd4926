"""What steps tell of themselves adds up to what the texts say they cost."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

from draftrec.core import SOURCES
from draftrec.decoding.budget import FixedBudget
from draftrec.decoding.generate import generate
from draftrec.decoding.stats import StepStats
from tests.decoding.helpers import PROMPTS, GuessingDrafter, make_engine, plain_text, requests

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
