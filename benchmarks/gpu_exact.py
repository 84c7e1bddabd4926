"""Is strict plain, bit for bit, in bfloat16? Random models, whose near-ties are many, write texts
by themselves, and again from drafts, by every way to run them."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import note

from draftrec.config import AcceptConfig
from draftrec.core import Generation, Request
from draftrec.engine.target import Target
from draftrec.engine.text import loop
from draftrec.engine.text.accept import make_rule
from draftrec.engine.text.budget import FixedBudget
from draftrec.engine.text.loop import NoDrafter
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.store import Pool

_PROMPT = 48


@dataclass(frozen=True)
class Plan:
    """Prompts, new tokens of each, batch sizes and budgets to try."""

    texts: int = 32
    tokens: int = 64
    batches: Seq[int] = (1, 8, 32)
    budgets: Seq[int] = (4, 16)


def measure_exact(target: Target, plan: Plan) -> dict[str, Any]:
    """Texts that equal those written alone and without drafts, by batch size and budget. Drafts
    come from these texts themselves, so that most are accepted where nothing parts the texts."""
    vocabulary = int(target.model.config.get_text_config().vocab_size)
    random = np.random.default_rng(0)
    asked = [
        Request(str(i), random.integers(3, vocabulary, _PROMPT + i % 7).astype(np.int32), None)
        for i in range(plan.texts)
    ]
    expected = _write(target, asked, plan.tokens, 1, None)
    pool = Pool("exact")
    pool.add((text.token_ids, None) for text in expected)
    report: dict[str, Any] = {"promised": target.exact, "texts": len(asked), "equal": {}}
    for batch in plan.batches:
        for budget in (0, *plan.budgets) if batch > 1 else plan.budgets:
            drafts = (pool, budget) if budget else None
            done = _write(target, asked, plan.tokens, batch, drafts)
            equal = sum(
                np.array_equal(a.token_ids, b.token_ids)
                for a, b in zip(done, expected, strict=True)
            )
            report["equal"][f"batch {batch}, {budget or 'no'} nodes"] = {
                "equal": equal,
                "accepted_tokens": sum(g.counts.accepted_tokens for g in done),
            }
    counts = [found["equal"] for found in report["equal"].values()]
    note(f"  exact: {min(counts)} to {max(counts)} of {len(asked)} texts equal")
    return report


def _write(
    target: Target,
    asked: Seq[Request],
    tokens: int,
    slots: int,
    drafts: tuple[Pool, int] | None,
) -> list[Generation]:
    engine = loop.Engine(
        target=target,
        drafter=PoolDrafter(drafts[0]) if drafts else NoDrafter(),
        rule=make_rule(AcceptConfig(), frozenset()),
        budget=FixedBudget(drafts[1] if drafts else 0),
        accept=AcceptConfig(),
        eos_ids=frozenset(),
        slots=slots,
        max_new_tokens=tokens,
    )
    return loop.generate(engine, asked)
